-- Takes the lock $1, now that it is free and this waiter is the first in the queue.
--
-- $1 name, $2 the token to take it with, $3 lease in seconds, $4 the host's offset from UTC in
-- seconds, $5 the holder's name for people, $6 the waiter's ticket, $7 whether more waiters of its
-- process wait: then the ticket goes to the queue's end, $8 the time limit.
--
-- Guarantees:
-- * Taking works as in retake.sql, whose remarks apply here too.
-- * Returns no row if anything is not as expected, or if the row is locked at this moment: then
--   wait.sql waits for it, and finds out why.
UPDATE {table}
   SET {taking pg_catalog.now()},
       waiters = CASE WHEN $7 THEN waiters[2:] {||} $6 ELSE {unless_empty waiters[2:]} END
 WHERE ctid {=} (
    SELECT ctid
      FROM {table}
     WHERE ctid {=} {latest}
       AND CASE
             WHEN touched {=} updated AND expires {<=} pg_catalog.clock_timestamp() AND waiters[1] {=} $6
             THEN {durable}
             ELSE false
           END
       FOR UPDATE SKIP LOCKED
   )
   AND {timely $8}
RETURNING fence, pg_catalog.pg_sequence_last_value({fences}) {<} fence AS beyond
