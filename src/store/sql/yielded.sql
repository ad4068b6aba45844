CASE
  WHEN waiters IS NULL THEN '0001-01-01'
  ELSE (pg_catalog.now() AT TIME ZONE 'UTC') {+} pg_catalog.make_interval(secs => {zone} {+} 0.5 {-} coalesce(lease, {lease}))
END
