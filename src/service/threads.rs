//! Counts the running threads of a configuration, so that `close()` can wait for them.

use super::locked;
use crate::error::Result;
use crate::store::Budget;
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;

/// The threads of one process.
#[derive(Default)]
pub struct Threads {
    living: Mutex<usize>,
    ended: Condvar,
}

/// A running thread, until this is dropped.
pub struct Living(Arc<Threads>);

impl Drop for Living {
    fn drop(&mut self) {
        *locked(&self.0.living) -= 1;
        self.0.ended.notify_all();
    }
}

impl Threads {
    /// Counts one more thread.
    #[must_use]
    pub fn begin(self: &Arc<Threads>) -> Living {
        *locked(&self.living) += 1;
        Living(self.clone())
    }

    /// Waits until only the `staying` threads are left, or the time is over.
    pub fn await_end(&self, staying: impl Fn() -> usize, budget: Budget) -> Result<()> {
        while let Some(slice) = budget.slice() {
            let staying = staying();
            let living = locked(&self.living);
            if *living <= staying {
                break;
            }
            drop(self.ended.wait_timeout(living, slice));
            budget.check()?;
        }
        Ok(())
    }
}
