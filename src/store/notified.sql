concat(
  pg_notify('score_distlock_' || to_hex(waiters[1] >> 24), 'turn ' || waiters[1]),
  (
    SELECT pg_notify('score_distlock_' || to_hex(ticket >> 24), 'next ' || ticket)
      FROM (SELECT unnest(waiters[2:]) AS ticket) AS queue
     WHERE CASE WHEN ticket >> 24 = waiters[1] >> 24 THEN false ELSE NOT {dead} END
     LIMIT 1
  )
)
