-- What taking a lock writes, at the instant given by the argument.
--
-- The fence rises above the row's, whatever the sequence says: the sequence may have been set back,
-- by a restore or a switch-over to a logical replica, which copies no sequences, or have a cache,
-- so that every session draws from its own numbers. `beyond`, which the statements return, tells
-- whether the fence is above all that the sequence has handed out. Then the sequence has to catch
-- up: if the row is deleted, its number is lost.
token = $2,
acquired = {local {argument}},
updated = {local {argument}},
touched = {local {argument}},
expires = {argument} {+} pg_catalog.make_interval(secs => {lease}),
lease = {lease},
fence = greatest(pg_catalog.nextval({fences}), coalesce(fence, 0) {+} 1),
holder = $5
