-- Draws a new fence for the hold of $1 with token $2, whose row was inserted with a number
-- that may be older than others of the name.
--
-- $1 name, $2 token, $3 lease in seconds for a hold that score.distlock 0.2.5
-- extended, $4 the host's offset from UTC in seconds.
--
-- Guarantees:
-- * The number is above all that were drawn for the name before: nobody else can take the
--   name between the draw and the change of the row, which would then be another version
--   and make this statement draw again.
-- * Only the holder's own row is touched, and only while its lease stands.
-- * On disk before the answer. Repeated, it draws once more, and nobody knows the first.
UPDATE {table}
   SET fence = greatest({drawn}, coalesce(fence, 0) {+} 1)
 WHERE name {=} $1
   AND token {=} $2
   AND CASE WHEN {live} THEN {durable} ELSE false END
RETURNING fence
