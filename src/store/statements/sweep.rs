//! Removes unused rows.

use super::super::answer::Parameter;
use super::super::budget::Budget;
use super::super::sql::Sql;
use super::execute::{Store, only};
use crate::engine::Lease;
use crate::error::{Error, Result};
use crate::zone;

/// How many rows one step of a vacuum checks: some hundred milliseconds.
const ROWS_PER_STEP: i64 = 10_000;

/// How many rows an occasional sweep checks, and for how many seconds a row must have been unused
/// to be removed.
const ROWS_PER_SWEEP: i64 = 200;
const UNUSED: f64 = 60.0;

impl Store {
    /// Removes all expired and free rows, in as many steps as it takes. Each step may take the time
    /// that `budget` has left.
    pub fn vacuum(&self, lease: Lease, budget: Budget) -> Result<()> {
        let mut after = Some(i64::MIN);
        while let Some(start) = after {
            let budget = budget.renewed(self.timeout());
            after = self.sweep(lease, (start, ROWS_PER_STEP), 0.0, budget)?;
        }
        Ok(())
    }

    /// Checks the next rows after an `id`, and removes those unused for the given number of
    /// seconds. Returns the last row's `id` if there may be more.
    fn sweep(
        &self,
        lease: Lease,
        (after, rows): (i64, i64),
        unused: f64,
        budget: Budget,
    ) -> Result<Option<i64>> {
        let parameters: [Parameter; 5] =
            [&lease.seconds(), &zone::offset(), &after, &rows, &unused];
        let answer = self.execute(Sql::Sweep, &parameters, budget)?;
        let row = only(&answer.rows)?;
        let more = row.get::<i64>("seen")? == rows;
        Ok(row.get::<Option<i64>>("last")?.filter(|_| more))
    }

    /// Removes some rows if it is time to: `after` is the `id` where the last sweep ended.
    ///
    /// Taking a lock does not depend on this, so a failure is only logged; but returns an error if
    /// the caller was interrupted meanwhile.
    pub(super) fn sweep_if_due(
        &self,
        after: Option<i64>,
        lease: Lease,
        budget: Budget,
    ) -> Result<()> {
        let Some(after) = after else {
            return Ok(());
        };
        match self.sweep(lease, (after, ROWS_PER_SWEEP), UNUSED, budget) {
            Ok(last) => self.pace.swept(last),
            Err(error @ (Error::Interrupted | Error::Forked)) => return Err(error),
            Err(error) => log::debug!("sweeping expired rows failed: {error}"),
        }
        Ok(())
    }
}
