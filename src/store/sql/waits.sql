-- Returns holders that wait for locks: the holder of `held` waits for `awaited`, for `doctor`.
--
-- $1 lease in seconds for holds that score.distlock 0.2.5 wrote, $2 the host's offset from UTC
-- in seconds.
--
-- Guarantees:
-- * It reads the whole table and the locks of all sessions, and no token. It locks nothing.
-- * The locks of their listening connections tell processes apart, see listen.sql and process.sql.
--   Processes that cannot listen are not reported.
WITH hold AS MATERIALIZED (
    SELECT name, waiters,
           pg_catalog.substring(holder, '^[^ :]+:[0-9]+') AS process
      FROM {table}
     WHERE {live}
), key AS MATERIALIZED (
    SELECT pid, mode,
           (classid::pg_catalog.int8 {<<} 32) {|} objid::pg_catalog.int8 AS key
      FROM pg_catalog.pg_locks
     WHERE locktype {=} 'advisory'
       AND objsubid {=} 1
       AND database {=} (
         SELECT oid FROM pg_catalog.pg_database WHERE datname {=} pg_catalog.current_database()
       )
)
SELECT DISTINCT own.name AS held, other.name AS awaited
  FROM hold AS other
 CROSS JOIN LATERAL pg_catalog.unnest(other.waiters) AS queue (ticket)
  JOIN key AS listening ON listening.key {=} {listener ticket} AND listening.mode {=} 'ExclusiveLock'
  JOIN key AS named ON named.pid {=} listening.pid AND named.mode {=} 'ShareLock'
  JOIN hold AS own ON named.key {=} {process own.process}
 WHERE own.process {<>} other.process
