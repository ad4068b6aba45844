-- Shows by a session-level lock that the process listening as $1 is alive.
--
-- Guarantees:
-- * The lock ends with the connection, so when a process is gone, everyone who would otherwise
--   leave it its turn can see that.
-- * No other session has this lock: every listener has its own number.
SELECT pg_catalog.pg_try_advisory_lock({listener ticket}) AS alone FROM (VALUES ($1 {<<} 24)) AS own (ticket)
