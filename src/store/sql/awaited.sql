-- Whether one of those who wait may be about to take its turn: for a second after the hold is over.
waiters IS NOT NULL AND expires {>} (pg_catalog.clock_timestamp() {-} interval '1 second')
