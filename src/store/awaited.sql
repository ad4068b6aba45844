waiters IS NOT NULL AND expires > clock_timestamp() - interval '1 second'
