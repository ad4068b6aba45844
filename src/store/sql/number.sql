-- Draws a new fence for the hold of $1 with token $2, whose row was inserted with fence $5, which
-- may be older than others of the name.
--
-- $1 name, $2 token, $3 lease in seconds for a hold that score.distlock 0.2.5
-- extended, $4 the host's offset from UTC in seconds, $5 the fence that the row has,
-- or 0.
--
-- Guarantees:
-- * The number is above all drawn for the name before: nobody else can take the name between the
--   draw and the change of the row, as that would be a new row version and make this statement draw
--   again.
-- * Only the holder's own row is touched, and only while its lease stands.
-- * On disk before the answer. Repeated, or executed late, it finds a number other than $5, keeps
--   it and returns it: the number that a holder was told is the number of its hold.
UPDATE {table}
   SET fence = CASE
         WHEN coalesce(fence, 0) {=} $5 THEN greatest({drawn}, coalesce(fence, 0) {+} 1)
         ELSE fence
       END
 WHERE name {=} $1
   AND token {=} $2
   AND CASE WHEN {live} THEN {durable} ELSE false END
RETURNING fence
