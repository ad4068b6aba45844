-- Tells of the hold of $1, if there is one, what record.sql says.
--
-- $1 name, $2 lease in seconds for a hold that score.distlock 0.2.5 wrote, $3 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * No token is read, so a role suffices that may not.
-- * It reads one row by its name, locks no row and writes nothing.
SELECT {record} FROM {table} WHERE name {=} $1 AND {live}
