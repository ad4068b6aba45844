-- Takes the lock $1 if its row exists, nobody holds it and nobody waits for it: nearly always the
-- case for a lock released here a moment ago.
--
-- $1 name, $2 the new token, $3 lease in seconds, $4 the host's offset from UTC in seconds, $5 the
-- holder's name for people, $6 the time limit.
--
-- Guarantees:
-- * Taking works as in acquire.sql: one taker, a fence above all before, no waiting for a row,
--   nothing written on failure.
-- * Returns no row if anything is not as expected: then acquire.sql finds out why. That statement
--   does much more, and each part of it costs setup time at every execution, whether needed or not.
-- * Nothing is taken after $6, as in acquire.sql.
-- * `now()` is when the statement arrived, so if a transaction keeps the whole table locked, the
--   lease may come out too short, but never too long.
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
