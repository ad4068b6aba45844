-- Tells what kind of server this is, for `target_session_attrs`.
--
-- Guarantees:
-- * Decides like libpq: a session is read-only on a standby, or if that is its default.
SELECT pg_catalog.pg_is_in_recovery() AS standby,
       pg_catalog.pg_is_in_recovery()
         OR pg_catalog.current_setting('default_transaction_read_only') {=} 'on' AS read_only
