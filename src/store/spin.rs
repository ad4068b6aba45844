//! Spinning for a moment before going to sleep: polling the socket for an answer.
//!
//! Falling asleep and being woken takes the operating system some 10 µs, or 50 where
//! an idle processor has to be started first, as virtual ones are. A local server's
//! answer to a statement that need not reach the disk takes less. So a caller spins
//! for as long as being woken would take: at worst the wait costs twice what it
//! must, and usually the caller has spent no more than it would have on sleeping.
//!
//! That is done for statements that only read. One that writes takes longer than that,
//! and a caller that keeps its processor busy meanwhile drives the server away from it:
//! measured, cycles became slower (`docs/maintainers/tried.rst`).
//!
//! Whether answers come in time depends on the network too, and on what else the machine
//! does. Each connection learns it: every answer that comes too late doubles the number of
//! calls that do without spinning.

use super::stream::Channel;
use std::thread;
use std::time::{Duration, Instant};

/// How long it pays to spin.
const LONGEST: Duration = Duration::from_micros(50);
/// Upper bound on the number of calls that do without: then the world may have changed.
const MOST_SKIPPED: u16 = 512;

/// What was learned about the answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin {
    /// How many calls are still to do without.
    skip: u16,
    /// How many do so after the next answer that comes too late.
    penalty: u16,
}

impl Spin {
    /// Spins until there is something to read, if that is likely to come. Tells whether it has.
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

    /// How often it is looked out during so many calls.
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
        // And finds out when that changes.
        assert!(looks(&mut spin, 10_000, |_| true) > 9_000);
    }

    #[test]
    fn a_late_answer_now_and_then_changes_little() {
        assert!(looks(&mut Spin::default(), 10_000, |call| call % 20 != 0) > 8_000);
    }
}
