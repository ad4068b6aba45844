//! Keeps holds alive: a thread renews each after a third of its lease, many in one statement.
//! Leases of very different lengths get separate threads, so that a delay harmless to a long lease
//! does not cost a short one its hold.

use super::held::has_either;
use super::locked;
use super::registry::registry;
use crate::engine::{
    Condition, Deadline, Entered, Hold, HoldId, Key, Lease, Loss, Moment, Name, Token, Warning,
};
use crate::store::{Budget, Renewed, Store};
use crate::sync::{Condvar, Instant, Mutex, process_id};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// A hold to renew now.
struct Due {
    hold: HoldId,
    /// The levels that want it renewed.
    levels: Vec<Entered>,
    key: Key,
    pending: Option<Token>,
    lease: Lease,
    deadline: Deadline,
}

/// A level that the thread watches.
struct Entry {
    /// When to look at it next.
    next: Instant,
    warning: Option<Warning>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Entered, Entry>,
    attended: bool,
    /// The thread should end as soon as there is nothing to extend.
    retired: bool,
    /// Until when the thread sleeps.
    asleep: Option<Instant>,
}

/// The holds whose leases have the same order of magnitude.
#[derive(Default)]
pub struct Class {
    state: Mutex<State>,
    changed: Condvar,
}

/// The holds of one process that are extended automatically, or watched.
#[derive(Default)]
pub struct Renewal(Mutex<HashMap<i32, Arc<Class>>>);

/// The class of owners that want to be warned. Its thread never asks the database: warnings matter
/// most when that does not answer.
const WARNED: i32 = i32::MAX;

/// A hold is renewed after this fraction of its lease: a third.
const REGULARLY: f64 = 3.0;

/// A small fraction of a lease: holds due within it are renewed together, and a failed attempt is
/// repeated after it.
const SOON: f64 = 15.0;

/// How long a thread stays when there is nothing to extend.
const QUIET: Duration = Duration::from_secs(10);

fn part(lease: Lease, divisor: f64) -> Duration {
    Duration::from_secs_f64(lease.seconds() / divisor)
}

impl Renewal {
    /// A level wants its hold extended, or, if not `extended`, wants to hear when it expires.
    /// Returns the class if the caller must start a thread that calls [`Class::attend`].
    pub fn add(&self, entered: Entered, lease: Lease, extended: bool) -> Option<Arc<Class>> {
        // One class for each power of four.
        #[allow(clippy::cast_possible_truncation)] // the logarithm of a lease is small
        let magnitude = (lease.seconds().max(1e-3).log2() / 2.0).floor() as i32;
        let class = locked(&self.0).entry(magnitude).or_default().clone();
        let first = Instant::now() + part(lease, if extended { REGULARLY } else { 1.0 });
        class.add(entered, first, None).then_some(class)
    }

    /// A level wants to hear when only `before` seconds of its hold are left. The same applies.
    pub fn warn(&self, entered: Entered, before: f64, deadline: Deadline) -> Option<Arc<Class>> {
        let class = locked(&self.0).entry(WARNED).or_default().clone();
        let warning = Warning::new(before);
        let first = Instant::now() + warning.first(deadline, Moment::now());
        class.add(entered, first, Some(warning)).then_some(class)
    }

    /// Ends the threads that have nothing to extend. Returns how many others there are.
    pub fn retire(&self) -> usize {
        let classes: Vec<_> = locked(&self.0).values().cloned().collect();
        classes.iter().filter(|class| !class.retire()).count()
    }
}

impl Class {
    fn add(&self, entered: Entered, next: Instant, warning: Option<Warning>) -> bool {
        let mut state = locked(&self.state);
        let sooner = state.asleep.is_some_and(|until| next < until);
        state.entries.insert(entered, Entry { next, warning });
        state.retired = false;
        let start = !std::mem::replace(&mut state.attended, true);
        drop(state);
        if sooner {
            self.changed.notify_one();
        }
        start
    }

