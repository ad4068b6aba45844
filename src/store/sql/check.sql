-- Tells where the table is, whether anything is missing, and whether its owner can be trusted.
-- Reads only catalogues.
--
-- $1 an additional role whose table is trusted, or NULL.
--
-- Guarantees:
-- * The table is the one found on the search path. Nothing else depends on the search path.
-- * The owner of a table, or of one of its sequences, can read its contents, and give it triggers,
--   rules and defaults, whose code then runs as the role that writes. `strangers` are the owners
--   that could not do so anyway: neither this role, nor one that it is a member of, nor the owner
--   of the database, nor a superuser, nor $1. Being a superuser does not count as membership. The
--   same check applies to the functions of triggers, and to what their conditions call: a role with
--   the TRIGGER privilege may have added those.
-- * `additions` are the triggers, rules and policies of the table that are not ours.
WITH RECURSIVE found AS MATERIALIZED (
    SELECT class.oid, class.relnamespace, class.relkind, class.relowner
      FROM pg_catalog.pg_class AS class
     WHERE class.oid {=} pg_catalog.to_regclass('_score_distlock')
), fences AS MATERIALIZED (
    SELECT class.relowner
      FROM found
      JOIN pg_catalog.pg_class AS class ON class.relnamespace {=} found.relnamespace
     WHERE class.relname {=} '_score_distlock_fence_seq'
), memberships AS (
    SELECT role.oid FROM pg_catalog.pg_roles AS role WHERE role.rolname {=} current_user
     UNION
    SELECT member.roleid
      FROM memberships
      JOIN pg_catalog.pg_auth_members AS member ON member.member {=} memberships.oid
), trusted AS MATERIALIZED (
    SELECT oid FROM memberships
     UNION ALL
    SELECT role.oid
      FROM pg_catalog.pg_roles AS role
     WHERE role.rolsuper
        OR role.rolname {=} 'pg_database_owner'
        OR role.rolname {=} $1
     UNION ALL
    SELECT base.datdba
      FROM pg_catalog.pg_database AS base
     WHERE base.datname {=} pg_catalog.current_database()
), triggers AS MATERIALIZED (
    SELECT trigger.tgname, routine.proowner,
           trigger.tgname {=} 'score_distlock_one_vacuum_at_a_time'
           AND trigger.tgfoid {=} 'pg_catalog.suppress_redundant_updates_trigger()'
                                  ::pg_catalog.regprocedure::pg_catalog.oid
           -- BEFORE DELETE, for each statement: its condition sees no row.
           AND trigger.tgtype {=} 10 AS ours,
           trigger.oid, trigger.tgqual IS NOT NULL AS conditional
      FROM found
      JOIN pg_catalog.pg_trigger AS trigger ON trigger.tgrelid {=} found.oid
      JOIN pg_catalog.pg_proc AS routine ON routine.oid {=} trigger.tgfoid
     WHERE NOT trigger.tgisinternal
), owners AS (
    SELECT relowner AS owner FROM found
     UNION
    SELECT relowner FROM fences
     UNION
    SELECT proowner FROM triggers WHERE NOT ours
     UNION
    -- The functions that the conditions of triggers call, even of ours.
    SELECT routine.proowner
      FROM triggers
      JOIN pg_catalog.pg_depend AS dependency ON dependency.objid {=} triggers.oid
      JOIN pg_catalog.pg_proc AS routine ON routine.oid {=} dependency.refobjid
     WHERE dependency.classid {=} 'pg_catalog.pg_trigger'::pg_catalog.regclass::pg_catalog.oid
       AND dependency.refclassid {=} 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid
     UNION
    SELECT operator.oprowner
      FROM triggers
      JOIN pg_catalog.pg_depend AS dependency ON dependency.objid {=} triggers.oid
      JOIN pg_catalog.pg_operator AS operator ON operator.oid {=} dependency.refobjid
     WHERE dependency.classid {=} 'pg_catalog.pg_trigger'::pg_catalog.regclass::pg_catalog.oid
       AND dependency.refclassid {=} 'pg_catalog.pg_operator'::pg_catalog.regclass::pg_catalog.oid
     UNION
    -- A condition of system functions alone can send tokens elsewhere. We cannot tell who attached
    -- it, only who was able to.
    SELECT granted.grantee
      FROM found
      JOIN pg_catalog.pg_class AS class ON class.oid {=} found.oid
     CROSS JOIN LATERAL pg_catalog.aclexplode(class.relacl) AS granted
     WHERE granted.privilege_type {=} 'TRIGGER'
       AND EXISTS (SELECT FROM triggers WHERE conditional AND NOT ours)
     UNION
    SELECT class.relowner
      FROM found
      JOIN pg_catalog.pg_depend AS dependency ON dependency.refobjid {=} found.oid
      JOIN pg_catalog.pg_class AS class ON class.oid {=} dependency.objid
     WHERE class.relkind {=} 'S'
), additions AS (
    SELECT ('trigger ' {||} tgname) AS addition FROM triggers WHERE NOT ours
     UNION ALL
    SELECT 'rule ' {||} rulename
      FROM found JOIN pg_catalog.pg_rewrite ON ev_class {=} found.oid
     UNION ALL
    SELECT 'policy ' {||} polname
      FROM found JOIN pg_catalog.pg_policy ON polrelid {=} found.oid
)
SELECT coalesce(
         (SELECT space.nspname
            FROM found
            JOIN pg_catalog.pg_namespace AS space ON space.oid {=} found.relnamespace),
         pg_catalog.current_schema()
       )::pg_catalog.text AS schema,
       pg_catalog.current_database()::pg_catalog.text AS database,
       pg_catalog.pg_postmaster_start_time()::pg_catalog.text AS started,
       current_user::pg_catalog.text AS role,
       pg_catalog.current_setting('search_path') AS search_path,
       EXISTS (SELECT FROM found WHERE relkind {<>} 'r') AS other_kind,
       ARRAY(
         SELECT pg_catalog.pg_get_userbyid(owner)::pg_catalog.text FROM owners
          WHERE NOT EXISTS (SELECT FROM trusted WHERE trusted.oid {=} owner)
       ) AS strangers,
       ARRAY(SELECT addition FROM additions) AS additions,
       (SELECT pg_catalog.count(*)
          FROM found
          JOIN pg_catalog.pg_attribute AS attribute ON attribute.attrelid {=} found.oid
         WHERE attribute.attname
               {=} ANY (ARRAY['touched', 'expires', 'lease', 'fence', 'holder', 'waiters'])
           AND NOT attribute.attisdropped) {=} 6
       AND EXISTS (SELECT FROM fences)
       AND EXISTS (SELECT FROM triggers WHERE ours) AS complete
