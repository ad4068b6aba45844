CASE
  WHEN touched {=} updated THEN expires {>} pg_catalog.clock_timestamp()
  ELSE (updated {+} pg_catalog.make_interval(secs => greatest(lease, {lease})))
    {>=} ((pg_catalog.clock_timestamp() AT TIME ZONE 'UTC') {+} pg_catalog.make_interval(secs => {zone}))
END
