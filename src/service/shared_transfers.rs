//! The transfers of the process, of every configuration: some may be of the same table.

use super::locked;
use super::wakeup::Wakeup;
use crate::engine::{Key, Transfers};
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
    wakeups: Vec<(Key, Weak<Wakeup>)>,
}

/// The transfers of one process, and the callers who wait for one of them to end.
#[derive(Default)]
pub struct SharedTransfers {
    state: Mutex<State>,
    changed: Condvar,
}

impl SharedTransfers {
    /// Works on the transfers, without a change that anybody waits for. `work` may lock the holds,
    /// but nobody may call this while they are locked.
    pub fn with<T>(&self, work: impl FnOnce(&mut Transfers) -> T) -> T {
        work(&mut locked(&self.state).transfers)
    }

    /// The same for a change of this key, for which transfers may wait.
    pub fn change<T>(&self, key: &Key, work: impl FnOnce(&mut Transfers) -> T) -> T {
        let mut state = locked(&self.state);
        let result = work(&mut state.transfers);
        // Nearly always there is nobody.
        let waiting = state.waiting > 0;
        let mut wakeups = Vec::new();
        state.wakeups.retain(|(of, wakeup)| {
            let wakeup = wakeup.upgrade();
            let waits = wakeup.is_some();
            wakeups.extend(wakeup.filter(|_| of == key));
            waits
        });
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
        for wakeup in wakeups {
            wakeup.wake();
        }
        result
    }

    /// Has the threads that wait look again.
    pub fn wake_threads(&self) {
        if locked(&self.state).waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Calls the wakeup after each change of this key.
    pub fn wake_by_changes(&self, key: Key, wakeup: &Arc<Wakeup>) {
        let entry = (key, Arc::downgrade(wakeup));
        locked(&self.state).wakeups.push(entry);
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
