//! The holds that the Lock objects of a process believe they have: a state machine without a
//! database or clock of its own. Callers ask it what to do, do it, and report the outcome.
//!
//! | condition | acquire by the owner     | a block ends                | `release()`                |
//! |-----------|--------------------------|-----------------------------|----------------------------|
//! | Held      | confirm it, add a level  | inner: level off; if it was | inner: level off           |
//! |           |                          | before, `LockExpired`       |                            |
//! |           |                          | last: gone, release is owed | last: Releasing            |
//! | Releasing | anew, once it is settled | last: gone, release is owed | release again              |
//! |  only by  | `LockExpired`; outside   | as above                    | as above                   |
//! |  others   | of blocks once, then as  |                             |                            |
//! |           | above                    |                             |                            |
//! | Released  | anew                     | level off, `LockExpired`    | gone                       |
//! | Ended     | anew, with the blocks    | level off, `LockExpired`    | an error: no token         |
//! | Lost      | `LockExpired` once, then | level off, `LockExpired`    | level off, `LockExpired`   |
//! |           | anew outside of blocks   |                             |                            |
//!
//! The other transitions: Held or Releasing becomes *Lost* when the database no longer has the
//! hold, when it could not be extended in time, or when another caller ended it with the token.
//! Releasing becomes *Released* when a release whose caller was told of a failure succeeds in the
//! background. A hold that its owner has released inside a block is *Ended* until the block is
//! left; as with 0.2.5 the owner may acquire again there, and the end of the block then releases
//! that hold.
//!
//! Leaving a block is final: its level is gone when its end begins, whatever the database says. A
//! `release()` can be repeated: its level goes with the outcome.

use super::hold::{Kind, Level};
use super::{
    Caller, Condition, Deadline, Entered, Hold, HoldId, Key, Lease, LevelId, LockId, Loss, Moment,
    Place, Token,
};
use std::collections::{HashMap, HashSet};

pub mod ending;
mod lasting;

/// A lock granted by the database, before its owner is told.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The ids for the hold and the level.
    pub entered: Entered,
    /// Whether it confirms a hold that the owner has already entered.
    pub again: bool,
    /// The Lock object.
    pub lock: LockId,
    /// What the owner will know it by.
    pub key: Key,
    /// The fencing number.
    pub fence: Option<i64>,
    /// The hold is certain until then.
    pub deadline: Deadline,
    /// Its lease.
    pub lease: Lease,
    /// Whether a block begins.
    pub block: bool,
    /// Whether to extend it automatically until this level is left.
    pub extended: bool,
}

/// What an acquire has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Ask the database for the lock, with a new token.
    Fresh,
    /// The owner already has the lock: confirm and extend the hold of this token.
    Again {
        /// The hold.
        hold: HoldId,
        /// Its token.
        token: Token,
        /// Its lease.
        lease: Lease,
    },
    /// The owner had the lock, and must be told that it is lost.
    Lost(Token, Loss),
}

/// A newly discovered loss, for listeners.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// What its owner knew it by.
    pub key: Key,
    /// The fencing number of the hold.
    pub fence: Option<i64>,
    /// Why it is lost.
    pub reason: Loss,
    /// The open levels.
    pub levels: Vec<LevelId>,
}

/// The holds of one process. Only the newest of a Lock object's holds can be alive in the database:
/// there are more when an owner outlived its lease and another took over.
#[derive(Debug, Default)]
pub struct Holds {
    all: HashMap<HoldId, Hold>,
    by_lock: HashMap<LockId, Vec<HoldId>>,
    /// Also those that a transfer may have given them.
    by_key: HashMap<Key, HoldId>,
    /// The fence of a hold whose token was presented to a Lock object that did not take it.
    presented: HashMap<LockId, i64>,
    /// The Lock objects that have lost a hold since they last acquired.
    lost: HashSet<LockId>,
}

impl Holds {
    /// The most holds to remember of one Lock object whose owners never release.
    const MANY: usize = 1000;

    fn owned(&self, lock: LockId, caller: &Caller) -> Option<HoldId> {
        let holds = self.by_lock.get(&lock)?;
        holds.iter().rev().copied().find(|id| {
            caller.remembered.contains(id)
                && self
                    .all
                    .get(id)
                    .is_some_and(|hold| hold.place == caller.place)
        })
    }

    fn newest(&self, lock: LockId) -> Option<HoldId> {
        self.by_lock.get(&lock)?.last().copied()
    }

