-- Tells where the table is and whether anything is missing. Reads catalogues only.
SELECT coalesce(
         (SELECT nspname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
           WHERE pg_class.oid = to_regclass('_score_distlock')),
         current_schema()
       )::text AS schema,
       current_user::text AS role,
       (SELECT count(*) FROM pg_attribute
         WHERE attrelid = to_regclass('_score_distlock')
           AND attname IN ('touched', 'expires', 'lease', 'fence', 'holder', 'waiters')
           AND NOT attisdropped) = 6
       AND to_regclass('_score_distlock_fence_seq') IS NOT NULL
       AND EXISTS (SELECT FROM pg_trigger
                    WHERE tgrelid = to_regclass('_score_distlock')
                      AND tgname = 'score_distlock_one_vacuum_at_a_time') AS complete
