-- Returns for the hold of $1, if there is one, the columns of record.sql.
--
-- $1 name, $2 lease in seconds for a hold that score.distlock 0.2.5 wrote, $3 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * It reads no token, so a role without the right to read tokens can use it.
-- * It reads one row by its name, locks no row and writes nothing.
SELECT {record} FROM {table} WHERE name {=} $1 AND {live}
