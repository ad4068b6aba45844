//! Keeping holds alive: one thread for all of them, which renews each after a
//! third of its lease, many in one statement.

use crate::engine::{Deadline, Lease, Name, Token};
use crate::error::Error;
use crate::locks::Lock;
use crate::store::{Patience, Store};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Tells an owner that its hold is lost.
pub type OnLost = Box<dyn FnOnce() + Send>;

/// A block that wants its hold extended.
struct Entry {
    lock: Weak<Lock>,
    next: Instant,
    on_lost: Option<OnLost>,
}

/// A hold that is to be renewed now.
struct Due {
    number: u64,
    lock: Arc<Lock>,
    token: Token,
    lease: Lease,
    deadline: Deadline,
}

#[derive(Default)]
struct State {
    entries: HashMap<u64, Entry>,
    numbers: u64,
    attended: bool,
    /// Until when the thread sleeps.
    asleep: Option<Instant>,
}

/// The holds of one process that are extended automatically.
#[derive(Default)]
pub struct Extender {
    state: Mutex<State>,
    changed: Condvar,
}

/// How long the thread stays when there is nothing to extend.
const QUIET: Duration = Duration::from_secs(10);

fn third(lease: Lease) -> Duration {
    Duration::from_secs_f64(lease.seconds() / 3.0)
}

impl Extender {
    fn state(&self) -> MutexGuard<'_, State> {
        // No step on it can fail half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The innermost block of this token's hold wants it extended. `true` if a
    /// thread has to be started that calls [`Extender::attend`].
    pub fn add(&self, lock: &Arc<Lock>, token: &Token, on_lost: Option<OnLost>) -> bool {
        let mut state = self.state();
        state.numbers += 1;
        let number = state.numbers;
        let Some(lease) = lock.extends(token, number) else {
            return false;
        };
        let entry = Entry {
            lock: Arc::downgrade(lock),
            next: Instant::now() + third(lease),
            on_lost,
        };
        let sooner = state.asleep.is_some_and(|until| entry.next < until);
        state.entries.insert(number, entry);
        let start = !std::mem::replace(&mut state.attended, true);
        drop(state);
        if sooner {
            self.changed.notify_one();
        }
        start
    }

    /// A block has been left.
    pub fn remove(&self, number: u64) {
        let entry = self.state().entries.remove(&number);
        // Not under the mutex.
        drop(entry);
    }

    /// No thread could be started.
    pub fn unattended(&self) {
        self.state().attended = false;
    }

