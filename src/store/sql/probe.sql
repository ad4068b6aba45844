-- Tells whether the lock $1 is held or others wait for it. No row: the lock does not exist yet.
--
-- $1 name, $2 the host's offset from UTC in seconds, $3 lease in seconds for a
-- hold that score.distlock 0.2.5 wrote.
--
-- Guarantees:
-- * It reads one row by its name and writes nothing. A caller refused a moment ago sends this
--   first: being refused again costs no more than a look.
-- * The answer was true at one moment during the call, like any refusal.
SELECT {live} OR {awaited} AS held FROM {table} WHERE ctid {=} {latest}
