-- The table of score.distlock: every statement may be run again at any time.
-- The first five columns are those of score.distlock 0.2.5, which goes on
-- working on the same table; it leaves the others NULL.
CREATE TABLE IF NOT EXISTS {table} (
    id bigserial PRIMARY KEY,
    name varchar NOT NULL UNIQUE,
    acquired timestamp NOT NULL,
    updated timestamp NOT NULL,
    token varchar(256) NOT NULL
) WITH (fillfactor = 50);
ALTER TABLE {table}
    ADD COLUMN IF NOT EXISTS touched timestamp,
    ADD COLUMN IF NOT EXISTS expires timestamp with time zone,
    ADD COLUMN IF NOT EXISTS lease double precision,
    ADD COLUMN IF NOT EXISTS fence bigint,
    ADD COLUMN IF NOT EXISTS holder pg_catalog.text,
    ADD COLUMN IF NOT EXISTS waiters bigint[];
CREATE SEQUENCE IF NOT EXISTS {schema}_score_distlock_fence_seq
    AS bigint OWNED BY {table}.fence;
-- score.distlock 0.2.5 acquires in one transaction: it deletes every row that looks
-- expired to it, in whatever order it meets them, and inserts its own. Two that delete the
-- same rows in different orders, or delete what the other is about to insert, wait for each
-- other, and one dies of a deadlock. Among its own kind it hardly ever finds a row to
-- delete; the free rows that we leave are some at every attempt. So those that delete like
-- this go one after the other, from before the first row until their commit: whoever waits
-- for its turn has locked nothing yet.
--
-- Nothing else takes part. All other statements, ours and 0.2.5's, lock one row, or skip
-- what is locked, so they never wait for a row while another waits for them.
--
-- The condition does it all. It is never true, so the function, which is any of the
-- system's, never runs, and there is none of ours that a dump of the table would leave
-- out. Every name in it is looked up now, and not with the search path of who deletes.
DROP TRIGGER IF EXISTS score_distlock_one_vacuum_at_a_time ON {table};
CREATE TRIGGER score_distlock_one_vacuum_at_a_time
    BEFORE DELETE ON {table} FOR EACH STATEMENT
    WHEN (CASE
            WHEN pg_catalog.current_query() OPERATOR(pg_catalog.~~) '%updated < %'
            THEN pg_catalog.pg_advisory_xact_lock(
                   {name}::pg_catalog.regclass::pg_catalog.oid::pg_catalog.int4, 0
                 ) IS NULL
            ELSE false
          END)
    EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger();
