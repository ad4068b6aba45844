token = $2,
acquired = {local},
updated = {local},
touched = {local},
expires = instant + make_interval(secs => {lease}),
lease = {lease},
fence = nextval('_score_distlock_fence_seq'),
holder = $5
