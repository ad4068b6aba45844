nullif(waiters[coalesce((
  SELECT place
    FROM (
      SELECT place, waiters[place] AS ticket
        FROM (SELECT generate_series(1, cardinality(waiters)) AS place) AS places
    ) AS queue
   WHERE NOT {dead}
   LIMIT 1
), cardinality(waiters) + 1):], '{}')
