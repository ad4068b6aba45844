-- Returns the token and the fence of the hold of $1, if there is one.
--
-- $1 name, $2 lease in seconds for a hold that score.distlock 0.2.5 extended, $3 the
-- host's offset from UTC in seconds.
--
-- Guarantees:
-- * It reads one row by its name, locks nothing and writes nothing.
SELECT token, fence FROM {table} WHERE name {=} $1 AND {live}
