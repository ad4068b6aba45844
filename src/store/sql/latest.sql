-- The location of the row of lock $1, in the version that this statement sees.
--
-- While a transaction keeps an old snapshot open, no row version can be removed, so a name in
-- steady use has thousands of index entries. They are in the order of their locations in the table,
-- and the live one is nearly always the last. `name {=} $1` would visit all of them; this starts at
-- the end and stops at the first visible one. It uses a range because the planner ignores ORDER BY
-- on a column that is constant.
--
-- A statement that uses this finds no row if another transaction changes it at the same moment, so
-- it needs another statement to fall back on.
(
  SELECT ctid FROM {table} WHERE name {>=} $1 AND name {<=} $1 ORDER BY name DESC LIMIT 1
)
