-- Confirms the hold of $1 with token $2 inside the caller's own transaction, and keeps everybody
-- else from taking the lock until that transaction ends.
--
-- $1 name (UTF-8 in hexadecimal digits, as the connection may have any encoding), $2 token, $3
-- lease in seconds for a hold that score.distlock 0.2.5 extended, $4 the host's offset from UTC in
-- seconds.
--
-- Guarantees:
-- * A taker locks the row FOR UPDATE, which conflicts with FOR KEY SHARE: while this lock stands
--   nobody can take over, even past the lease.
-- * Extending and releasing change no key column, so they are not blocked.
SELECT fence FROM {table}
 WHERE name {=} pg_catalog.convert_from(pg_catalog.decode($1, 'hex'), 'UTF8')
   AND token {=} $2
   AND {live}
   FOR KEY SHARE
