-- Tells which server processes have rows of the table locked, other than this one.
--
-- Guarantees:
-- * It reads what the server knows about locks of whole tables, so it may name some that
--   have locked other rows.
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
