//! The holds of all Lock objects of this process, of every configuration.

use super::locked;
use super::shared_transfers::SharedTransfers;
use super::wakeup::Wakeup;
use super::watch::Watched;
use crate::engine::{
    Caller, Claim, Deadline, Entered, HoldId, Holds, Key, LevelId, LockId, Loss, Moment, Name,
    Reported, Token,
};
use crate::error::Result;
use crate::process::ProcessLocal;
use crate::store::Budget;
use crate::sync::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

/// Tells an owner that its hold is lost. Called on any thread; must not block.
pub type OnLost = Box<dyn FnOnce() + Send>;
/// Tells the owner of a level that its hold is about to expire. The same applies.
pub type OnExpiring = Arc<dyn Fn(Entered) + Send + Sync>;

/// The events that the owner of a level wants to hear of.
#[derive(Default)]
pub struct Callbacks {
    /// Its hold is lost.
    pub lost: Option<OnLost>,
    /// Its hold was not extended, and only this many seconds are left.
    pub expiring: Option<(f64, OnExpiring)>,
}

/// Knows how many wait for a lock, and whether they have a ticket in the database's queue.
pub(super) trait Crowd: Send + Sync {
    /// For one lock.
    fn count(&self, name: &Name) -> (usize, bool);
}

/// The holds of one process, and who to tell when one is lost.
#[derive(Default)]
pub struct Registry {
    holds: Mutex<Holds>,
    /// Notified when a hold is lost.
    lost: Condvar,
    /// Others that a loss wakes, for as long as they are referenced.
    wakeups: Mutex<Vec<Weak<Wakeup>>>,
    callbacks: Mutex<HashMap<LevelId, Callbacks>>,
    /// The waiters of each configuration.
    crowds: Mutex<Vec<Weak<dyn Crowd>>>,
    /// The transfers in progress.
    pub(super) transfers: SharedTransfers,
    /// For observers.
    pub(super) watched: Watched,
}

static REGISTRY: LazyLock<ProcessLocal<Registry>> = LazyLock::new(ProcessLocal::default);

/// The registry of a process: the calling one, or, in a child forked in the middle of a call, one
/// that nobody looks into.
#[must_use]
pub fn registry(process: u32) -> Arc<Registry> {
    REGISTRY.of(process)
}

/// Tells the operator of a loss, whoever else is told.
pub(super) fn log_loss(name: &Name, fence: Option<i64>, reason: Loss) {
    let fence = fence.map_or("none".to_owned(), |fence| fence.to_string());
    log::warn!(
        "the hold of lock {name} (fence {fence}) is lost: {}",
        reason.as_str()
    );
}

impl Registry {
    /// Works on the holds.
    pub fn with<T>(&self, work: impl FnOnce(&mut Holds) -> T) -> T {
        work(&mut locked(&self.holds))
    }

    /// Adds the waiters of one more configuration.
    pub(super) fn add(&self, crowd: Weak<dyn Crowd>) {
        let mut all = locked(&self.crowds);
        all.retain(|crowd| crowd.strong_count() > 0);
        all.push(crowd);
    }

    /// How many waiters of this process wait for a lock, and how many tickets they have in the
    /// databases' queues.
    #[must_use]
    pub fn waiting(&self, name: &Name) -> (usize, usize) {
        let all: Vec<_> = locked(&self.crowds)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let counts = all.iter().map(|crowd| crowd.count(name));
        counts.fold((0, 0), |(waiters, tickets), (more, queued)| {
            (waiters + more, tickets + usize::from(queued))
        })
    }

    /// Registers the callbacks of a level.
    pub(super) fn call(&self, level: LevelId, callbacks: Callbacks) {
        locked(&self.callbacks).insert(level, callbacks);
    }

    /// The hold of a level is about to expire.
    pub(super) fn warn(&self, entered: Entered) {
        let callbacks = locked(&self.callbacks);
        let expiring = callbacks
            .get(&entered.level)
            .and_then(|of| of.expiring.clone());
        drop(callbacks);
        if let Some((_, expiring)) = expiring {
            expiring(entered);
        }
    }

