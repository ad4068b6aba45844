-- Ends the hold of $1 with token $2, even if others wait for the lock: the row stays, free for the
-- next taker.
--
-- $1 name, $2 token, $3 lease in seconds for a hold that score.distlock 0.2.5
-- extended, $4 the host's offset from UTC in seconds.
--
-- Guarantees:
-- * Only the hold of this token ends, and only while its lease stands.
-- * The commit does not wait for the disk: a crash that forgets it leaves a hold that expires.
--   `asynchronous` is joined, hence really evaluated.
-- * The row looks ancient to 0.2.5, whose next attempt removes it before it inserts its own. No
--   indexed column changes: a heap-only update.
-- * The token stays, so that `released` can recognise it after a lost answer.
-- * If others wait, the first is notified that it is its turn, and the first of another process
--   that it is next, should the first not come. Both are taken from the queue as seen under the
--   row's lock. Tickets of dead processes at its head are removed. If nobody waits, nothing is
--   sent. To 0.2.5 the row then stays held for half a second.
WITH asynchronous AS MATERIALIZED (
    SELECT pg_catalog.set_config('synchronous_commit', 'off', true) AS durability
), ended AS (
UPDATE {table}
   SET updated = {yielded},
       touched = {yielded},
       expires = pg_catalog.clock_timestamp(),
       lease = NULL,
       holder = NULL,
       waiters = CASE WHEN waiters IS NOT NULL THEN {survivors} END
  FROM asynchronous
 WHERE name {=} $1
   AND token {=} $2
   AND durability IS NOT NULL
   AND {live}
RETURNING waiters
)
SELECT CASE WHEN waiters IS NOT NULL THEN {notified} END AS notified FROM ended
