-- Gives many holds a new lease starting now; returns by position which exist, with which fence, and
-- which of these were extended.
--
-- $1 names, $2 tokens, $3 leases in seconds, $4 the host's offset from UTC in
-- seconds.
--
-- Guarantees:
-- * Works like extend.sql for each hold, but waits for no row: a hold whose row another transaction
--   has locked is reported as present, but not extended. So no hold waits for another's row, and
--   two processes that renew many never wait for each other.
-- * No lease gets shorter: its owner may have entered the hold again with a longer one.
-- * A token without a hold gets no row.
WITH wanted AS MATERIALIZED (
    SELECT *
      FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3))
           WITH ORDINALITY AS wanted (name, token, seconds, position)
), clock AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS instant
), present AS MATERIALIZED (
    SELECT lock.id, wanted.seconds, wanted.position, lock.fence
      FROM wanted
      JOIN {table} AS lock ON lock.name {=} wanted.name AND lock.token {=} wanted.token
     WHERE CASE
             WHEN touched {=} updated THEN expires {>} pg_catalog.clock_timestamp()
             ELSE (updated {+} pg_catalog.make_interval(secs => greatest(lease, seconds)))
               {>=} ((pg_catalog.clock_timestamp() AT TIME ZONE 'UTC') {+} pg_catalog.make_interval(secs => {zone}))
           END
), held AS MATERIALIZED (
    SELECT lock.id, present.seconds, present.position
      FROM present
      JOIN wanted ON wanted.position {=} present.position
      JOIN {table} AS lock ON lock.id {=} present.id AND lock.token {=} wanted.token
     WHERE CASE
             WHEN touched {=} updated THEN expires {>} pg_catalog.clock_timestamp()
             ELSE (updated {+} pg_catalog.make_interval(secs => greatest(lease, present.seconds)))
               {>=} ((pg_catalog.clock_timestamp() AT TIME ZONE 'UTC') {+} pg_catalog.make_interval(secs => {zone}))
           END
       AND {durable}
       FOR NO KEY UPDATE OF lock SKIP LOCKED
), renewed AS (
    UPDATE {table} AS lock
       SET updated = {local instant},
           touched = {local instant},
           expires = greatest(lock.expires, instant {+} pg_catalog.make_interval(secs => seconds)),
           lease = greatest(lock.lease, seconds)
      FROM held, clock
     WHERE lock.id {=} held.id
 RETURNING held.position
)
SELECT position, fence, position {=} ANY (SELECT position FROM renewed) AS extended FROM present
