waiters IS NOT NULL AND expires {>} (pg_catalog.clock_timestamp() {-} interval '1 second')
