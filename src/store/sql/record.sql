-- What is reported about a live hold: everything but its token.
--
-- `acquired` is local time on the writing host, `shown` its offset from UTC when the lease began:
-- `expires` does not depend on the zone, `updated` does. For a hold that score.distlock 0.2.5
-- wrote, we have to assume our own zone.
--
-- `waiting` counts processes rather than tickets, and excludes those that are gone. The locks that
-- this takes are free again when the statement ends.
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
