-- Tells whether the hold of $1 with token $2 was ended by a release.
--
-- $1 name, $2 token.
--
-- Only asked when the answer to a release was lost and the repetition found no
-- hold. A row that was taken over since, or is gone, gives no answer.
SELECT FROM {table}
 WHERE name {=} $1
   AND token {=} $2
   AND touched {=} updated
   AND lease IS NULL
