-- Tells whether somebody holds the lock $1, or others wait for it, as one row or none.
--
-- $1 name, $2 the host's offset from UTC in seconds, $3 lease in seconds for a
-- hold that score.distlock 0.2.5 wrote.
--
-- Guarantees:
-- * It reads one row by its name and writes nothing. Whoever was refused just now
--   asks this first: to be refused again costs no more than a look.
-- * What it says was true at one moment during the call, as a refusal always is.
SELECT FROM _score_distlock WHERE name = $1 AND ({live} OR {awaited})
