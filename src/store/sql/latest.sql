-- Where the row of the lock $1 is, in the version that this statement sees.
--
-- While somebody keeps an old snapshot open, no version of a row can be removed, so a name
-- in steady use has thousands in the index. They are in the order of their places in the
-- table, and the one that counts is nearly always the last. `name {=} $1` would look at all of
-- them; this begins at the end and stops at the first that is visible. A range, because the
-- planner does not care for the order of what is all equal.
--
-- A statement that uses this finds no row if another transaction changes it at the same
-- moment: it needs another statement to fall back on.
(
  SELECT ctid FROM {table} WHERE name {>=} $1 AND name {<=} $1 ORDER BY name DESC LIMIT 1
)
