//! Spinning for a moment before going to sleep: polling the socket for an answer.
//!
//! Falling asleep and waking up takes the operating system some 10 µs, or 50 where it has to start
//! an idle processor first, as with virtual ones. A local server answers a statement that need not
//! reach the disk in less. So a caller spins for as long as waking up would take: at worst the wait
//! costs twice what it must, and usually the caller has spent no more than on sleeping.
//!
//! We do that only for statements that read. One that writes takes longer, and a caller that keeps
//! its processor busy meanwhile drives the server off it: measured, cycles became slower
//! (`docs/maintainers/tried.rst`).
//!
//! Whether answers come in time also depends on the network and the load of the machine. Each
//! connection learns it: every answer that comes too late doubles the number of calls that skip
//! spinning.

use super::stream::Channel;
use std::thread;
use std::time::{Duration, Instant};

/// How long spinning pays off.
const LONGEST: Duration = Duration::from_micros(50);
/// The most calls that skip spinning before one tries again: conditions may have changed.
const MOST_SKIPPED: u16 = 512;

/// What we know about the answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin {
    /// How many more calls skip spinning.
    skip: u16,
    /// How many skip it after the next late answer.
    penalty: u16,
}

impl Spin {
    /// Spins until there is something to read, if that is likely soon. Returns whether it came.
    pub fn spot(&mut self, channel: &Channel) -> bool {
        if !self.is_due() {
            return false;
        }
        let begun = Instant::now();
        let mut ready = false;
        while !ready && begun.elapsed() < LONGEST {
            // The server may need this processor.
            thread::yield_now();
            ready = channel.wait(Duration::ZERO);
        }
        self.learn(ready);
        ready
    }

    fn is_due(&mut self) -> bool {
        let due = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        due
    }

    fn learn(&mut self, in_time: bool) {
        if in_time {
            self.penalty /= 2;
        } else {
            self.penalty = (2 * self.penalty).clamp(2, MOST_SKIPPED);
            self.skip = self.penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these calls spin.
    fn looks(spin: &mut Spin, calls: u32, in_time: impl Fn(u32) -> bool) -> u32 {
        let mut looks = 0;
        for call in 0..calls {
            if spin.is_due() {
                looks += 1;
                spin.learn(in_time(call));
            }
        }
        looks
    }

    #[test]
    fn where_answers_are_late_one_hardly_looks_out_any_more() {
        let mut spin = Spin::default();
        assert!(looks(&mut spin, 10_000, |_| false) < 30);
        // It notices when that changes.
        assert!(looks(&mut spin, 10_000, |_| true) > 9_000);
    }

    #[test]
    fn a_late_answer_now_and_then_changes_little() {
        assert!(looks(&mut Spin::default(), 10_000, |call| call % 20 != 0) > 8_000);
    }
}
