-- True; if the commit would not wait for the disk, makes it wait, this once.
--
-- A crash that forgets an acquisition or an extension would let two hold the lock, so that must not
-- depend on settings of the server, the database or the role. Only `off` is raised, for this
-- transaction: all other settings wait for the server's own disk, and what a replica has to confirm
-- is up to the administrator. Statements evaluate this after all other conditions on a row: a
-- refused statement never gets here, and one that changes the row has evaluated it before the
-- commit looks at the setting.
CASE
  WHEN pg_catalog.current_setting('synchronous_commit') {=} 'off'
  THEN pg_catalog.set_config('synchronous_commit', 'on', true) IS NOT NULL
  ELSE true
END
