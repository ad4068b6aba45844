-- Shows by a lock of the session that the process that listens as $1 lives.
--
-- Guarantees:
-- * The lock goes with the connection, so a process that is gone is known to be
--   gone by whoever would otherwise leave it its turn.
-- * No other session has it: listeners have numbers of their own.
SELECT pg_catalog.pg_try_advisory_lock({listener ticket}) AS alone FROM (VALUES ($1 {<<} 24)) AS own (ticket)
