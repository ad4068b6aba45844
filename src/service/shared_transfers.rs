//! The transfers of the process, of every configuration: some may be of the same table.

use super::locked;
use super::wakeup::Wakeup;
use crate::engine::Transfers;
use crate::error::Result;
use crate::store::Budget;
use crate::sync::{Condvar, Mutex};
use std::sync::{Arc, PoisonError, Weak};

#[derive(Default)]
struct State {
    transfers: Transfers,
    /// How many threads wait for a change.
    waiting: usize,
    /// The coroutines that do, for as long as these are referenced.
    wakeups: Vec<Weak<Wakeup>>,
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
        // Nearly always there is nobody.
        let waiting = state.waiting > 0;
        state.wakeups.retain(|wakeup| wakeup.strong_count() > 0);
        let wakeups = state.wakeups.clone();
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
        for wakeup in wakeups.iter().filter_map(Weak::upgrade) {
            wakeup.wake();
        }
        result
    }

    /// As [`SharedTransfers::with`], for an attempt that nobody waits for.
    pub fn attempt<T>(&self, attempt: impl FnOnce(&mut Transfers) -> T) -> T {
        attempt(&mut locked(&self.state).transfers)
    }

    /// Calls the wakeup after each change.
    pub fn wake_by_changes(&self, wakeup: &Arc<Wakeup>) {
        locked(&self.state).wakeups.push(Arc::downgrade(wakeup));
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