    /// Extends for as long as there is something to extend. The work of a
    /// thread of its own.
    pub fn attend(&self, store: &Store) {
        loop {
            let mut state = self.state();
            let Some(next) = state.entries.values().map(|entry| entry.next).min() else {
                state.asleep = Some(Instant::now() + QUIET);
                let (mut state, waited) = self
                    .changed
                    .wait_timeout(state, QUIET)
                    .unwrap_or_else(PoisonError::into_inner);
                state.asleep = None;
                if waited.timed_out() && state.entries.is_empty() {
                    state.attended = false;
                    return;
                }
                continue;
            };
            let left = next.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                state.asleep = Some(next);
                let woken = self.changed.wait_timeout(state, left);
                woken.unwrap_or_else(PoisonError::into_inner).0.asleep = None;
                continue;
            }
            let (due, shortest) = Extender::due(&mut state);
            drop(state);
            if !due.is_empty() {
                self.renew(store, &due, shortest);
            }
        }
    }

    /// The holds to renew now, with those that are nearly due; and the shortest
    /// lease of all. Blocks that have been left are forgotten.
    fn due(state: &mut State) -> (Vec<Due>, Lease) {
        let now = Instant::now();
        let mut due: Vec<Due> = Vec::new();
        let mut shortest: Option<f64> = None;
        state.entries.retain(|number, entry| {
            let Some(lock) = entry.lock.upgrade() else {
                return false;
            };
            let Some((token, lease, deadline)) = lock.extended_by(*number) else {
                return false;
            };
            shortest = Some(shortest.map_or(lease.seconds(), |other| other.min(lease.seconds())));
            if entry.next <= now + third(lease) / 5 {
                due.push(Due {
                    number: *number,
                    lock,
                    token,
                    lease,
                    deadline,
                });
            }
            true
        });
        let shortest = shortest.and_then(Lease::from_seconds);
        (due, shortest.unwrap_or(Lease::ZERO))
    }

    fn renew(&self, store: &Store, due: &[Due], shortest: Lease) {
        // One that hangs must not cost the others their lease.
        let limit = Duration::from_secs_f64((shortest.seconds() / 6.0).clamp(0.02, 2.0));
        let patience = || Patience::new(limit, &|| Ok(()));
        // Two blocks may want the same hold extended; once is enough.
        let mut holds: Vec<(Name, Token, Lease)> = Vec::new();
        let mut known: HashMap<&str, usize> = HashMap::new();
        let positions: Vec<usize> = due
            .iter()
            .map(|due| {
                *known.entry(due.token.as_str()).or_insert_with(|| {
                    holds.push((due.lock.name().clone(), due.token.clone(), due.lease));
                    holds.len() - 1
                })
            })
            .collect();
        let answer = store.renew(&holds, patience());
        for (due, position) in due.iter().zip(positions) {
            let result = match &answer {
                Ok(deadlines) => match deadlines[position] {
                    Some(deadline) => Ok(Some(deadline)),
                    // Lost, or locked by somebody just then, or being transferred.
                    None => Extender::renew_one(store, due, patience),
                },
                Err(error) => Err(Error::Unavailable(error.to_string())),
            };
            self.renewed(due, result);
        }
    }

    fn renew_one<'a>(
        store: &Store,
        due: &Due,
        patience: impl Fn() -> Patience<'a>,
    ) -> Result<Option<Deadline>, Error> {
        // Asked for first: what was transferred since has the token it says.
        let pending = due.lock.pending(due.number);
        for token in [Some(due.token.clone()), pending].into_iter().flatten() {
            let extended = store.extend(due.lock.name(), &token, due.lease, patience())?;
            if let Some((_, deadline)) = extended {
                return Ok(Some(deadline));
            }
        }
        Ok(None)
    }

    fn renewed(&self, due: &Due, result: Result<Option<Deadline>, Error>) {
        let now = Instant::now();
        let next = match result {
            Ok(Some(deadline)) => {
                due.lock.renewed(due.number, deadline);
                now + third(due.lease)
            }
            Ok(None) => match due.lock.extended_by(due.number) {
                // It has another token meanwhile.
                Some((token, _, _)) if token != due.token => now,
                // A transfer is under way, or its outcome is not known.
                Some((_, _, deadline))
                    if due.lock.pending(due.number).is_some() && !deadline.passed(now) =>
                {
                    now + Duration::from_millis(5)
                }
                _ => return self.lost(due),
            },
            Err(error) => {
                let (lock, deadline) = (due.lock.name(), due.deadline);
                log::warn!("the hold of lock {lock} could not be extended: {error}");
                if deadline.passed(now) {
                    return self.lost(due);
                }
                let pause = third(due.lease) / 5;
                now + pause
                    .clamp(Duration::from_millis(20), Duration::from_secs(1))
                    .min(Duration::from_secs_f64(deadline.remaining(now)))
            }
        };
        let mut state = self.state();
        if let Some(entry) = state.entries.get_mut(&due.number) {
            entry.next = next;
        }
    }

    fn lost(&self, due: &Due) {
        let entry = self.state().entries.remove(&due.number);
        // Not if the block was left, or is about to be, in the mean time.
        let told = due.lock.forfeit(due.number);
        if let Some(on_lost) = entry.and_then(|entry| entry.on_lost) {
            if told {
                on_lost();
            }
        }
    }
}
