-- True; and where the commit would not be waited for on disk, it is, this once.
--
-- A crash that forgets a taking or an extension would let two hold the lock, so that is
-- not left to what the server, the database or the role says. Only `off` is raised, for
-- this transaction: all other settings wait for the server's own disk, and what a replica
-- has to confirm is the administrator's to say. A statement has this behind everything
-- else that has to be true of a row, so a refused one does not evaluate it; one that
-- changes the row has evaluated it, before the commit looks at the setting.
CASE
  WHEN pg_catalog.current_setting('synchronous_commit') {=} 'off'
  THEN pg_catalog.set_config('synchronous_commit', 'on', true) IS NOT NULL
  ELSE true
END
