-- Tells why $1 is not held with token $2: by a row whether a release has ended the hold, or
-- else its lease has.
--
-- $1 name, $2 token.
--
-- Only asked when no hold was found, as by the repetition of a release whose answer was
-- lost. A row that was taken over since, or is gone, gives no answer.
SELECT lease IS NULL AS released
  FROM {table}
 WHERE name {=} $1
   AND token {=} $2
   AND touched {=} updated
   AND (lease IS NULL OR expires {<=} pg_catalog.clock_timestamp())
