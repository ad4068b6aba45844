//! The transfers of the process, of every configuration: some may be of the same table.

use super::locked;
use crate::engine::Transfers;
use crate::error::Result;
use crate::store::Budget;
use crate::sync::{Condvar, Mutex};
use std::sync::PoisonError;

#[derive(Default)]
struct State {
    transfers: Transfers,
    /// How many threads wait for a change.
    waiting: usize,
}

/// The transfers of one process, and the callers who wait for one of them to end.
#[derive(Default)]
pub struct SharedTransfers {
    state: Mutex<State>,
    changed: Condvar,
}

impl SharedTransfers {
    /// Works on the transfers. `work` may lock the holds, but nobody may call this while they are
    /// locked.
    pub fn with<T>(&self, work: impl FnOnce(&mut Transfers) -> T) -> T {
        let mut state = locked(&self.state);
        let result = work(&mut state.transfers);
        let waiting = state.waiting > 0;
        drop(state);
        // Nearly always there is nobody.
        if waiting {
            self.changed.notify_all();
        }
        result
    }

    /// Repeats `attempt`, after each change, until it returns something, within the budget.
    pub fn wait_for<T>(
        &self,
        mut attempt: impl FnMut(&mut Transfers) -> Option<T>,
        budget: Budget,
    ) -> Result<Option<T>> {
        loop {
            let mut state = locked(&self.state);
            // Under the mutex, so a change that comes now is not missed.
            let result = attempt(&mut state.transfers);
            if result.is_some() {
                return Ok(result);
            }
            let Some(slice) = budget.slice() else {
                return Ok(None);
            };
            state.waiting += 1;
            let waited = self.changed.wait_timeout(state, slice);
            waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
            budget.check()?;
        }
    }
}
