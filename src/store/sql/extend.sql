-- Gives the hold of $1 with token $2 a new lease starting now.
--
-- $1 name, $2 token, $3 lease in seconds, $4 the host's offset from UTC in
-- seconds.
--
-- Guarantees:
-- * Only the holder's own row is touched, and only while its lease stands. An
--   expired hold stays expired, even if nobody has taken it over.
-- * No key column changes: a guard (FOR KEY SHARE) does not hold it up.
-- * The instant is read before the row is locked, so a statement that had to wait grants too little
--   rather than too much.
-- * No lease gets shorter: its holder may not know of this extension, and relies on the old end.
-- * On disk before the answer, like an acquisition.
-- * Safe to repeat: the lease counts from the last execution.
WITH clock AS MATERIALIZED (SELECT pg_catalog.clock_timestamp() AS instant)
UPDATE {table}
   SET updated = {local instant},
       touched = {local instant},
       expires = greatest(expires, instant {+} pg_catalog.make_interval(secs => $3)),
       lease = greatest(lease, $3)
  FROM clock
 WHERE name {=} $1
   AND token {=} $2
   AND CASE WHEN {live} THEN {durable} ELSE false END
RETURNING fence
