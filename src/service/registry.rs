//! What the Lock objects of this process believe in, whichever configuration they are of.

use super::locked;
use super::watch::Watched;
use crate::engine::{Deadline, HoldId, Holds, LevelId, Name, Reported};
use crate::process::ProcessLocal;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

/// Tells an owner that its hold is lost. It is called on any thread and must not block.
pub type OnLost = Box<dyn FnOnce() + Send>;

/// What knows how many wait for a lock, and whether they have a ticket in the database's queue.
pub(super) trait Crowd: Send + Sync {
    /// Of one lock.
    fn count(&self, name: &Name) -> (usize, bool);
}

/// The holds of one process, and who wants to hear that one is lost.
#[derive(Default)]
pub struct Registry {
    holds: Mutex<Holds>,
    callbacks: Mutex<HashMap<LevelId, OnLost>>,
    /// The waiters of each configuration.
    crowds: Mutex<Vec<Weak<dyn Crowd>>>,
    /// For those who measure.
    pub(super) watched: Watched,
}

static REGISTRY: LazyLock<ProcessLocal<Registry>> = LazyLock::new(ProcessLocal::default);

/// The registry of a process: the calling one, or, in a child that was forked in the
/// middle of a call, one that nobody looks into.
#[must_use]
pub fn registry(process: u32) -> Arc<Registry> {
    REGISTRY.of(process)
}

impl Registry {
    /// Works on the holds.
    pub fn with<T>(&self, work: impl FnOnce(&mut Holds) -> T) -> T {
        work(&mut locked(&self.holds))
    }

    /// Somebody waits for locks of one more configuration.
    pub(super) fn add(&self, crowd: Weak<dyn Crowd>) {
        let mut all = locked(&self.crowds);
        all.retain(|crowd| crowd.strong_count() > 0);
        all.push(crowd);
    }

    /// How many of this process wait for a lock, and how many tickets they have in the
    /// queues of databases.
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

    /// The owner of a level wants to hear of a loss.
    pub(super) fn call(&self, level: LevelId, on_lost: OnLost) {
        locked(&self.callbacks).insert(level, on_lost);
    }

    /// A level has been left: nobody wants to hear of it any more.
    pub(super) fn forget(&self, level: LevelId) {
        // Dropped outside of the mutex.
        let callback = locked(&self.callbacks).remove(&level);
        drop(callback);
    }

    /// See [`Holds::extended`].
    pub(super) fn extended(
        &self,
        hold: HoldId,
        fence: Option<i64>,
        deadline: Deadline,
    ) -> Option<Deadline> {
        let (deadline, token) = self.with(|holds| {
            let deadline = holds.extended(hold, fence, deadline)?;
            Some((deadline, holds.get(hold).map(|hold| hold.token.clone())))
        })?;
        if let Some(token) = token {
            self.watched.extended(&token, deadline);
        }
        Some(deadline)
    }

    /// Changes the holds, and tells everybody concerned if one is lost by that.
    pub(super) fn report(&self, change: impl FnOnce(&mut Holds) -> Option<Reported>) {
        let Some(reported) = self.with(change) else {
            return;
        };
        let fence = reported
            .fence
            .map_or("none".to_owned(), |fence| fence.to_string());
        log::warn!(
            "the hold of lock {} (fence {fence}) is lost: {}",
            reported.name,
            reported.reason.as_str()
        );
        self.watched.ended(&reported.token, Some(reported.reason));
        for level in reported.levels {
            let callback = locked(&self.callbacks).remove(&level);
            if let Some(callback) = callback {
                callback();
            }
        }
    }
}
