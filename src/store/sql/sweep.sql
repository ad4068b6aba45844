-- Checks the $4 rows after id $3 and deletes those that have been free or expired for $5 seconds;
-- returns the last id it checked and the number of rows.
--
-- $1 lease in seconds for rows that score.distlock 0.2.5 wrote, $2 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * Bounded: it reads and writes at most $4 rows, whatever the table's size.
-- * A free row stays for a minute if a waiter in its queue may be about to take its turn.
-- * Names in steady use keep their row, which makes their updates heap-only.
-- * As in vacuum.sql, locked rows are skipped and states judged under the lock.
WITH batch AS MATERIALIZED (
    SELECT id FROM {table} WHERE id {>} $3 ORDER BY id LIMIT $4
), stale AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE id {=} ANY (ARRAY(SELECT id FROM batch))
       AND ({live}) IS NOT TRUE
       AND (expires {<} (pg_catalog.clock_timestamp()
                         {-} pg_catalog.make_interval(secs => CASE WHEN waiters IS NULL THEN $5 ELSE 60 END))
            OR (touched {=} updated) IS NOT TRUE)
       FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {table} WHERE id {=} ANY (ARRAY(SELECT id FROM stale))
)
SELECT pg_catalog.max(id)::pg_catalog.int8 AS last, pg_catalog.count(*) AS seen FROM batch
