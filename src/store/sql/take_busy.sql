-- Takes the lock $1, now that it is free and this waiter is the first in the queue,
-- though its row was locked a moment ago.
--
-- $1 name, $2 the token to take it with, $3 lease in seconds, $4 the host's
-- offset from UTC in seconds, $5 the holder's name for people, $6 the waiter's
-- ticket, $7 whether more of its process wait: the ticket then goes to the queue's end,
-- $8 until when it is wanted.
--
-- Guarantees:
-- * Taking is as in acquire.sql and wait.sql. No row comes back if anything is
--   otherwise than expected; wait.sql then finds out.
-- * It waits, though not for long, for others who enter or leave the queue at this
--   moment, but not for a guard: `FOR NO KEY UPDATE` does the one, and what
--   still excludes `FOR UPDATE` afterwards is a guard. An error 55P03 says that
--   it was in vain.
WITH entry AS MATERIALIZED (
    SELECT pg_catalog.set_config('lock_timeout', '200ms', true) AS limit_
), mine AS MATERIALIZED (
    SELECT id
      FROM entry, {table} AS lock
     WHERE name {=} $1
       AND waiters[1] {=} $6
       AND limit_ IS NOT NULL
       FOR NO KEY UPDATE OF lock
), free AS MATERIALIZED (
    SELECT lock.id, pg_catalog.clock_timestamp() AS instant
      FROM mine, {table} AS lock
     WHERE lock.id {=} mine.id
       AND waiters[1] {=} $6
       AND CASE WHEN {live} THEN false ELSE {durable} END
       FOR UPDATE OF lock SKIP LOCKED
)
UPDATE {table} AS lock
   SET {taking instant},
       waiters = CASE WHEN $7 THEN waiters[2:] {||} $6 ELSE {unless_empty waiters[2:]} END
  FROM free
 WHERE lock.id {=} free.id
   AND {timely $8}
RETURNING lock.fence, pg_catalog.pg_sequence_last_value({fences}) {<} lock.fence AS beyond
