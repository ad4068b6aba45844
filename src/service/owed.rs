//! Releases that are owed: tried again in the background, and by whoever wants the lock.

use super::locked;
use super::registry::registry;
use crate::engine::{Attempt, Late, Lease, Moment, Name, Token, Unresolved, Unwanted};
use crate::error::{Error, Result};
use crate::store::{Budget, Released, Store};
use std::sync::{Condvar, Mutex, PoisonError};
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
        self.attended(|unresolved| unresolved.owe(name, token, attempt, lease, Moment::now()))
    }

    /// A statement that was sent may be executed late. `true` as above.
    pub fn may_come_late(&self, name: &Name, late: Late, lease: Lease) -> bool {
        self.attended(|unresolved| unresolved.may_come_late(name, late, lease, Moment::now()))
    }

    fn attended(&self, work: impl FnOnce(&mut Unresolved)) -> bool {
        let mut state = locked(&self.state);
        work(&mut state.unresolved);
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

    /// Ends the holds of a name that must not be, also what is under way by now. `true` if the
    /// lock may be free by that.
    pub fn settle(&self, store: &Store, name: &Name, budget: Budget) -> Result<bool> {
        let mut any = false;
        loop {
            let (unwanted, in_flight) = self.with(|unresolved| unresolved.of(name));
            any |= self.undo(store, name, &unwanted, budget)?;
            if !in_flight {
                return Ok(any);
            }
            any = true;
            let Some(slice) = budget.slice() else {
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
            budget.check()?;
        }
    }

    /// Ends the hold of a name if it must not be: there is one at most, so one look tells which
    /// of many it is. Tells whether there was one.
    fn undo(
        &self,
        store: &Store,
        name: &Name,
        unwanted: &[Unwanted],
        budget: Budget,
    ) -> Result<bool> {
        if unwanted.is_empty() {
            return Ok(false);
        }
        let sent = Moment::now();
        let ended = match end_unwanted(store, name, unwanted, budget) {
            Ok(ended) => ended,
            Err(error) => {
                self.with(|unresolved| unresolved.failed(name, Moment::now()));
                return Err(error);
            }
        };
        for one in unwanted {
            let found = ended == Some(&one.token);
            if self.with(|unresolved| unresolved.executed(name, &one.token, found, sent)) {
                registry(budget.process).report(|holds| holds.settled(&one.token));
            }
        }
        Ok(ended.is_some())
    }

    /// Undoes things for as long as there is something to undo, or to look for. The work of a
    /// thread of its own. `in_use` tells whether somebody of this process waits with a ticket.
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
            drop(state);
            for name in due.names {
                let (unwanted, _) = self.with(|unresolved| unresolved.of(&name));
                let budget = Budget::new(LIMIT, &|| Ok(()));
                let undone = self.undo(store, &name, &unwanted, budget);
                pause_after(&name, undone.err());
            }
            for (name, ticket, lease) in due.tickets {
                let left = self.leave(store, &name, ticket, lease, &in_use);
                pause_after(&name, left.err());
            }
        }
    }

    /// Takes a ticket out of the queue that a late statement may have put there.
    fn leave(
        &self,
        store: &Store,
        name: &Name,
        ticket: i64,
        lease: Lease,
        in_use: impl Fn(i64) -> bool,
    ) -> Result<()> {
        let sent = Moment::now();
        let left = if in_use(ticket) {
            Ok(())
        } else {
            let budget = Budget::new(LIMIT, &|| Ok(()));
            store.leave(name, ticket, lease, budget)
        };
        self.with(|unresolved| match &left {
            Ok(()) => unresolved.left(name, ticket, sent),
            Err(_) => unresolved.failed(name, Moment::now()),
        });
        left
    }
}

/// Ends the hold of a name if it is one of these; tells its token.
fn end_unwanted<'a>(
    store: &Store,
    name: &Name,
    unwanted: &'a [Unwanted],
    budget: Budget,
) -> Result<Option<&'a Token>> {
    let leases = unwanted.iter().map(|one| one.lease);
    let lease = leases.fold(Lease::ZERO, Lease::max);
    let Some((token, fence)) = store.holder_of(name, lease, budget)? else {
        return Ok(None);
    };
    let meant = unwanted
        .iter()
        .find(|one| one.token == token && (one.except.is_none() || one.except != fence));
    let Some(meant) = meant else {
        return Ok(None);
    };
    let released = store.release(name, &meant.token, meant.lease, false, budget)?;
    Ok((released != Released::Lost).then_some(&meant.token))
}

/// What could not be undone is tried again.
fn pause_after(name: &Name, error: Option<Error>) {
    let Some(error) = error else { return };
    log::debug!("something of lock {name} is to be undone: {error}");
    if matches!(error, Error::Unavailable(_)) {
        // The others fare no better.
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Request, Settings, Url};
    use std::time::Instant;

    /// The thread may be busy with what is owed as it is told to end.
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
