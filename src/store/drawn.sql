-- A number for the fence of a name that has no row. There is none to rise above, but the
-- name may have had one before.
--
-- If the sequence has a cache, this session may hold numbers that are older than those of
-- others: it goes on drawing until one is beyond all that were handed out before. Without
-- a cache the first is.
(
  SELECT coalesce(
           CASE WHEN drawn <= last THEN (
             SELECT later
               FROM (
                 SELECT nextval('_score_distlock_fence_seq') AS later
                   FROM generate_series(drawn, last)
                 OFFSET 0
               ) AS draws
              WHERE later > last
              LIMIT 1
           ) END,
           drawn
         )
    FROM (
      SELECT pg_sequence_last_value('_score_distlock_fence_seq') AS last,
             nextval('_score_distlock_fence_seq') AS drawn
      OFFSET 0
    ) AS sequence
)
