-- Advances the sequences past what the table has, after something has set them back: a
-- restore, or a switch-over to a logical replica, which copies rows and not sequences.
-- Tells whether the sequence of `id` is past it; if not, this wants to be repeated.
--
-- $1 how many numbers to draw at most.
--
-- Guarantees:
-- * No sequence is ever set back, whatever others draw at the same time: it draws
--   numbers until one is beyond, and sets nothing. `setval` could undo what another
--   session drew a moment ago, and needs a right on the sequence that drawing does not.
-- * What is drawn is looked at, rather than how far the sequence has got: if it has a
--   cache, this session has numbers in store, and those have to be used up too.
-- * It needs no right that an acquisition does not need.
WITH highest AS MATERIALIZED (
    SELECT coalesce(pg_catalog.max(id), 0) AS id, coalesce(pg_catalog.max(fence), 0) AS fence
      FROM {table}
)
SELECT (
         SELECT true
           FROM (
             SELECT pg_catalog.nextval(pg_catalog.pg_get_serial_sequence({name}, 'id')::pg_catalog.regclass) AS drawn
               FROM pg_catalog.generate_series(1, $1)
             OFFSET 0
           ) AS ids
          WHERE drawn {>} highest.id
          LIMIT 1
       ) IS NOT NULL AS done,
       (
         SELECT true
           FROM (
             SELECT pg_catalog.nextval({fences}) AS drawn FROM pg_catalog.generate_series(1, $1)
             OFFSET 0
           ) AS fences
          WHERE drawn {>} highest.fence
          LIMIT 1
       ) IS NOT NULL AS fence_done
  FROM highest
