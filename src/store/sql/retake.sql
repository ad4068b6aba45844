-- Takes the lock $1 if its row is there, nobody holds it and nobody waits for it:
-- what is nearly always true of a lock that was released here a moment ago.
--
-- $1 name, $2 the new token, $3 lease in seconds, $4 the host's offset from UTC in
-- seconds, $5 the holder's name for people, $6 until when it is wanted.
--
-- Guarantees:
-- * Taking is as in acquire.sql: one taker, a fence above all before, no
--   waiting for a row, nothing written if it is in vain.
-- * No row comes back if anything is otherwise than expected: acquire.sql finds
--   out. It does much more, and each part of a statement costs its preparation at
--   every execution, whether it is needed or not.
-- * Nothing is taken after $6, as in acquire.sql.
-- * `now()` is the instant at which the statement arrived, so the lease may be granted for
--   too little, if somebody keeps the whole table locked, and never for too much.
UPDATE {table}
   SET {taking pg_catalog.now()}
 WHERE ctid {=} (
    SELECT ctid
      FROM {table}
     WHERE ctid {=} {latest}
       AND CASE
             WHEN touched {=} updated AND expires {<=} pg_catalog.clock_timestamp() AND waiters IS NULL
             THEN {durable}
             ELSE false
           END
       FOR UPDATE SKIP LOCKED
   )
   AND {timely $6}
RETURNING fence, pg_catalog.pg_sequence_last_value({fences}) {<} fence AS beyond
