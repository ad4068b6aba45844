-- Returns for every hold the columns of record.sql.
--
-- $1 lease in seconds for holds that score.distlock 0.2.5 wrote, $2 the host's offset from
-- UTC in seconds.
--
-- Guarantees:
-- * No token is read.
-- * It locks no row and writes nothing. It reads the whole table.
SELECT {record} FROM {table} WHERE {live}
