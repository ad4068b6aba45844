CASE
  WHEN touched {=} updated
  THEN extract(epoch FROM expires {-} pg_catalog.clock_timestamp())::pg_catalog.float8
  ELSE extract(epoch FROM updated {-} (pg_catalog.clock_timestamp() AT TIME ZONE 'UTC'))::pg_catalog.float8
    {+} greatest(lease, {lease}) {-} {zone}
END