    /// No thread could be started.
    pub fn unattended(&self) {
        locked(&self.state).attended = false;
    }

    /// Whether there is no thread, or this call ends it.
    fn retire(&self) -> bool {
        let mut state = locked(&self.state);
        let process = process_id();
        // Levels that were left stay here until they are due.
        registry(process).with(|holds| {
            state
                .entries
                .retain(|entered, _| holds.watched(*entered).is_some());
        });
        let idle = state.entries.is_empty();
        state.retired = idle && state.attended;
        drop(state);
        self.changed.notify_one();
        idle
    }

    /// Extends for as long as there is something to extend.
    pub fn attend(&self, store: &Store) {
        let process = process_id();
        loop {
            let mut state = locked(&self.state);
            let next = state.entries.values().map(|entry| entry.next).min();
            let until = next.unwrap_or_else(|| Instant::now() + QUIET);
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                state.asleep = Some(until);
                let (mut state, waited) = self
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner);
                state.asleep = None;
                if (waited.timed_out() || state.retired) && state.entries.is_empty() {
                    state.attended = false;
                    state.retired = false;
                    return;
                }
                continue;
            }
            let due = Class::due(&mut state, process);
            drop(state);
            if !due.is_empty() {
                self.renew(store, due, process);
            }
        }
    }

    /// The holds to renew now, including those nearly due. Forgets levels that were left and holds
    /// that are lost; checks holds that are only watched.
    fn due(state: &mut State, process: u32) -> Vec<Due> {
        let (now, moment) = (Instant::now(), Moment::now());
        let mut due: HashMap<HoldId, Due> = HashMap::new();
        let (mut expired, mut warned) = (Vec::new(), Vec::new());
        let registry = registry(process);
        registry.with(|holds| {
            state.entries.retain(|entered, entry| {
                let Some((hold, extended)) = holds.watched(*entered) else {
                    return false;
                };
                if let Some(warning) = &mut entry.warning {
                    let (tell, pause) = warning.look(hold.deadline, hold.lease, moment);
                    entry.next = now + pause;
                    if tell {
                        warned.push(*entered);
                    }
                    return true;
                }
                if !extended {
                    let left = Duration::from_secs_f64(hold.deadline.remaining(moment));
                    entry.next = now + left.max(Duration::from_millis(1));
                    if left.is_zero() {
                        expired.push(entered.hold);
                    }
                    return !left.is_zero();
                }
                if entry.next <= now + part(hold.lease, SOON) {
                    let due = due.entry(entered.hold).or_insert_with(|| Due {
                        hold: entered.hold,
                        levels: Vec::new(),
                        key: hold.key.clone(),
                        pending: hold.pending.clone(),
                        lease: hold.lease,
                        deadline: hold.deadline,
                    });
                    due.levels.push(*entered);
                }
                true
            });
        });
        for entered in warned {
            registry.warn(entered);
        }
        for hold in expired {
            registry.report(|holds| holds.expire(hold, Loss::Expired, moment));
        }
        due.into_values().collect()
    }

    fn renew(&self, store: &Store, due: Vec<Due>, process: u32) {
        // Half of the time left, which leaves room for a second attempt.
        let now = Moment::now();
        let left = due.iter().map(|due| due.deadline.remaining(now));
        let left = left.fold(f64::INFINITY, f64::min);
        let limit = Duration::from_secs_f64((left / 2.0).clamp(0.02, 5.0));
        let mut wanted: Vec<(Name, Token, Lease)> = Vec::new();
        for due in &due {
            // During a transfer the hold has either token.
            for token in [Some(&due.key.token), due.pending.as_ref()]
                .into_iter()
                .flatten()
            {
                wanted.push((due.key.name.clone(), token.clone(), due.lease));
            }
        }
        let budget = Budget::new(limit, &|| Ok(())).urgent();
        let answer = store.renew(&wanted, budget);
        let mut answers = answer.as_deref().unwrap_or_default().iter().copied();
        let mut gone = Vec::new();
        for due in due {
            let mut renewed = answers.next();
            if due.pending.is_some() {
                let other = answers.next();
                if renewed == Some(Renewed::Gone) {
                    renewed = other;
                }
            }
            let next = match (&answer, renewed) {
                (Err(error), _) => Class::failed(&due, &error.to_string(), process),
                (Ok(_), Some(Renewed::Until(deadline, fence)))
                    if registry(process)
                        .extended(due.hold, fence, deadline)
                        .is_some() =>
                {
                    Some(part(due.lease, REGULARLY))
                }
                (Ok(_), Some(Renewed::Locked)) => {
                    let error = "its row is locked by another transaction";
                    Class::failed(&due, error, process)
                }
                // Extended, but a different hold with the same token: this one is gone.
                (Ok(_), Some(Renewed::Gone | Renewed::Until(..)) | None) => {
                    gone.push(due);
                    continue;
                }
            };
            self.schedule(&due, next);
        }
        // First schedule the renewed ones; asking why the others are gone takes time.
        for due in gone {
            let next = Class::gone(store, &due, process);
            self.schedule(&due, next);
        }
    }

    fn schedule(&self, due: &Due, next: Option<Duration>) {
        let mut state = locked(&self.state);
        for level in &due.levels {
            match next {
                Some(pause) => {
                    let entry = Entry {
                        next: Instant::now() + pause,
                        warning: None,
                    };
                    state.entries.insert(*level, entry)
                }
                None => state.entries.remove(level),
            };
        }
    }

    /// A hold could not be extended. Returns when to try again, if there is time.
    fn failed(due: &Due, error: &str, process: u32) -> Option<Duration> {
        // Its owner may have extended it meanwhile.
        let deadline =
            registry(process).with(|holds| holds.get(due.hold).map(|hold| hold.deadline));
        let left = deadline?.remaining(Moment::now());
        log::info!(
            "the hold of lock {} could not be extended yet: {error}",
            due.key.name
        );
        if left <= 0.0 {
            registry(process)
                .report(|holds| holds.expire(due.hold, Loss::Unreachable, Moment::now()));
            return None;
        }
        let pause = part(due.lease, SOON).clamp(Duration::from_millis(20), Duration::from_secs(1));
        Some(pause.min(Duration::from_secs_f64(left)))
    }

    /// The database does not have a hold: it is lost, unless it has a new token by now.
    fn gone(store: &Store, due: &Due, process: u32) -> Option<Duration> {
        let registry = registry(process);
        let budget = Budget::new(Duration::from_secs(1), &|| Ok(()));
        let changing = registry.with(|holds| {
            let hold = holds.get(due.hold);
            hold.is_some_and(|hold| hold.key != due.key || hold.pending != due.pending)
        });
        let again = Some(Duration::from_millis(5));
        if changing {
            return again;
        }
        // A transfer may have taken place while the statement looked for both tokens.
        if due.pending.is_some() {
            match has_either(store, &due.key, due.pending.as_ref(), due.lease, budget) {
                Ok(false) => {}
                Ok(true) => return again,
                Err(error) => return Class::failed(due, &error.to_string(), process),
            }
        }
        let held = |hold: &Hold| hold.condition == Condition::Held;
        if !registry.with(|holds| holds.get(due.hold).is_some_and(held)) {
            // It was left, or is being released.
            return None;
        }
        let reason = if due.deadline.passed(Moment::now()) {
            Loss::Expired
        } else {
            store.why_lost(&due.key.name, &due.key.token, budget)
        };
        registry.report(|holds| {
            // Not if a release() has begun since: then that ended it.
            let held = holds.get(due.hold)?.condition == Condition::Held;
            held.then(|| holds.lost(due.hold, reason)).flatten()
        });
        None
    }
}
