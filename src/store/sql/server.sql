-- Tells which server this is. A standby that is promoted stays the same server.
--
-- Guarantees:
-- * `system_identifier` was chosen at initdb, and differs from that of every other server, except
--   those that were copied from its files. An administrator may have revoked the right to call the
--   function.
SELECT system_identifier::pg_catalog.text AS server FROM pg_catalog.pg_control_system()
