CASE
  WHEN touched = updated THEN expires > clock_timestamp()
  ELSE updated + make_interval(secs => greatest(lease, {lease}))
    >= (clock_timestamp() AT TIME ZONE 'UTC') + make_interval(secs => {zone})
END
