//! When to warn an owner that its hold is about to expire.

use super::{Deadline, Lease, Moment};
use std::time::Duration;

/// An owner wants to be told, once in each term of the lease, when only this much is left.
#[derive(Debug)]
pub struct Warning {
    before: f64,
    told: Option<Deadline>,
}

impl Warning {
    /// The time between two looks at an expired hold, which is about to be reported as lost.
    const LEAST: Duration = Duration::from_millis(10);

    /// A warning when only `before` seconds are left.
    #[must_use]
    pub fn new(before: f64) -> Warning {
        Warning { before, told: None }
    }

    /// After what time to look for the first time.
    #[must_use]
    pub fn first(&self, deadline: Deadline, now: Moment) -> Duration {
        Duration::from_secs_f64((deadline.remaining(now) - self.before).max(0.0))
    }

    /// Whether to tell the owner now, and after what time to look again.
    pub fn look(&mut self, deadline: Deadline, lease: Lease, now: Moment) -> (bool, Duration) {
        let left = deadline.remaining(now);
        let (tell, pause) = if left > self.before {
            (false, left - self.before)
        } else {
            let told = left <= 0.0 || self.told.replace(deadline) == Some(deadline);
            // The next term may begin at any time, and its warning is then due after this.
            (!told, left.min(lease.seconds() - self.before))
        };
        (
            tell,
            Duration::from_secs_f64(pause.max(0.0)).max(Warning::LEAST),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each term that gets so far is warned of once and in time, whenever the next one begins.
        #[test]
        fn each_term_is_warned_of_once(
            seconds in 0.1..100.0f64,
            part in 0.01..0.99f64,
            parts in prop::collection::vec(0.0..0.99f64, 0..8),
        ) {
            let (start, lease) = (Moment::now(), Lease::from_seconds(seconds).unwrap());
            let at = |after: f64| start + Duration::from_secs_f64(after);
            let before = seconds * part;
            let mut terms = vec![0.0];
            for part in parts {
                terms.push(terms.last().unwrap() + part * seconds);
            }
            let mut warning = Warning::new(before);
            let mut told = vec![Vec::new(); terms.len()];
            let mut now = warning.first(Deadline::new(start, seconds), start).as_secs_f64();
            let end = terms.last().unwrap() + seconds;
            while now < end {
                let term = terms.partition_point(|begin| *begin <= now) - 1;
                let deadline = Deadline::new(at(terms[term]), seconds);
                let (tell, pause) = warning.look(deadline, lease, at(now));
                if tell {
                    told[term].push(now);
                }
                now += pause.as_secs_f64();
            }
            let late = 2.0 * Warning::LEAST.as_secs_f64();
            for (term, begin) in terms.iter().enumerate() {
                let due = begin + seconds - before;
                let over = terms.get(term + 1).copied().unwrap_or(end);
                if due + late < over {
                    prop_assert_eq!(told[term].len(), 1);
                    prop_assert!(told[term][0] >= due - 1e-6 && told[term][0] <= due + late);
                } else if over < due - 1e-6 {
                    prop_assert!(told[term].is_empty());
                }
            }
        }
    }

    #[test]
    fn a_hold_that_was_acquired_late_is_warned_of_at_once() {
        let (now, before) = (Moment::now(), 0.9);
        let deadline = Deadline::new(now, 0.5);
        let mut warning = Warning::new(before);
        assert_eq!(warning.first(deadline, now), Duration::ZERO);
        assert!(warning.look(deadline, Lease::SECOND, now).0);
        assert!(!warning.look(deadline, Lease::SECOND, now).0);
    }
}
