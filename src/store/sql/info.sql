-- Tells of the hold of $1, if there is one, what record.sql says, and its token.
--
-- $1 name, $2 lease in seconds for a hold that score.distlock 0.2.5 wrote, $3 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * It reads one row by its name, locks no row and writes nothing.
-- * The token is for a revocation, which ends the hold that was seen and no other.
SELECT token, {record} FROM {table} WHERE name {=} $1 AND {live}
