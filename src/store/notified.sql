(
  SELECT count(pg_notify('score_distlock_' || to_hex(ticket >> 24), word || ticket))
    FROM (
      SELECT 'turn ' AS word, waiters[1] AS ticket
       UNION ALL
      (
        SELECT 'next ', ticket
          FROM (
            SELECT waiters[place] AS ticket
              FROM (SELECT generate_series(2, cardinality(waiters)) AS place) AS places
          ) AS queue
         WHERE CASE WHEN ticket >> 24 = waiters[1] >> 24 THEN false ELSE NOT {dead} END
         LIMIT 1
      )
    ) AS called
)