    /// The caller's hold of a Lock object, or else the newest.
    #[must_use]
    pub fn of(&self, lock: LockId, caller: &Caller) -> Option<&Hold> {
        let id = self.owned(lock, caller).or_else(|| self.newest(lock))?;
        let hold = self.all.get(&id)?;
        (hold.condition != Condition::Released).then_some(hold)
    }

    /// Whether that hold is lost, or the Lock object has none and lost its last one.
    #[must_use]
    pub fn is_lost(&self, lock: LockId, caller: &Caller, now: Moment) -> bool {
        self.of(lock, caller)
            .map_or_else(|| self.lost.contains(&lock), |hold| hold.expired(now))
    }

    /// A hold.
    #[must_use]
    pub fn get(&self, id: HoldId) -> Option<&Hold> {
        self.all.get(&id)
    }

    /// The hold that has this key, or may have it through a transfer.
    #[must_use]
    pub fn with_key(&self, key: &Key) -> Option<(HoldId, &Hold)> {
        let id = *self.by_key.get(key)?;
        Some((id, self.all.get(&id)?))
    }

    /// Whether a hold has this key, and certainly no other.
    #[must_use]
    pub fn is_known(&self, id: HoldId, key: &Key) -> bool {
        let known = |hold: &Hold| hold.key == *key && hold.pending.is_none();
        self.all.get(&id).is_some_and(known)
    }

    /// Whether the database has told that the hold of a key is gone.
    #[must_use]
    pub fn is_over(&self, key: &Key) -> bool {
        let hold = self.with_key(key).map(|(_, hold)| hold.condition);
        match hold {
            Some(Condition::Lost { reason, .. } | Condition::Ended(reason)) => {
                !reason.is_presumed()
            }
            _ => false,
        }
    }

    /// The fence of the hold whose token was last presented.
    #[must_use]
    pub fn presented(&self, lock: LockId) -> Option<i64> {
        self.presented.get(&lock).copied()
    }

    /// A key was presented to a Lock object; its hold has this fence.
    pub fn present(&mut self, lock: LockId, key: &Key, fence: Option<i64>) {
        if self.with_key(key).is_none_or(|(_, hold)| hold.lock != lock) {
            match fence {
                Some(fence) => drop(self.presented.insert(lock, fence)),
                None => drop(self.presented.remove(&lock)),
            }
        }
    }

    /// Those of these holds that still exist.
    #[must_use]
    pub fn living(&self, ids: &[HoldId]) -> Vec<HoldId> {
        let known = ids.iter().filter(|id| self.all.contains_key(id));
        known.copied().collect()
    }

    /// Whether the caller has a hold of a Lock object, in any condition.
    #[must_use]
    pub fn is_owned(&self, lock: LockId, caller: &Caller) -> bool {
        self.owned(lock, caller).is_some()
    }

    /// The caller wants to acquire.
    pub fn entry(&mut self, lock: LockId, caller: &Caller, reentrant: bool) -> Entry {
        let owned = self.owned(lock, caller).filter(|_| reentrant);
        let Some((id, hold)) = owned.and_then(|id| Some((id, self.all.get_mut(&id)?))) else {
            return Entry::Fresh;
        };
        match hold.condition {
            Condition::Held => Entry::Again {
                hold: id,
                token: hold.key.token.clone(),
                lease: hold.lease,
            },
            // Whatever the database answers: a release is tried until the hold is over.
            Condition::Releasing { known: false } => {
                let known = !hold.has_blocks();
                hold.condition = Condition::Releasing { known };
                Entry::Lost(hold.key.token.clone(), Loss::Released)
            }
            Condition::Releasing { known: true } | Condition::Released | Condition::Ended(_) => {
                Entry::Fresh
            }
            Condition::Lost { reported: true, .. } if !hold.has_blocks() => Entry::Fresh,
            Condition::Lost { reason, .. } => {
                let reported = true;
                hold.condition = Condition::Lost { reason, reported };
                Entry::Lost(hold.key.token.clone(), reason)
            }
        }
    }

