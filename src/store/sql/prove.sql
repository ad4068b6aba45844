-- Sends the listener $1 the message $2, over a connection other than its own.
--
-- Guarantees:
-- * If the message arrives, so do those of other processes. Through a pooler that shares sessions
--   it does not.
SELECT pg_catalog.count(pg_catalog.pg_notify('score_distlock_' {||} pg_catalog.to_hex($1), $2)) AS sent
