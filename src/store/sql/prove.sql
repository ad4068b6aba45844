-- Sends the listener $1 the message $2, over another connection than its own.
--
-- Guarantees:
-- * If the message arrives, then so do those of other processes. Through a pooler
--   that hands sessions around it does not.
SELECT pg_catalog.count(pg_catalog.pg_notify('score_distlock_' {||} pg_catalog.to_hex($1), $2)) AS sent
