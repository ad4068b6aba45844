//! Decides when to sweep unused rows.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// How many calls pass between two sweeps.
const CALLS_PER_SWEEP: u32 = 64;

/// The same for an application that only acquires, and lets its holds expire: so rarely that the
/// cost of the sweeps does not matter.
const ACQUISITIONS_PER_SWEEP: u32 = 16 * CALLS_PER_SWEEP;

/// How long to rest after reaching the end of the table, in milliseconds. Rows are removed a minute
/// after their last use, so little is missed.
const REST: u64 = 10_000;

/// Counts calls.
pub struct Pace {
    calls: AtomicU32,
    acquisitions: AtomicU32,
    /// The last `id` that was swept.
    last: AtomicI64,
    /// When counting began, and how many milliseconds later to sweep again.
    made: Instant,
    resting_until: AtomicU64,
}

impl Pace {
    /// Nothing counted yet.
    pub fn new() -> Pace {
        Pace {
            calls: AtomicU32::new(0),
            acquisitions: AtomicU32::new(0),
            last: AtomicI64::new(i64::MIN),
            made: Instant::now(),
            resting_until: AtomicU64::new(0),
        }
    }

    /// Counts a call. Returns the `id` to sweep after, if it is time to.
    pub fn after_call(&self) -> Option<i64> {
        (self.calls.fetch_add(1, Relaxed) >= CALLS_PER_SWEEP).then(|| self.due())?
    }

    /// Counts an acquisition. Returns the `id` to sweep after, if no other call does.
    pub fn after_acquisition(&self) -> Option<i64> {
        (self.acquisitions.fetch_add(1, Relaxed) >= ACQUISITIONS_PER_SWEEP).then(|| self.due())?
    }

    fn due(&self) -> Option<i64> {
        self.calls.store(0, Relaxed);
        self.acquisitions.store(0, Relaxed);
        let rested = self.age() >= self.resting_until.load(Relaxed);
        rested.then(|| self.last.load(Relaxed))
    }

    /// Rows were swept up to the `id` `last`, or to the end of the table.
    pub fn swept(&self, last: Option<i64>) {
        self.last.store(last.unwrap_or(i64::MIN), Relaxed);
        if last.is_none() {
            self.resting_until.store(self.age() + REST, Relaxed);
        }
    }

    fn age(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due_after(mut call: impl FnMut() -> Option<i64>) -> (u32, i64) {
        (0..)
            .find_map(|calls| call().map(|after| (calls, after)))
            .unwrap()
    }

    #[test]
    fn a_sweep_goes_on_where_the_last_one_ended() {
        let pace = Pace::new();
        assert_eq!(due_after(|| pace.after_call()), (CALLS_PER_SWEEP, i64::MIN));
        pace.swept(Some(7));
        assert_eq!(due_after(|| pace.after_call()), (CALLS_PER_SWEEP, 7));
    }

    #[test]
    fn the_end_of_the_table_is_followed_by_a_rest() {
        let pace = Pace::new();
        pace.swept(None);
        assert!((0..10 * CALLS_PER_SWEEP).all(|_| pace.after_call().is_none()));
    }

    #[test]
    fn acquisitions_alone_are_enough() {
        let pace = Pace::new();
        let due = due_after(|| pace.after_acquisition());
        assert_eq!(due, (ACQUISITIONS_PER_SWEEP, i64::MIN));
    }
}
