-- Looks at the $4 rows after id $3 and deletes those that have been free or
-- expired for a minute; tells the last id it looked at and how many they were.
--
-- $1 lease in seconds for rows that score.distlock 0.2.5 wrote, $2 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * Bounded: it reads and writes at most $4 rows, whatever the table's size.
-- * Names in steady use keep their row, which makes their updates heap-only.
-- * As with vacuum, locked rows are skipped and states judged under the lock.
WITH batch AS MATERIALIZED (
    SELECT id FROM _score_distlock WHERE id > $3 ORDER BY id LIMIT $4
), stale AS MATERIALIZED (
    SELECT id FROM _score_distlock
     WHERE id = ANY (ARRAY(SELECT id FROM batch))
       AND ({live}) IS NOT TRUE
       AND (expires < clock_timestamp() - interval '1 minute'
            OR touched IS DISTINCT FROM updated)
       FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM _score_distlock WHERE id = ANY (ARRAY(SELECT id FROM stale))
)
SELECT max(id) AS last, count(*) AS seen FROM batch
