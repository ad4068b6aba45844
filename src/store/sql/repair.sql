-- Advances the sequences past the numbers in the table, after something has set them back: a
-- restore, or a switch-over to a logical replica, which copies rows but not sequences. Tells
-- whether the sequence of `id` is past them; if not, repeat this.
--
-- $1 the most numbers to draw.
--
-- Guarantees:
-- * It never sets a sequence back, whatever others draw at the same time: it draws numbers until
--   one is high enough, and sets nothing. `setval` could undo what another session drew a moment
--   ago, and needs a privilege that drawing does not.
-- * It checks the drawn numbers, not the sequence's position: if the sequence has a cache, this
--   session has numbers in store, and has to use those up too.
-- * It needs no privilege that an acquisition does not need.
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
