//! How long a call may take, and whether its caller still wants the result.

use crate::error::{Error, Result};
use crate::sync::{Instant, process_id, thread};
use std::time::Duration;

/// Asks the caller whether to go on; for Python, whether a signal came.
pub type Check<'a> = &'a dyn Fn() -> Result<()>;

/// The instant after `timeout`. If the clock cannot represent it, a century from now.
fn after(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout)
        .unwrap_or(now + Duration::from_secs(3_000_000_000))
}

/// The limits of one call.
#[derive(Clone, Copy)]
pub struct Budget<'a> {
    /// When it must be over.
    pub until: Instant,
    /// The calling process. It stays the same until the call ends.
    pub process: u32,
    /// Whether the call may use the place that the pool reserves for urgent work.
    pub urgent: bool,
    check: Check<'a>,
    tick: Duration,
}

impl<'a> Budget<'a> {
    /// How often a wait asks whether to go on: well below the 100 ms within which Ctrl-C must work.
    const TICK: Duration = Duration::from_millis(40);

    /// A call that begins now and may last `timeout`.
    #[must_use]
    pub fn new(timeout: Duration, check: Check<'a>) -> Budget<'a> {
        Budget {
            until: after(timeout),
            process: process_id(),
            urgent: false,
            check,
            tick: Budget::TICK,
        }
    }

    /// The same for a caller that nothing interrupts: it need not be asked often.
    #[must_use]
    pub fn undisturbed(self) -> Budget<'a> {
        Budget {
            tick: Duration::from_secs(1),
            ..self
        }
    }

    /// The same for work that must not wait until others return their sessions.
    #[must_use]
    pub fn urgent(self) -> Budget<'a> {
        Budget {
            urgent: true,
            ..self
        }
    }

    /// The same caller with this much time from now on.
    #[must_use]
    pub fn renewed(self, timeout: Duration) -> Budget<'a> {
        Budget {
            until: after(timeout),
            ..self
        }
    }

    /// The same caller with less time.
    #[must_use]
    pub fn at_most(self, timeout: Duration) -> Budget<'a> {
        Budget {
            until: self.until.min(after(timeout)),
            ..self
        }
    }

    /// How much time is left.
    #[must_use]
    pub fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whether the time is up.
    #[must_use]
    pub fn over(self) -> bool {
        Instant::now() >= self.until
    }

    /// How long to wait before asking again; `None` if the time is up.
    #[must_use]
    pub fn slice(self) -> Option<Duration> {
        let left = self.left();
        (!left.is_zero()).then(|| left.min(self.tick))
    }

    /// An error if the caller no longer wants the result, or is a child that a signal handler
    /// forked: the connection in use belongs to its parent.
    pub fn check(self) -> Result<()> {
        let wanted = (self.check)();
        if process_id() == self.process {
            wanted
        } else {
            Err(Error::Forked)
        }
    }

    /// Waits for `pause`, or until the time is up.
    pub fn pause(self, pause: Duration) -> Result<()> {
        let pause = self.at_most(pause);
        while let Some(slice) = pause.slice() {
            thread::sleep(slice);
            pause.check()?;
        }
        Ok(())
    }
}
