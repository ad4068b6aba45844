-- The table of score.distlock: every statement may be run again at any time.
-- The first five columns are those of score.distlock 0.2.5, which goes on
-- working on the same table; it leaves the others NULL.
CREATE TABLE IF NOT EXISTS _score_distlock (
    id bigserial PRIMARY KEY,
    name varchar NOT NULL UNIQUE,
    acquired timestamp NOT NULL,
    updated timestamp NOT NULL,
    token varchar(256) NOT NULL
) WITH (fillfactor = 50);
ALTER TABLE _score_distlock
    ADD COLUMN IF NOT EXISTS touched timestamp,
    ADD COLUMN IF NOT EXISTS expires timestamptz,
    ADD COLUMN IF NOT EXISTS lease double precision,
    ADD COLUMN IF NOT EXISTS fence bigint,
    ADD COLUMN IF NOT EXISTS holder text,
    ADD COLUMN IF NOT EXISTS waiters bigint[];
CREATE SEQUENCE IF NOT EXISTS _score_distlock_fence_seq
    AS bigint OWNED BY _score_distlock.fence;
