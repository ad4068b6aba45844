-- Whether a waiter may be about to take its turn: for a second after the hold has ended.
waiters IS NOT NULL AND expires {>} (pg_catalog.clock_timestamp() {-} interval '1 second')
