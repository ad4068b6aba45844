//! How long a call waits for a lock.

use crate::store::Budget;
use crate::sync::Instant;
use std::time::Duration;

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wait {
    /// Not at all.
    Not,
    /// Up to an instant.
    Until(Instant),
    /// For ever.
    Forever,
}

impl Wait {
    /// From a timeout; `None` is for ever.
    #[must_use]
    pub fn new(timeout: Option<Duration>) -> Wait {
        if timeout == Some(Duration::ZERO) {
            return Wait::Not;
        }
        timeout
            .and_then(|timeout| Instant::now().checked_add(timeout))
            .map_or(Wait::Forever, Wait::Until)
    }

    pub(super) fn over(self) -> bool {
        match self {
            Wait::Not => true,
            Wait::Until(until) => Instant::now() >= until,
            Wait::Forever => false,
        }
    }

    /// For the queries at the end of a wait.
    const GRACE: Duration = Duration::from_millis(250);

    /// A wait bounds the whole call, including its queries.
    pub(super) fn bounds(self, budget: Budget) -> Budget {
        match self {
            Wait::Until(until) => {
                let left = until.saturating_duration_since(Instant::now());
                budget.at_most(left + Wait::GRACE)
            }
            Wait::Not | Wait::Forever => budget,
        }
    }

    /// When to look again: at `due`, but not after the end.
    pub(super) fn limit(self, due: Option<Instant>) -> Instant {
        // Look again in an hour if nothing is expected to happen.
        let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        match self {
            Wait::Not => Instant::now(),
            Wait::Until(until) => until.min(due),
            Wait::Forever => due,
        }
    }
}
