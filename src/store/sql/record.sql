-- What is told about a live hold: everything but its token.
--
-- `acquired` is what the clock of the writing host showed, `shown` by how much that differed
-- from UTC when the lease began: `expires` is without a zone's doing, `updated` is not. Of a
-- hold that score.distlock 0.2.5 wrote, only our own zone can be assumed.
--
-- `waiting` counts processes and not tickets, and leaves out those that are gone. What is
-- locked by that is free again when the statement is over.
name,
fence,
holder,
pg_catalog.date_part('epoch', acquired) AS acquired,
CASE
  WHEN touched {=} updated
  THEN (pg_catalog.date_part('epoch', updated) {-} pg_catalog.date_part('epoch', expires)) {+} lease
  ELSE {zone}
END AS shown,
CASE
  WHEN touched {=} updated THEN pg_catalog.date_part('epoch', expires)
  ELSE (pg_catalog.date_part('epoch', updated) {+} greatest(lease, {lease})) {-} {zone}
END AS ends,
CASE WHEN waiters IS NULL THEN 0 ELSE (
  SELECT pg_catalog.count(DISTINCT ticket {>>} 24)
    FROM pg_catalog.unnest(waiters) AS queue (ticket)
   WHERE NOT {dead}
) END AS waiting
