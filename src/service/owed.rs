//! Owed releases: retried in the background, and by the next acquire of the name.

use super::locked;
use super::registry::registry;
use crate::engine::{Attempt, Due, Key, Late, Lease, Moment, Name, Token, Unresolved, Unsettled};
use crate::error::{Error, Result};
use crate::store::{Budget, Released, Store};
use crate::sync::{Condvar, Mutex, thread};
use std::sync::PoisonError;
use std::time::Duration;

#[derive(Default)]
struct State {
    unresolved: Unresolved,
    /// A thread works on the attempts.
    attended: bool,
    /// The thread should end as soon as nothing is owed.
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

/// How long one release may take when nobody waits for it.
const LIMIT: Duration = Duration::from_secs(3);
/// Nothing is known of a hold released here: not whether it stands, whether an earlier call has
/// tried, or whether others wait.
const UNKNOWN: (bool, bool, bool) = (false, false, false);
/// How long the thread stays when nothing is owed.
const QUIET: Duration = Duration::from_secs(5);

impl Owed {
    /// Works on the attempts.
    pub fn with<T>(&self, work: impl FnOnce(&mut Unresolved) -> T) -> T {
        work(&mut locked(&self.state).unresolved)
    }

    /// The same, and wakes threads that wait for a change; there is nearly always none.
    pub fn change(&self, work: impl FnOnce(&mut Unresolved)) {
        let mut state = locked(&self.state);
        work(&mut state.unresolved);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
    }

    /// The outcome of an attempt is known, and nothing is owed.
    pub fn resolved(&self, name: &Name, token: &Token) {
        self.change(|unresolved| unresolved.forget(name, token));
    }

    /// The statement of an attempt is no longer in flight.
    pub fn landed(&self, name: &Name, token: &Token) {
        self.change(|unresolved| unresolved.landed(name, token));
    }

    /// The process begins to leave the database's queue for a name, or has left it.
    pub fn leaving(&self, name: &Name, begins: bool) {
        self.change(|unresolved| unresolved.leaving(name, begins));
    }

    /// Records an owed release. `true` if the caller must start a thread for [`Owed::attend`].
    pub fn owe(&self, name: &Name, token: &Token, attempt: Attempt, lease: Lease) -> bool {
        self.attended(|unresolved| unresolved.owe(name, token, attempt, lease, Moment::now()))
    }

    /// Records that a statement may execute late. `true` as above.
    pub fn may_come_late(&self, name: &Name, late: Late, lease: Lease) -> bool {
        self.attended(|unresolved| unresolved.late.add(name, late, lease, Moment::now()))
    }

    fn attended(&self, work: impl FnOnce(&mut Unresolved)) -> bool {
        let mut state = locked(&self.state);
        work(&mut state.unresolved);
        state.retired = false;
        let start = !std::mem::replace(&mut state.attended, true);
        drop(state);
        self.changed.notify_all();
        start
    }

    /// No thread could be started: the next acquire of the name does the work.
    pub fn unattended(&self) {
        locked(&self.state).attended = false;
    }

    /// Whether the thread stays, because new work has come since [`Owed::retire`].
    pub fn stays(&self) -> bool {
        let state = locked(&self.state);
        state.attended && !state.retired
    }

