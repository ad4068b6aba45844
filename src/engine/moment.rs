//! The clock for deadlines.

use std::ops::Add;
use std::time::Duration;

/// An instant on a clock that never steps and keeps running while the machine is suspended, like
/// the database's clock. On Linux `std::time::Instant` stops then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    /// macOS includes time asleep in its monotonic clock.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

    /// The current instant.
    #[must_use]
    #[cfg(not(all(test, feature = "shuttle")))]
    pub fn now() -> Moment {
        let time = rustix::time::clock_gettime(Moment::CLOCK);
        // Neither is negative: the clock starts at boot.
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
        Moment(Duration::new(seconds, nanoseconds))
    }

    /// The current instant of such a test.
    #[cfg(test)]
    #[cfg(feature = "shuttle")]
    #[must_use]
    pub fn now() -> Moment {
        Moment(crate::sync::simulated::now())
    }

    /// The time since the clock started.
    #[must_use]
    pub fn since_start(self) -> Duration {
        self.0
    }

    /// The time that has passed since `earlier`; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_some_time_after_the_clocks_beginning() {
        let (now, second) = (Moment::now(), Duration::from_secs(1));
        assert!(!now.since_start().is_zero());
        assert_eq!((now + second).since_start(), now.since_start() + second);
        assert_eq!((now + second).since(now), second);
        assert_eq!(now.since(now + second), Duration::ZERO);
    }
}
