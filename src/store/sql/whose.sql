-- Tells whether this session is the server process $1, and nobody else's; then makes its
-- planner use indexes and compile nothing, and no statement wait long for a lock. Tells also
-- what the database's clock says.
--
-- $1 the number of the server process that was told at the login.
--
-- Guarantees:
-- * A pooler invents the number that it tells, as it has no server process then. Behind
--   one nothing of the session is changed, since others use it too.
-- * While the table is small the planner reads all of it. A plan that was made then is
--   slow when the table grows, as it does beside an old snapshot; see latest.sql.
-- * To a planner that may read no whole table, a statement that has to is very expensive
--   (up to PostgreSQL 17), and worth compiling. That took a second for each `init`.
-- * Somebody may keep the whole table locked. Whoever does not want to wait is told so after
--   200 ms; the other statements are repeated. A `lock_timeout` that is set already stays.
SELECT CASE
         WHEN pg_catalog.pg_backend_pid() {=} $1
         THEN CASE
                WHEN pg_catalog.current_setting('lock_timeout') {=} '0'
                THEN pg_catalog.set_config('lock_timeout', '200ms', false) IS NOT NULL
                ELSE true
              END AND pg_catalog.set_config('enable_seqscan', 'off', false) IS NOT NULL
              AND pg_catalog.set_config('jit', 'off', false) IS NOT NULL
         ELSE false
       END AS alone,
       {instant} AS instant
