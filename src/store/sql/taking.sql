-- What taking a lock writes, at the instant that the argument tells.
--
-- The fence rises above what the row has, whatever the sequence says: it may have been
-- set back, by a restore or a switch-over to a logical replica, which copies no sequences,
-- or have a cache, so that every session draws from numbers of its own. `beyond`, which the
-- statements return, tells whether it is above all that the sequence has handed out. Then
-- the sequence has to catch up: if the row is deleted, its number is known to nobody.
token = $2,
acquired = {local {argument}},
updated = {local {argument}},
touched = {local {argument}},
expires = {argument} {+} pg_catalog.make_interval(secs => {lease}),
lease = {lease},
fence = greatest(pg_catalog.nextval({fences}), coalesce(fence, 0) {+} 1),
holder = $5
