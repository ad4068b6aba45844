-- Tells whether this session has the server process $1 to itself; if so, makes its planner use
-- indexes and skip JIT compilation, and limits how long statements wait for a lock. Also returns
-- the database's clock.
--
-- $1 the server process number reported at login.
--
-- Guarantees:
-- * A pooler makes up the number it reports, as it has no server process yet. Behind one the
--   session is not changed, since others use it too.
-- * While the table is small the planner scans all of it. A plan made then is slow when the table
--   grows, as it does beside an old snapshot; see latest.sql.
-- * With sequential scans disabled, the planner rates a statement that needs one as very expensive
--   (up to PostgreSQL 17), and so worth compiling. That took a second for each `init`.
-- * A transaction may keep the whole table locked. A caller that does not want to wait is told so
--   after 200 ms; the other statements are repeated. An existing `lock_timeout` stays.
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
