CASE WHEN waiters[1] = $6 THEN 0 ELSE (
  SELECT count(DISTINCT ticket >> 24)
    FROM unnest(waiters) WITH ORDINALITY AS queue (ticket, position)
   WHERE position < coalesce(
           array_position(waiters, $6), array_position(waiters, $7), cardinality(waiters) + 1
         )
     AND NOT {dead}
) END
