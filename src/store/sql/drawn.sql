-- A number above all that any session has drawn before.
--
-- If the sequence has a cache, this session may hold numbers older than those of others: it draws
-- until one is above all that were handed out before. Without a cache the first one is.
(
  SELECT coalesce(
           CASE WHEN drawn {<=} last THEN (
             SELECT later
               FROM (
                 SELECT pg_catalog.nextval({fences}) AS later
                   FROM pg_catalog.generate_series(drawn, last)
                 OFFSET 0
               ) AS draws
              WHERE later {>} last
              LIMIT 1
           ) END,
           drawn
         )
    FROM (
      SELECT pg_catalog.pg_sequence_last_value({fences}) AS last,
             pg_catalog.nextval({fences}) AS drawn
      OFFSET 0
    ) AS sequence
)
