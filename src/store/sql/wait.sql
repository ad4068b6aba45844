-- Takes the lock $1 if it is this waiter's turn, or puts the waiter into the
-- queue, which is the column `waiters` of the lock's row.
--
-- $1 name, $2 the token to take it with, $3 lease in seconds, $4 the host's offset from UTC in
-- seconds, $5 the holder's name for people, $6 the waiter's ticket, $7 an earlier ticket of the
-- same waiter or 0, $8 the queue as last seen, without this waiter, $9 whether more waiters of its
-- process wait: if the lock is taken, the ticket then goes to the queue's end, $10 the time limit.
--
-- Guarantees:
-- * Taking works as in acquire.sql: one taker, a fence above all before, no waiting for a row.
-- * After $10 nothing is taken, as in acquire.sql, and the queue is not entered.
-- * To enter the queue it waits for the row, but not for long: others enter, extend or release; a
--   guard does not block it. It also waits to insert the row if another transaction has done so and
--   not yet committed. Error 55P03 means that it waited in vain.
-- * A free lock belongs to the first in the queue for half a second, then also to the second, and
--   so on. Of the tickets of one process only the first counts, and those of dead processes do not
--   count at all.
-- * No wakeup is lost: the ticket enters the queue under the row's lock, and whether the lock is
--   held is judged under it too. A later release sees the ticket and notifies.
-- * Queueing does not change the hold, and its commit does not wait for the disk.
-- * Repeated, it finds its own token, and does not queue behind itself; or it finds its own ticket.
--   If the process has opened a new listening connection since, the waiter keeps its earlier
--   ticket's place.
-- * If score.distlock 0.2.5 has deleted the row and with it the queue, the queue is restored with
--   the new row.
WITH free AS MATERIALIZED (
    SELECT id, pg_catalog.clock_timestamp() AS instant
      FROM {table}
     WHERE name {=} $1
       AND CASE
             WHEN {live} THEN false
             WHEN pg_catalog.clock_timestamp() {<} (expires {+} ({ahead} {*} interval '0.5 second')) THEN false
             ELSE {durable}
           END
       FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE {table} AS lock
       SET {taking instant},
           waiters = CASE
             WHEN $9 THEN pg_catalog.array_remove(pg_catalog.array_remove(waiters, $6), $7) {||} $6
             ELSE {unless_empty pg_catalog.array_remove(pg_catalog.array_remove(waiters, $6), $7)}
           END
      FROM free
     WHERE lock.id {=} free.id
       AND {timely $10}
 RETURNING lock.fence, pg_catalog.pg_sequence_last_value({fences}) {<} lock.fence AS beyond
), missing AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS instant
     WHERE CASE
             WHEN EXISTS (SELECT FROM {table} WHERE name {=} $1) THEN false
             ELSE {durable} AND pg_catalog.set_config('lock_timeout', '200ms', true) IS NOT NULL
           END
), made AS (
    INSERT INTO {table}
           (name, token, acquired, updated, touched, expires, lease, fence, holder, waiters)
    SELECT $1, $2, {local instant}, {local instant}, {local instant},
           instant {+} pg_catalog.make_interval(secs => $3), $3,
           pg_catalog.nextval({fences}), $5, CASE WHEN $9 THEN $8 {||} $6 ELSE {unless_empty $8} END
      FROM missing
     WHERE {timely $10}
        ON CONFLICT (name) DO NOTHING
 RETURNING fence, pg_catalog.pg_sequence_last_value({fences}) {=} fence AS newest
), entry AS MATERIALIZED (
    SELECT pg_catalog.set_config('synchronous_commit', 'off', true) AS durability,
           pg_catalog.set_config('lock_timeout', '200ms', true) AS limit_
     WHERE NOT EXISTS (SELECT FROM taken)
       AND NOT EXISTS (SELECT FROM made)
       AND {timely $10}
), place AS MATERIALIZED (
    SELECT id
      FROM entry, {table} AS lock
     WHERE name {=} $1
       AND $6 {<>} ALL (coalesce(waiters, '{}'))
       AND (token {=} $2 AND {live}) IS NOT TRUE
       AND durability IS NOT NULL
       AND limit_ IS NOT NULL
       FOR NO KEY UPDATE OF lock
), queued AS (
    UPDATE {table} AS lock
       SET waiters = CASE
             WHEN $7 {=} ANY (waiters) THEN pg_catalog.array_replace(waiters, $7, $6)
             ELSE pg_catalog.array_append(waiters, $6)
           END
      FROM place
     WHERE lock.id {=} place.id
 RETURNING token, lock.fence, {live} AS live, {remaining} AS remaining, waiters,
           (touched {=} updated) IS NOT TRUE AS foreign_hold
), seen AS (
    SELECT * FROM queued
     UNION ALL
    SELECT token, fence, {live}, {remaining}, waiters, (touched {=} updated) IS NOT TRUE
      FROM {table}
     WHERE name {=} $1
       AND NOT EXISTS (SELECT FROM queued)
)
SELECT coalesce((SELECT fence FROM taken), (SELECT fence FROM made)) AS fence,
       coalesce((SELECT newest FROM made), true) AS newest,
       coalesce((SELECT beyond FROM taken), false) AS beyond,
       {instant} AS instant,
       seen.live AND seen.token {=} $2 AS mine,
       seen.live,
       seen.fence AS seen_fence,
       seen.remaining,
       seen.waiters,
       seen.foreign_hold,
       {ahead} AS ahead
  FROM (VALUES (1)) AS one
  LEFT JOIN seen ON true
