(
  SELECT array_agg(ticket ORDER BY position)
    FROM unnest(waiters) WITH ORDINALITY AS queue (ticket, position)
   WHERE NOT {dead}
)
