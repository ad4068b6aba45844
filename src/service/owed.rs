//! Releases that are owed: tried again in the background, and by whoever wants the lock.

use super::locked;
use super::registry::registry;
use crate::engine::{Attempt, Lease, Moment, Name, Token, Unresolved};
use crate::error::{Error, Result};
use crate::store::{Patience, Released, Store};
use crate::sync::{Condvar, Mutex, thread};
use std::sync::PoisonError;
use std::time::Duration;

#[derive(Default)]
struct State {
    unresolved: Unresolved,
    /// A thread looks after them.
    attended: bool,
    /// The thread is to end as soon as nothing is owed.
    retired: bool,
    /// How many threads wait for a change.
    waiting: usize,
}

/// The attempts of one process whose outcome is unknown.
#[derive(Default)]
pub struct Owed {
    state: Mutex<State>,
    changed: Condvar,
}

/// How long one release may take that nobody waits for.
const LIMIT: Duration = Duration::from_secs(3);
/// How long the thread stays when nothing is owed.
const QUIET: Duration = Duration::from_secs(5);

impl Owed {
    /// Works on the attempts.
    pub fn with<T>(&self, work: impl FnOnce(&mut Unresolved) -> T) -> T {
        work(&mut locked(&self.state).unresolved)
    }

    /// The same, and wakes those who wait for a change: nearly always nobody.
    fn change(&self, work: impl FnOnce(&mut Unresolved)) {
        let mut state = locked(&self.state);
        work(&mut state.unresolved);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
    }

    /// The outcome of an attempt that was under way is known, and nothing is owed.
    pub fn resolved(&self, name: &Name, token: &Token) {
        self.change(|unresolved| unresolved.forget(name, token));
    }

    /// The statement of an attempt is not under way any more.
    pub fn landed(&self, name: &Name, token: &Token) {
        self.change(|unresolved| unresolved.landed(name, token));
    }

    /// The process begins to leave the queue of a name in the database, or has left it.
    pub fn leaving(&self, name: &Name, begins: bool) {
        self.change(|unresolved| unresolved.leaving(name, begins));
    }

    /// A release is owed. `true` if a thread has to be started that calls [`Owed::attend`].
    pub fn owe(&self, name: &Name, token: &Token, attempt: Attempt, lease: Lease) -> bool {
        let mut state = locked(&self.state);
        state
            .unresolved
            .owe(name, token, attempt, lease, Moment::now());
        let start = !std::mem::replace(&mut state.attended, true);
        drop(state);
        self.changed.notify_all();
        start
    }

    /// No thread could be started: the next acquire of the name does it.
    pub fn unattended(&self) {
        locked(&self.state).attended = false;
    }

    /// Ends the thread as soon as nothing is owed.
    pub fn retire(&self) {
        let mut state = locked(&self.state);
        state.retired = state.attended;
        drop(state);
        self.changed.notify_all();
    }

    /// Releases what is owed for a name, also what is under way by now. `true` if a hold
    /// was ended by that, so that the lock may be free.
    pub fn settle(&self, store: &Store, name: &Name, patience: Patience) -> Result<bool> {
        let mut any = false;
        loop {
            let (tokens, in_flight) = self.with(|unresolved| unresolved.of(name));
            for (token, lease) in tokens {
                any |= self.execute(store, name, &token, lease, patience)?;
            }
            if !in_flight {
                return Ok(any);
            }
            any = true;
            let Some(slice) = patience.slice() else {
                return Ok(any);
            };
            let mut state = locked(&self.state);
            // Looked at under the mutex: an end that comes now is not missed.
            if state.unresolved.of(name).1 {
                state.waiting += 1;
                let waited = self.changed.wait_timeout(state, slice);
                waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
            } else {
                drop(state);
            }
            patience.check()?;
        }
    }

    fn execute(
        &self,
        store: &Store,
        name: &Name,
        token: &Token,
        lease: Lease,
        patience: Patience,
    ) -> Result<bool> {
        // What it finds is true of a moment after this one, whenever its answer comes.
        let sent = Moment::now();
        match store.release(name, token, lease, false, patience) {
            Ok(released) => {
                let found = released != Released::Lost;
                self.with(|unresolved| unresolved.executed(name, token, found, sent));
                registry(patience.process).report(|holds| holds.settled(token));
                Ok(found)
            }
            // What is owed is the parent's, and its mutex may be locked here for ever.
            Err(Error::Forked) => Err(Error::Forked),
            Err(error) => {
                self.with(|unresolved| unresolved.failed(name, token, Moment::now()));
                Err(error)
            }
        }
    }

    /// Releases for as long as something is owed. The work of a thread of its own.
    pub fn attend(&self, store: &Store) {
        loop {
            let mut state = locked(&self.state);
            let (due, next) = state.unresolved.due(Moment::now());
            if due.is_empty() {
                let pause = next.map_or(QUIET, |next| next.since(Moment::now()));
                let pause = pause.max(Duration::from_millis(1));
                state.waiting += 1;
                let (mut state, waited) = self
                    .changed
                    .wait_timeout(state, pause)
                    .unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
                if next.is_none() && (waited.timed_out() || state.retired) {
                    let (due, next) = state.unresolved.due(Moment::now());
                    if due.is_empty() && next.is_none() {
                        state.attended = false;
                        state.retired = false;
                        return;
                    }
                }
                continue;
            }
            drop(state);
            for (name, token, lease) in due {
                let patience = Patience::new(LIMIT, &|| Ok(()));
                if let Err(error) = self.execute(store, &name, &token, lease, patience) {
                    log::debug!("the release of lock {name} is owed: {error}");
                    if matches!(error, Error::Unavailable(_)) {
                        // The others fare no better.
                        thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        }
    }
}