    /// Ends the thread as soon as nothing is owed, after one more look for late statements.
    pub fn retire(&self) {
        let mut state = locked(&self.state);
        state.retired = state.attended;
        state.unresolved.late.hurry(Moment::now());
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the holds of a name that must not exist, waiting for attempts that are now in flight.
    /// `true` if that may have freed the lock.
    pub fn settle(&self, store: &Store, name: &Name, budget: Budget) -> Result<bool> {
        let mut any = false;
        loop {
            let unsettled = self.with(|unresolved| unresolved.of(name));
            any |= self.undo(store, name, &unsettled, budget)?;
            if !unsettled.in_flight {
                return Ok(any);
            }
            any = true;
            let Some(slice) = budget.slice() else {
                return Ok(any);
            };
            let mut state = locked(&self.state);
            // Checked under the mutex, so an attempt that ends now is not missed.
            if state.unresolved.of(name).in_flight {
                state.waiting += 1;
                let waited = self.changed.wait_timeout(state, slice);
                waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
            } else {
                drop(state);
            }
            budget.check()?;
        }
    }

    /// Ends the holds of a name that must not be. Returns whether there was one.
    fn undo(
        &self,
        store: &Store,
        name: &Name,
        unsettled: &Unsettled,
        budget: Budget,
    ) -> Result<bool> {
        let mut any = false;
        let mut undo = || {
            for (token, lease) in &unsettled.owed {
                any |= self.release(store, name, token, *lease, budget)?;
            }
            if let Some(lease) = unsettled.late {
                any |= self.look(store, name, lease, budget)?;
            }
            Ok(())
        };
        let undone = undo();
        // In a child forked in the meantime this is the parent's business.
        if !matches!(undone, Ok(()) | Err(Error::Forked)) {
            self.with(|unresolved| unresolved.failed(name, Moment::now()));
        }
        undone.map(|()| any)
    }

    /// Executes an owed release.
    fn release(
        &self,
        store: &Store,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<bool> {
        let sent = Moment::now();
        let found = store.release(name, token, lease, UNKNOWN, budget)? != Released::Lost;
        self.with(|unresolved| unresolved.executed(name, token, found, sent));
        let key = Key::new(store.table(budget)?, name, token);
        let registry = registry(budget.process);
        registry.transfers.with(|transfers| transfers.settled(&key));
        registry.report(|holds| holds.settled(&key));
        Ok(found)
    }

    /// Ends a hold of a name that a late statement took: there is at most one, so one look tells
    /// which of many tokens has it.
    fn look(&self, store: &Store, name: &Name, lease: Lease, budget: Budget) -> Result<bool> {
        let sent = Moment::now();
        let mut found = false;
        if let Some((token, fence)) = store.holder_of(name, lease, budget)? {
            let late = self.with(|unresolved| unresolved.late.is_late(name, &token, fence));
            if let Some(lease) = late {
                let released = store.release(name, &token, lease, UNKNOWN, budget)?;
                found = released != Released::Lost;
            }
        }
        self.with(|unresolved| unresolved.looked(name, found, sent));
        Ok(found)
    }

    /// Undoes late effects as long as there are any, or any to look for. The main loop of its own
    /// thread. `in_use` tells whether a waiter of this process uses a ticket.
    pub fn attend(&self, store: &Store, in_use: impl Fn(i64) -> bool) {
        loop {
            let mut state = locked(&self.state);
            let due = state.unresolved.due(Moment::now());
            if due.is_empty() {
                if due.next.is_none() && state.retired {
                    state.attended = false;
                    state.retired = false;
                    return;
                }
                let pause = due.next.map_or(QUIET, |next| next.since(Moment::now()));
                let pause = pause.max(Duration::from_millis(1));
                state.waiting += 1;
                let (mut state, waited) = self
                    .changed
                    .wait_timeout(state, pause)
                    .unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
                if due.next.is_none() && waited.timed_out() {
                    let due = state.unresolved.due(Moment::now());
                    if due.is_empty() && due.next.is_none() {
                        state.attended = false;
                        state.retired = false;
                        return;
                    }
                }
                continue;
            }
            let retired = state.retired;
            drop(state);
            let undone = self.undo_all(store, due, &in_use);
            if retired {
                // `close` does not wait for statements that may still execute late.
                self.with(|unresolved| unresolved.late.clear());
            }
            if undone.is_err() {
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// An error if the database is unreachable: the rest would fare no better.
    fn undo_all(&self, store: &Store, due: Due, in_use: impl Fn(i64) -> bool) -> Result<()> {
        let check = |name: &Name, undone: Result<()>| match undone {
            Err(error @ Error::Unavailable(_)) => Err(error),
            Err(error) => {
                log::debug!("something of lock {name} is to be undone: {error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        };
        for name in due.names {
            let unsettled = self.with(|unresolved| unresolved.of(&name));
            let budget = Budget::new(LIMIT, &|| Ok(()));
            let undone = self.undo(store, &name, &unsettled, budget);
            check(&name, undone.map(drop))?;
        }
        for (name, ticket, lease) in due.tickets {
            check(&name, self.leave(store, &name, ticket, lease, &in_use))?;
        }
        Ok(())
    }

    /// Takes a ticket out of the queue, where a late statement may have put it.
    fn leave(
        &self,
        store: &Store,
        name: &Name,
        ticket: i64,
        lease: Lease,
        in_use: impl Fn(i64) -> bool,
    ) -> Result<()> {
        let sent = Moment::now();
        if in_use(ticket) {
            // The waiter's own statement may have removed the ticket before the late one put it
            // back, and not be answered yet, so the waiter does not know.
            self.with(|unresolved| unresolved.failed(name, sent));
            return Ok(());
        }
        let budget = Budget::new(LIMIT, &|| Ok(()));
        let left = store.leave(name, ticket, lease, budget);
        self.with(|unresolved| match &left {
            Ok(()) => unresolved.late.left(ticket, sent),
            Err(_) => unresolved.failed(name, Moment::now()),
        });
        left
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::store::{Request, Settings, Url};
    use std::time::Instant;

    /// The thread may be busy with an owed release when it is told to end.
    #[test]
    fn the_thread_ends_with_what_is_owed() {
        let url = Url::parse(&Request::new("postgresql://u@127.0.0.1:1/d")).unwrap();
        let store = Store::new(url, Settings::default(), None);
        let owed = Owed::default();
        locked(&owed.state).attended = true;
        owed.retire();
        let begun = Instant::now();
        owed.attend(&store, |_| false);
        assert!(begun.elapsed() < QUIET);
        assert!(!locked(&owed.state).attended);
    }
}
