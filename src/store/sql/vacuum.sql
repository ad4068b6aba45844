-- Deletes every free or expired row, whatever its name, in the caller's transaction.
--
-- $1 lease in seconds for rows that score.distlock 0.2.5 wrote, $2 the host's
-- offset from UTC in seconds.
--
-- Guarantees:
-- * The state is judged again under the row's lock, so a hold taken or extended meanwhile stays.
-- * A free row stays if a waiter in its queue may be about to take its turn.
-- * Rows that a guard or a taker has locked are skipped, not waited for.
DELETE FROM {table}
 WHERE id {=} ANY (ARRAY(
    SELECT id FROM {table}
     WHERE ({live}) IS NOT TRUE
       AND (waiters IS NULL OR expires {<} (pg_catalog.clock_timestamp() {-} interval '1 minute'))
       FOR UPDATE SKIP LOCKED
))
