pg_catalog.concat(
  pg_catalog.pg_notify('score_distlock_' {||} pg_catalog.to_hex(waiters[1] {>>} 24), 'turn ' {||} waiters[1]),
  (
    SELECT pg_catalog.pg_notify('score_distlock_' {||} pg_catalog.to_hex(ticket {>>} 24), 'next ' {||} ticket)
      FROM (SELECT pg_catalog.unnest(waiters) AS ticket) AS queue
     WHERE CASE WHEN (ticket {>>} 24) {=} (waiters[1] {>>} 24) THEN false ELSE NOT {dead} END
     LIMIT 1
  )
)
