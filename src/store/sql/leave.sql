-- Takes the waiter with ticket $2 out of the queue of lock $1.
--
-- $1 name, $2 ticket, $3 lease in seconds for a hold that score.distlock 0.2.5
-- wrote, $4 the host's offset from UTC in seconds.
--
-- Guarantees:
-- * If the lock is free, so that it may have been this waiter's turn, the next one is notified in
--   the same transaction.
-- * The commit does not wait for the disk. Repeated, it changes nothing.
WITH asynchronous AS MATERIALIZED (
    SELECT pg_catalog.set_config('synchronous_commit', 'off', true) AS durability
), gone AS (
    UPDATE {table}
       SET waiters = {unless_empty pg_catalog.array_remove(waiters, $2)}
      FROM asynchronous
     WHERE name {=} $1
       AND $2 {=} ANY (waiters)
       AND durability IS NOT NULL
 RETURNING waiters, {live} AS live
)
SELECT {notified} AS notified
  FROM (SELECT {survivors} AS waiters FROM gone WHERE NOT live) AS alive
 WHERE waiters IS NOT NULL
