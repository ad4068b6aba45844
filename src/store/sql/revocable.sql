-- Like info.sql, but also returns the token, for a caller about to end the hold of $1.
--
-- $1 name, $2 lease in seconds for a hold that score.distlock 0.2.5 wrote, $3 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * Token and record belong to one hold: a release with the token ends the hold that was seen, or
--   nothing.
-- * It reads one row by its name, locks no row and writes nothing.
SELECT token, {record} FROM {table} WHERE name {=} $1 AND {live}
