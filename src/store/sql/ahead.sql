CASE WHEN waiters[1] {=} $6 THEN 0 ELSE (
  SELECT pg_catalog.count(DISTINCT ticket {>>} 24)
    FROM pg_catalog.unnest(waiters) WITH ORDINALITY AS queue (ticket, position)
   WHERE position {<} coalesce(
           pg_catalog.array_position(waiters, $6), pg_catalog.array_position(waiters, $7), pg_catalog.cardinality(waiters) {+} 1
         )
     AND NOT {dead}
) END
