-- Replaces the token $2 of the hold of $1 by $3.
--
-- $1 name, $2 old token, $3 new token, $4 lease in seconds for a hold that
-- score.distlock 0.2.5 extended, $5 the host's offset from UTC in seconds, $6
-- the holder's name for people.
--
-- Guarantees:
-- * One statement: at no moment are two tokens valid, or none.
-- * Lease and fence stay the same.
-- * On disk before the answer, like an acquisition: a crash that forgot it would revive the old
--   token.
-- * Repeated after a lost answer it finds the new token and changes nothing.
UPDATE {table}
   SET token = $3,
       holder = $6
 WHERE name {=} $1
   AND token {=} ANY (ARRAY[$2, $3])
   AND CASE WHEN {live} THEN {durable} ELSE false END
RETURNING fence, {remaining} AS remaining
