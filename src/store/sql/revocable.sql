-- Tells as info.sql of the hold of $1, and its token, for who is about to end it.
--
-- $1 name, $2 lease in seconds for a hold that score.distlock 0.2.5 wrote, $3 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * Token and record are those of one hold: who releases with the token ends what was seen,
--   or nothing.
-- * It reads one row by its name, locks no row and writes nothing.
SELECT token, {record} FROM {table} WHERE name {=} $1 AND {live}
