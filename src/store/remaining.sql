CASE
  WHEN touched = updated
  THEN extract(epoch FROM expires - clock_timestamp())::float8
  ELSE extract(epoch FROM updated - (clock_timestamp() AT TIME ZONE 'UTC'))::float8
    + greatest(lease, {lease}) - {zone}
END
