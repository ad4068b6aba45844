-- Ends the hold of $1 with token $2 if nobody waits for the lock: the row stays, free for the next
-- taker.
--
-- $1 name, $2 token.
--
-- Guarantees:
-- * Only the hold of this token ends, and only while its lease stands.
-- * It changes no row if others wait, if score.distlock 0.2.5 extended the hold, or if there is no
--   hold: release_awaited.sql finds out which. This one contains only what is needed when nobody
--   waits. It decides under the row's lock, so a waiter that enters the queue later sees a free
--   lock.
-- * The commit does not wait for the disk: a crash that forgets it leaves a hold that expires. No
--   row is changed before `set_config` has been evaluated.
-- * The row looks ancient to 0.2.5, whose next attempt removes it before it inserts its own. No
--   indexed column changes: a heap-only update.
-- * The token stays, so that `released` can recognise it after a lost answer.
UPDATE {table}
   SET updated = '0001-01-01',
       touched = '0001-01-01',
       expires = pg_catalog.clock_timestamp(),
       lease = NULL,
       holder = NULL
 WHERE ctid {=} {latest}
   AND token {=} $2
   AND CASE
         WHEN touched {=} updated AND expires {>} pg_catalog.clock_timestamp() AND waiters IS NULL
         THEN pg_catalog.set_config('synchronous_commit', 'off', true) IS NOT NULL
         ELSE false
       END
