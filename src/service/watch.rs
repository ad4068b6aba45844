//! Reports to the observer: how attempts and holds end, and how much of a lease was left when it
//! was extended. Each is reported once, in the process that took the hold.

use super::locked;
use crate::engine::{Deadline, Key, Loss, Moment, Name, Token};
use crate::error::Error;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How an attempt to acquire ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempted {
    /// With a new hold, which has this fence.
    Acquired(Option<i64>),
    /// The owner entered its hold again.
    Reentered,
    /// Another caller has the lock.
    Refused,
    /// The owner learned that its hold is lost, or the answer came too late.
    Lost(Loss),
    /// The caller gave up.
    Cancelled,
    /// It failed, with this exception.
    Failed(&'static str),
}

impl Attempted {
    /// How a failed attempt ended.
    #[must_use]
    pub fn with(error: &Error) -> Attempted {
        match error {
            Error::NotAcquired(..) => Attempted::Refused,
            Error::Expired(_, _, reason) => Attempted::Lost(*reason),
            Error::Interrupted | Error::Forked => Attempted::Cancelled,
            Error::Unavailable(_) => Attempted::Failed("score.distlock.DatabaseUnavailable"),
            Error::Sql { .. } => Attempted::Failed("score.distlock.DatabaseError"),
            Error::Configuration(_) => Attempted::Failed("score.init.ConfigurationError"),
            Error::NotAToken(..) | Error::TokenRequired(_) | Error::Name(_) => {
                Attempted::Failed("ValueError")
            }
        }
    }
}

/// An event about a lock. It contains no token.
#[derive(Debug)]
pub enum Event {
    /// An attempt has ended.
    Attempt {
        /// How.
        how: Attempted,
        /// How long it took.
        took: Duration,
    },
    /// A hold was extended.
    Extended {
        /// How much was left of its lease, in seconds.
        margin: f64,
    },
    /// A hold has ended.
    Ended {
        /// How long it lasted.
        held: Duration,
        /// How much was left of its lease, in seconds.
        margin: f64,
        /// Why it was lost, if it was.
        lost: Option<Loss>,
    },
}

/// Called when one attempt has ended, with the outcome.
pub type Report = Box<dyn FnOnce(&Name, Event) + Send>;

/// Measures the locks of a configuration. Its methods are called on any thread, even under a mutex:
/// they must not block or call back.
pub trait Observer: Send + Sync {
    /// The calling thread begins to acquire.
    fn attempt(&self) -> Report;
    /// An event about a hold.
    fn see(&self, name: &Name, event: Event);
}

/// An observed attempt. Its end is reported once.
pub struct Watch {
    observer: Arc<dyn Observer>,
    report: Option<Report>,
    begun: Moment,
}

impl Watch {
    /// Begins now, on the calling thread.
    #[must_use]
    pub fn begin(observer: Arc<dyn Observer>) -> Watch {
        Watch {
            report: Some(observer.attempt()),
            observer,
            begun: Moment::now(),
        }
    }

    /// The attempt has ended.
    pub fn end(&mut self, name: &Name, how: Attempted) {
        if let Some(report) = self.report.take() {
            let took = Moment::now().since(self.begun);
            report(name, Event::Attempt { how, took });
        }
    }
}

struct Hold {
    observer: Arc<dyn Observer>,
    begun: Moment,
    deadline: Deadline,
}

#[derive(Default)]
struct State {
    holds: HashMap<Key, Hold>,
    /// At this many entries, forget the expired holds that nobody has ended.
    many: usize,
}

/// The observed holds of a process, by their keys.
#[derive(Default)]
pub struct Watched {
    state: Mutex<State>,
    /// The number of holds, for a check that costs nothing.
    count: AtomicUsize,
}

impl Watched {
    /// The minimum of [`State::many`].
    const MANY: usize = 10_000;

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<Key, Hold>) -> Option<T>) -> Option<T> {
        if self.count.load(SeqCst) == 0 {
            return None;
        }
        let mut state = locked(&self.state);
        let result = work(&mut state.holds);
        self.count.store(state.holds.len(), SeqCst);
        result
    }

    /// A hold begins.
    pub fn add(&self, key: &Key, deadline: Deadline, watch: &Watch) {
        let hold = Hold {
            observer: watch.observer.clone(),
            begun: Moment::now(),
            deadline,
        };
        let mut state = locked(&self.state);
        if state.holds.len() >= state.many.max(Watched::MANY) {
            let now = Moment::now();
            state.holds.retain(|_, hold| !hold.deadline.passed(now));
            state.many = 2 * state.holds.len();
        }
        state.holds.insert(key.clone(), hold);
        self.count.store(state.holds.len(), SeqCst);
    }

    /// The hold did not come about.
    pub fn remove(&self, key: &Key) {
        self.with(|holds| holds.remove(key));
    }

    /// The hold of a key was extended.
    pub fn extended(&self, key: &Key, deadline: Deadline) {
        self.with(|holds| {
            let hold = holds.get_mut(key)?;
            let margin = hold.deadline.remaining(Moment::now());
            hold.deadline = hold.deadline.max(deadline);
            hold.observer.see(&key.name, Event::Extended { margin });
            Some(())
        });
    }

    /// The hold has a new token.
    pub fn transferred(&self, old: &Key, new: &Token) {
        self.with(|holds| {
            let hold = holds.remove(old)?;
            holds.insert(old.with(new), hold)
        });
    }

    /// The hold of a key has ended, or (`lost`) is lost.
    pub fn ended(&self, key: &Key, lost: Option<Loss>) {
        let Some(hold) = self.with(|holds| holds.remove(key)) else {
            return;
        };
        let now = Moment::now();
        let held = now.since(hold.begun);
        let margin = match lost {
            None => hold.deadline.remaining(now),
            Some(_) => 0.0,
        };
        let ended = Event::Ended { held, margin, lost };
        hold.observer.see(&key.name, ended);
    }

    /// The names of the holds that an observer knows and that certainly stand.
    pub fn names(&self, observer: &Arc<dyn Observer>) -> Vec<Name> {
        let now = Moment::now();
        let names = self.with(|holds| {
            let theirs = holds.iter().filter(|(_, hold)| {
                Arc::ptr_eq(&hold.observer, observer) && !hold.deadline.passed(now)
            });
            Some(theirs.map(|(key, _)| key.name.clone()).collect())
        });
        names.unwrap_or_default()
    }
}