    /// Tells the owner that it has the lock. `None` if the hold to enter again has meanwhile ended
    /// or expired; otherwise the levels to extend from now on.
    #[must_use]
    pub fn open(&mut self, grant: Grant, caller: &Caller, now: Moment) -> Option<Vec<Entered>> {
        let level = Level {
            id: grant.entered.level,
            kind: if grant.block { Kind::Block } else { Kind::Call },
            extended: grant.extended,
        };
        if grant.again {
            let hold = self.all.get_mut(&grant.entered.hold);
            let hold = hold.filter(|hold| hold.condition == Condition::Held)?;
            // Take into account what has become known since this answer's statement was sent.
            hold.deadline = hold.deadline.max(grant.deadline);
            if grant.lease != Lease::ZERO && hold.deadline.passed(now) {
                return None;
            }
            hold.lease = grant.lease;
            hold.levels.push(level);
            return Some(vec![grant.entered]);
        }
        let mut levels = self.replace(grant.lock, caller);
        // Inside a block whose hold was released, that block's level stands for a plain acquire.
        if levels.is_empty() || grant.block {
            levels.push(level);
        }
        let opened = levels.iter().map(|level| Entered {
            hold: grant.entered.hold,
            level: level.id,
        });
        let opened = opened.collect();
        self.lost.remove(&grant.lock);
        let siblings = self.by_lock.entry(grant.lock).or_default();
        siblings.push(grant.entered.hold);
        if siblings.len() > Holds::MANY {
            let oldest = siblings[0];
            self.remove(oldest);
        }
        self.by_key.insert(grant.key.clone(), grant.entered.hold);
        let hold = Hold {
            lock: grant.lock,
            key: grant.key,
            pending: None,
            fence: grant.fence,
            deadline: grant.deadline,
            lease: grant.lease,
            place: caller.place,
            levels,
            condition: Condition::Held,
            found_gone: None,
        };
        self.all.insert(grant.entered.hold, hold);
        Some(opened)
    }

    /// Removes the holds that the owner's new one replaces: lost and reported, or released. Returns
    /// the open blocks, which move to the new hold.
    fn replace(&mut self, lock: LockId, caller: &Caller) -> Vec<Level> {
        let mut levels = Vec::new();
        while let Some(id) = self.owned(lock, caller) {
            let Some(hold) = self.all.get_mut(&id) else {
                break;
            };
            if matches!(hold.condition, Condition::Ended(_)) {
                levels = std::mem::take(&mut hold.levels);
                levels.retain(Level::is_block);
                for level in &mut levels {
                    level.kind = Kind::Block;
                }
            } else if hold.has_blocks() {
                break;
            }
            self.remove(id);
        }
        levels
    }

    fn remove(&mut self, id: HoldId) {
        let Some(hold) = self.all.remove(&id) else {
            return;
        };
        self.by_key.remove(&hold.key);
        if let Some(pending) = &hold.pending {
            self.by_key.remove(&hold.key.with(pending));
        }
        if let Some(siblings) = self.by_lock.get_mut(&hold.lock) {
            siblings.retain(|other| *other != id);
            if siblings.is_empty() {
                self.by_lock.remove(&hold.lock);
            }
        }
    }

    /// A Lock object is gone: forgets its holds, except for those that are extended until they are
    /// released. Returns whether there were any.
    pub fn forget(&mut self, lock: LockId) -> bool {
        self.presented.remove(&lock);
        self.lost.remove(&lock);
        let ids = self.by_lock.get(&lock).cloned().unwrap_or_default();
        for id in &ids {
            let extended = self.all.get(id).is_some_and(|hold| {
                let held = hold.condition == Condition::Held;
                held && hold.levels.iter().any(|level| level.extended)
            });
            if !extended {
                self.remove(*id);
            }
        }
        !ids.is_empty()
    }

    /// The innermost block of the newest hold acquired at this place, whatever the caller's context
    /// remembers: `__aexit__` is looked up before its block is entered.
    #[must_use]
    pub fn block_at(&self, lock: LockId, place: Place) -> Option<Entered> {
        self.by_lock.get(&lock)?.iter().rev().find_map(|id| {
            let hold = self.all.get(id).filter(|hold| hold.place == place)?;
            let level = hold.levels.iter().rev().find(|level| level.is_block())?;
            Some(Entered {
                hold: *id,
                level: level.id,
            })
        })
    }

    /// The block that the end of a `with lock` belongs to: the caller's innermost, or else the
    /// oldest open one.
    #[must_use]
    pub fn block(&self, lock: LockId, caller: &Caller) -> Option<Entered> {
        let entered = |id: HoldId, level: &Level| Entered {
            hold: id,
            level: level.id,
        };
        if let Some(id) = self.owned(lock, caller) {
            let mut levels = self.all.get(&id)?.levels.iter().rev();
            if let Some(level) = levels.find(|level| level.is_block()) {
                return Some(entered(id, level));
            }
        }
        self.by_lock.get(&lock)?.iter().find_map(|id| {
            let mut levels = self.all.get(id)?.levels.iter();
            Some(entered(*id, levels.find(|level| level.is_block())?))
        })
    }
}

#[cfg(test)]
mod promises;
#[cfg(test)]
mod tests;
