-- Ends the hold of $1 with token $2: the row stays, free for the next taker.
--
-- $1 name, $2 token, $3 lease in seconds for a hold that score.distlock 0.2.5
-- extended, $4 the host's offset from UTC in seconds, $5 whether the commit may
-- be asynchronous.
--
-- Guarantees:
-- * Only the holder's own hold ends, and only while its lease stands.
-- * The commit is not waited for on disk: a crash that forgets it leaves a hold
--   that expires. `asynchronous` is joined, hence really evaluated.
-- * The row looks ancient to 0.2.5, whose next attempt removes it before it
--   inserts its own. No indexed column changes: a heap-only update.
-- * The token stays, to be recognised by `released` when an answer was lost.
WITH asynchronous AS MATERIALIZED (
    SELECT set_config(
        'synchronous_commit',
        CASE WHEN $5 THEN 'off' ELSE current_setting('synchronous_commit') END,
        true
    ) AS durability
)
UPDATE _score_distlock
   SET updated = '0001-01-01',
       touched = '0001-01-01',
       expires = clock_timestamp(),
       lease = NULL,
       holder = NULL
  FROM asynchronous
 WHERE name = $1
   AND token = $2
   AND durability IS NOT NULL
   AND {live}
RETURNING fence
