-- Ends the hold of $1 with token $2 and calls the first who waits: the row stays, free
-- for the next taker.
--
-- $1 name, $2 token, $3 lease in seconds, which is not needed here, $4 the host's offset
-- from UTC in seconds.
--
-- Guarantees:
-- * As release_awaited.sql, for what is nearly always true of a lock that others wait
--   for: the first in the queue is alive.
-- * No row comes back, and none is changed, if its process is gone, if score.distlock
--   0.2.5 extended the hold, or if there is none: release_awaited.sql finds out.
UPDATE {table}
   SET updated = {yielded},
       touched = {yielded},
       expires = pg_catalog.clock_timestamp(),
       lease = NULL,
       holder = NULL
 WHERE ctid {=} {latest}
   AND token {=} $2
   AND CASE
         WHEN touched {=} updated AND expires {>} pg_catalog.clock_timestamp()
         THEN CASE
                WHEN waiters IS NULL THEN true
                ELSE NOT pg_catalog.pg_try_advisory_xact_lock_shared({listener waiters[1]})
              END
              AND pg_catalog.set_config('synchronous_commit', 'off', true) IS NOT NULL
         ELSE false
       END
RETURNING CASE WHEN waiters IS NOT NULL THEN {notified} END AS notified
