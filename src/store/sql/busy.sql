-- Tells which server processes, other than this one, have locked rows of the table.
--
-- Guarantees:
-- * It reads the server's table-level locks, so it may include processes that have locked other
--   rows.
SELECT DISTINCT pid::pg_catalog.int8 AS pid
  FROM pg_catalog.pg_locks
 WHERE locktype {=} 'relation'
   AND relation {=} {oid}
   AND mode {=} ANY (ARRAY[
         'RowShareLock', 'RowExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
         'AccessExclusiveLock'
       ])
   AND granted
   AND pid {<>} pg_catalog.pg_backend_pid()
 ORDER BY pid
