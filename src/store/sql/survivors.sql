waiters[(
  SELECT place
    FROM (
      SELECT place, waiters[place] AS ticket
        FROM (
          SELECT pg_catalog.generate_series(1, pg_catalog.cardinality(waiters)) AS place
        ) AS places
    ) AS queue
   WHERE NOT {dead}
   LIMIT 1
):]