    /// A level has been left: forgets its callbacks.
    pub(super) fn forget(&self, level: LevelId) {
        // Drop it outside the mutex.
        let callback = locked(&self.callbacks).remove(&level);
        drop(callback);
    }

    /// Whether a Lock object's hold is lost: the caller's, or else the latest. A loss found here by
    /// the deadline alone is reported to everybody concerned.
    pub(super) fn is_lost(&self, lock: LockId, caller: &Caller) -> bool {
        let now = Moment::now();
        self.report(|holds| holds.expire_of(lock, caller, now));
        self.with(|holds| holds.is_lost(lock, caller, now))
    }

    /// Waits for the loss. Also notices a hold taken meanwhile, at most a second later.
    pub(super) fn await_loss(
        &self,
        lock: LockId,
        caller: &Caller,
        budget: Budget<'_>,
    ) -> Result<bool> {
        while !self.is_lost(lock, caller) {
            let Some(pause) = budget.slice() else {
                return Ok(false);
            };
            self.sleep_until_lost(lock, caller, pause);
            // Not under the mutex: this waits for the GIL, whose holder may want the holds.
            budget.check()?;
        }
        Ok(true)
    }

    /// Sleeps until any hold is lost or this one's lease is over, at most for `pause`.
    fn sleep_until_lost(&self, lock: LockId, caller: &Caller, pause: Duration) {
        let holds = locked(&self.holds);
        let now = Moment::now();
        if holds.is_lost(lock, caller, now) {
            return;
        }
        let hold = holds.of(lock, caller);
        let left = hold.map(|hold| Duration::from_secs_f64(hold.deadline.remaining(now)));
        let pause = left.map_or(pause, |left| left.min(pause));
        drop(self.lost.wait_timeout(holds, pause));
    }

    /// Calls the wakeup whenever a hold is lost.
    pub fn wake_by_losses(&self, wakeup: &Arc<Wakeup>) {
        let mut wakeups = locked(&self.wakeups);
        wakeups.retain(|wakeup| wakeup.strong_count() > 0);
        wakeups.push(Arc::downgrade(wakeup));
    }

    /// The hold of `old` will not get the token `new`, or had it and has ended.
    pub(super) fn not_transferred(&self, old: &Key, new: &Token) {
        self.transfers.change(old, |transfers| {
            transfers.over(old, new);
            self.with(|holds| holds.not_transferred(old, new));
        });
    }

    /// Gives the new token to the caller of a transfer, see [`Transfers::read`]; from now on the
    /// owner has it too.
    pub(super) fn read(&self, claim: &Claim) -> bool {
        let (old, new) = (&claim.old, &claim.new);
        let read = self.transfers.change(old, |transfers| {
            self.with(|holds| {
                let read = !holds.is_over(old) && transfers.read(claim);
                if read {
                    holds.transferred(old, new);
                }
                read
            })
        });
        if read {
            self.watched.transferred(old, new);
        }
        read
    }

    /// See [`Holds::extended`].
    pub(super) fn extended(
        &self,
        hold: HoldId,
        fence: Option<i64>,
        deadline: Deadline,
    ) -> Option<Deadline> {
        let (deadline, key) = self.with(|holds| {
            let deadline = holds.extended(hold, fence, deadline)?;
            Some((deadline, holds.get(hold).map(|hold| hold.key.clone())))
        })?;
        if let Some(key) = key {
            self.watched.extended(&key, deadline);
        }
        Some(deadline)
    }

    /// Changes the holds; if that loses one, tells everybody concerned.
    pub(super) fn report(&self, change: impl FnOnce(&mut Holds) -> Option<Reported>) {
        let Some(reported) = self.with(change) else {
            return;
        };
        log_loss(&reported.key.name, reported.fence, reported.reason);
        self.watched.ended(&reported.key, Some(reported.reason));
        self.lost.notify_all();
        let wakeups = locked(&self.wakeups).clone();
        for wakeup in wakeups.iter().filter_map(Weak::upgrade) {
            wakeup.wake();
        }
        for level in reported.levels {
            let callback = locked(&self.callbacks).remove(&level);
            if let Some(lost) = callback.and_then(|of| of.lost) {
                lost();
            }
        }
    }
}
