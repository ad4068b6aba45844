//! The database's clock, as far as this process knows it.
//!
//! A statement may reach the server, or execute there, when its caller has stopped waiting: the
//! network or the server stood still. It must not take a lock then. So each statement says until
//! when, by the database's clock, it is valid.

use crate::engine::Moment;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long a reading stays good enough: by then the clocks differ by a few milliseconds.
const RECENT: Duration = Duration::from_secs(60);

/// The database's clock. Without a mutex, which a fork could leave locked in the child.
#[derive(Debug)]
pub struct Clock {
    /// The least by which the database's clock is ahead of [`Moment`], in seconds, as the bits of a
    /// float. Infinite until known.
    ahead: AtomicU64,
    /// When that was measured, in milliseconds.
    learned: AtomicU64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock {
            ahead: AtomicU64::new(f64::INFINITY.to_bits()),
            learned: AtomicU64::new(0),
        }
    }
}

fn millis(moment: Moment) -> u64 {
    u64::try_from(moment.since_start().as_millis()).unwrap_or(u64::MAX)
}

impl Clock {
    /// Learns from an answer received at `received` that the database's clock read `instant`, in
    /// seconds since 1970. By `received` it reads later, which makes the limits stricter.
    pub fn learn(&self, instant: f64, received: Moment) {
        let ahead = instant - received.since_start().as_secs_f64();
        self.ahead.store(ahead.to_bits(), Relaxed);
        self.learned.store(millis(received), Relaxed);
    }

    /// When `time` from `now` will have passed, on the database's clock; never (infinity) if
    /// nothing is known of that clock.
    pub fn after(&self, time: Duration, now: Moment) -> f64 {
        f64::from_bits(self.ahead.load(Relaxed)) + (now + time).since_start().as_secs_f64()
    }

    /// Whether the clock was read recently.
    pub fn is_recent(&self, now: Moment) -> bool {
        let learned = self.learned.load(Relaxed);
        learned != 0 && Duration::from_millis(millis(now).saturating_sub(learned)) < RECENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_limits_nothing() {
        let clock = Clock::default();
        assert!(clock.after(Duration::ZERO, Moment::now()).is_infinite());
        assert!(!clock.is_recent(Moment::now()));
    }

    #[test]
    fn it_goes_on_from_the_last_answer() {
        let (clock, now) = (Clock::default(), Moment::now());
        for server in [1_700_000_000.0, 1_600_000_000.0] {
            clock.learn(server, now);
            let later = now + Duration::from_secs(7);
            let limit = clock.after(Duration::from_secs(3), later);
            assert!((limit - server - 10.0).abs() < 1e-3);
        }
        assert!(clock.is_recent(now + RECENT / 2));
        assert!(!clock.is_recent(now + RECENT));
    }
}
