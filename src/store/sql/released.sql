-- Tells why $1 is not held with token $2: true if a release ended the hold, false if its lease ran
-- out.
--
-- $1 name, $2 token.
--
-- Sent only when no hold was found, for instance by a repeated release whose answer was lost. If
-- the row was taken over since, or is gone, there is no answer.
SELECT lease IS NULL AS released
  FROM {table}
 WHERE name {=} $1
   AND token {=} $2
   AND touched {=} updated
   AND (lease IS NULL OR expires {<=} pg_catalog.clock_timestamp())
