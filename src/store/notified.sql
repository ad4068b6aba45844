(
  SELECT count(pg_notify('score_distlock_' || to_hex(ticket >> 24), word || ticket))
    FROM (
      SELECT ticket, CASE row_number() OVER (ORDER BY position)
                       WHEN 1 THEN 'turn ' WHEN 2 THEN 'next '
                     END AS word
        FROM (
          SELECT DISTINCT ON (ticket >> 24) ticket, position
            FROM unnest(waiters) WITH ORDINALITY AS queue (ticket, position)
           WHERE NOT {dead}
           ORDER BY ticket >> 24, position
        ) AS alive
    ) AS called
   WHERE word IS NOT NULL
)
