//! How long a hold lasts: the lease that the server grants, and the deadline that the client relies
//! on.

use super::Moment;
use std::time::Duration;

/// A lease: the holder's `maxtime`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lease(f64);

impl Lease {
    /// About a century. PostgreSQL's timestamps end in the year 294276; nobody waits that long for
    /// a lock.
    pub const MAX_SECONDS: f64 = 100.0 * 366.0 * 86400.0;

    #[cfg(test)]
    pub(super) const SECOND: Lease = Lease(1.0);

    /// `None` unless the number is between 0 and [`Lease::MAX_SECONDS`].
    #[must_use]
    pub fn from_seconds(seconds: f64) -> Option<Lease> {
        (0.0..=Lease::MAX_SECONDS)
            .contains(&seconds)
            .then_some(Lease(seconds))
    }

    /// No time at all.
    pub const ZERO: Lease = Lease(0.0);

    /// The longer of two.
    #[must_use]
    pub fn max(self, other: Lease) -> Lease {
        Lease(self.0.max(other.0))
    }

    /// The length in seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.0
    }
}

/// The instant until which a hold is certain, on this machine's clock, which also runs while the
/// machine is suspended (see [`Moment`]).
///
/// It counts from before the request was sent. The server began the lease later, so the deadline
/// passes before the lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Moment);

impl Deadline {
    /// The deadline of a lease of which `seconds` were left at some time after `sent`.
    #[must_use]
    pub fn new(sent: Moment, seconds: f64) -> Deadline {
        let clamped = seconds.clamp(0.0, Lease::MAX_SECONDS);
        // NaN counts as zero.
        Deadline(sent + Duration::try_from_secs_f64(clamped).unwrap_or_default())
    }

    /// The time left, in seconds; never negative.
    #[must_use]
    pub fn remaining(self, now: Moment) -> f64 {
        self.0.since(now).as_secs_f64()
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn passed(self, now: Moment) -> bool {
        self.0 <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_a_finite_time() {
        for bad in [-1.0, -f64::EPSILON, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(Lease::from_seconds(bad), None);
        }
        assert!(Lease::from_seconds(0.0).is_some());
        assert!(Lease::from_seconds(Lease::MAX_SECONDS).is_some());
    }

    #[test]
    fn a_lease_may_last_a_lifetime_and_is_what_was_asked_for() {
        let years = 365.0 * 86400.0;
        let lifetime = Lease::from_seconds(99.0 * years).map(Lease::seconds);
        assert_eq!(lifetime, Some(99.0 * years));
        assert_eq!(Lease::from_seconds(101.0 * years), None);
    }

    #[test]
    fn a_deadline_counts_from_the_request() {
        let sent = Moment::now();
        let deadline = Deadline::new(sent, 2.0);
        assert!((deadline.remaining(sent) - 2.0).abs() < 1e-9);
        assert!(!deadline.passed(sent));
        assert!(deadline.passed(sent + Duration::from_secs(2)));
        assert!(deadline.remaining(sent + Duration::from_secs(3)).abs() < f64::EPSILON);
        assert!(Deadline::new(sent, -5.0).passed(sent));
    }

    proptest::proptest! {
        #[test]
        fn whatever_number_is_a_lease_or_none(seconds in proptest::num::f64::ANY) {
            let right = (0.0..=Lease::MAX_SECONDS).contains(&seconds);
            let lease = Lease::from_seconds(seconds);
            proptest::prop_assert_eq!(lease.map(Lease::seconds), right.then_some(seconds));
            let sent = Moment::now();
            let remaining = Deadline::new(sent, seconds).remaining(sent);
            proptest::prop_assert!((0.0..=Lease::MAX_SECONDS).contains(&remaining));
        }
    }
}
