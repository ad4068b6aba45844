//! The transfers of the process, of every configuration: a token is the same in all of them.

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
    /// Works on the transfers.
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

    /// Waits until `busy` is false. Returns whether it is, within the budget.
    pub fn wait_while(&self, busy: impl Fn(&Transfers) -> bool, budget: Budget) -> Result<bool> {
        loop {
            let mut state = locked(&self.state);
            // Checked under the mutex, so a change that comes now is not missed.
            if !busy(&state.transfers) {
                return Ok(true);
            }
            let Some(slice) = budget.slice() else {
                return Ok(false);
            };
            state.waiting += 1;
            let waited = self.changed.wait_timeout(state, slice);
            waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
            budget.check()?;
        }
    }
}
