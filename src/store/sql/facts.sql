-- Reports facts that affect how reliable the locks are: names and values, for `doctor`.
--
-- Guarantees:
-- * It reads only catalogues, settings and statistics, and no row of the table.
-- * What the server does not reveal to this role is NULL.
SELECT fact, value
  FROM (VALUES
    ('server_version', pg_catalog.current_setting('server_version')),
    ('fsync', pg_catalog.current_setting('fsync')),
    ('full_page_writes', pg_catalog.current_setting('full_page_writes')),
    ('synchronous_commit', pg_catalog.current_setting('synchronous_commit')),
    ('transaction_read_only', pg_catalog.current_setting('transaction_read_only')),
    ('log_statement', pg_catalog.current_setting('log_statement')),
    ('log_min_duration_statement', pg_catalog.current_setting('log_min_duration_statement')),
    ('log_parameter_max_length', pg_catalog.current_setting('log_parameter_max_length', true)),
    ('max_connections', pg_catalog.current_setting('max_connections')),
    ('connections', (
      SELECT pg_catalog.count(*)::pg_catalog.text FROM pg_catalog.pg_stat_activity
       WHERE backend_type {=} 'client backend'
    )),
    ('in_recovery', pg_catalog.pg_is_in_recovery()::pg_catalog.text),
    ('same_host', (pg_catalog.inet_client_addr() IS NULL)::pg_catalog.text),
    ('tls', (
      SELECT ssl::pg_catalog.text FROM pg_catalog.pg_stat_ssl
       WHERE pid {=} pg_catalog.pg_backend_pid()
    )),
    ('clock', {instant}::pg_catalog.text),
    ('fence_cache', (
      SELECT seqcache::pg_catalog.text FROM pg_catalog.pg_sequence
       WHERE seqrelid {=} {fences}::pg_catalog.oid
    )),
    ('table_rights', (
      pg_catalog.has_table_privilege({oid}, 'SELECT')
      AND pg_catalog.has_table_privilege({oid}, 'INSERT')
      AND pg_catalog.has_table_privilege({oid}, 'UPDATE')
      AND pg_catalog.has_table_privilege({oid}, 'DELETE')
    )::pg_catalog.text),
    ('sequence_rights', (
      pg_catalog.has_sequence_privilege({fences}::pg_catalog.oid, 'USAGE')
      AND pg_catalog.has_sequence_privilege({fences}::pg_catalog.oid, 'SELECT')
    )::pg_catalog.text),
    ('broken_indexes', (
      SELECT pg_catalog.string_agg(indexrelid::pg_catalog.regclass::pg_catalog.text, ', ')
        FROM pg_catalog.pg_index
       WHERE indrelid {=} {oid}
         AND NOT (indisvalid AND indisready)
    )),
    ('unique_name', (
      SELECT pg_catalog.count(*)::pg_catalog.text
        FROM pg_catalog.pg_index
        JOIN pg_catalog.pg_attribute ON attrelid {=} indrelid AND attnum {=} indkey[0]
       WHERE indrelid {=} {oid}
         AND indisunique
         AND indisvalid
         AND indnatts {=} 1
         AND attname {=} 'name'
    )),
    ('oldest_snapshot', (
      SELECT pg_catalog.date_part(
               'epoch', pg_catalog.clock_timestamp() {-} pg_catalog.min(xact_start)
             )::pg_catalog.text
        FROM pg_catalog.pg_stat_activity
       WHERE backend_xmin IS NOT NULL
         AND pid {<>} pg_catalog.pg_backend_pid()
    ))
  ) AS facts (fact, value)
