-- Returns a row if the token $2 has a hold of $1.
--
-- $1 name, $2 token, $3 lease in seconds for a hold that score.distlock 0.2.5
-- extended, $4 the host's offset from UTC in seconds.
--
-- Guarantees:
-- * It reads one row by its name, locks nothing and writes nothing.
SELECT FROM {table}
 WHERE name {=} $1
   AND token {=} $2
   AND {live}
