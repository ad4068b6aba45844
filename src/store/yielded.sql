CASE
  WHEN waiters IS NULL THEN '0001-01-01'
  ELSE (now() AT TIME ZONE 'UTC') + make_interval(secs => {zone} + 0.5 - coalesce(lease, {lease}))
END
