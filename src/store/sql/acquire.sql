-- Takes the lock $1 if nobody holds it; otherwise tells who does.
--
-- $1 name, $2 the new token, $3 lease in seconds, $4 the host's offset from UTC in seconds, $5 the
-- holder's name for people, $6 the time limit: when the caller stops waiting.
--
-- Guarantees:
-- * At most one caller gets a row: an expired or free row is locked before it is changed, a missing
--   one is inserted under the unique name.
-- * The fence grows with every acquisition of the name. It is drawn under the lock on the name's
--   row, which lasts until the commit, so the numbers of one name are drawn in commit order. Only
--   for a new row is it drawn before there is anything to lock: `newest` tells whether nobody has
--   drawn another number between that and the insertion. If another transaction has, that may have
--   been for this name, whose row was made and deleted in between: number.sql then draws another,
--   under the lock.
-- * A new hold is on disk before the answer, even where `synchronous_commit` is `off`. The same
--   goes for every statement that a crash must not forget because then two could hold the lock.
-- * It never waits for a row: it skips one that a guard (FOR KEY SHARE) or another taker has
--   locked. Then it returns no taken row although none is live: "busy". Only if another transaction
--   has just inserted the row does it wait for that one's end, though not for long. Error 55P03
--   means that it waited in vain.
-- * A refused attempt writes nothing: no row version, no row lock, no sequence value, no WAL.
-- * Nothing is taken after $6, by the database's clock, in seconds since 1970: nobody waits for the
--   answer any more. The clock is read when the row is locked, or about to be inserted. `instant`
--   is what it reads.
-- * Repeated after a lost answer it finds its own token: `mine`.
-- * Where others wait in the row's queue, it leaves them a second to take their turn. Until then
--   the lock is `awaited`, which for a newcomer is as good as held.
WITH free AS MATERIALIZED (
    SELECT id, pg_catalog.clock_timestamp() AS instant
      FROM {table}
     WHERE name {=} $1
       AND CASE
             WHEN {live} THEN false
             WHEN {awaited} THEN false
             ELSE {durable}
           END
       FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE {table} AS lock
       SET {taking instant}
      FROM free
     WHERE lock.id {=} free.id
       AND {timely $6}
 RETURNING lock.fence, pg_catalog.pg_sequence_last_value({fences}) {<} lock.fence AS beyond
), missing AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS instant
     WHERE CASE
             WHEN EXISTS (SELECT FROM {table} WHERE name {=} $1) THEN false
             ELSE {durable} AND pg_catalog.set_config('lock_timeout', '200ms', true) IS NOT NULL
           END
), made AS (
    INSERT INTO {table}
           (name, token, acquired, updated, touched, expires, lease, fence, holder)
    SELECT $1, $2, {local instant}, {local instant}, {local instant},
           instant {+} pg_catalog.make_interval(secs => $3), $3,
           pg_catalog.nextval({fences}), $5
      FROM missing
     WHERE {timely $6}
        ON CONFLICT (name) DO NOTHING
 RETURNING fence, pg_catalog.pg_sequence_last_value({fences}) {=} fence AS newest
)
SELECT coalesce((SELECT fence FROM taken), (SELECT fence FROM made)) AS fence,
       coalesce((SELECT newest FROM made), true) AS newest,
       coalesce((SELECT beyond FROM taken), false) AS beyond,
       {instant} AS instant,
       seen.live AND seen.token {=} $2 AS mine,
       seen.live OR seen.awaited AS held,
       seen.fence AS seen_fence,
       seen.remaining
  FROM (VALUES (1)) AS one
  LEFT JOIN (
    SELECT token, fence, {live} AS live, {awaited} AS awaited, {remaining} AS remaining
      FROM {table}
     WHERE name {=} $1
  ) AS seen ON true
