//! The table of conditions, row by row, and the other promises of each function.

mod ends;
mod lasts;
mod looks;
mod releases;

use super::super::{Name, Table};
use super::ending::Ending;
use super::*;
use std::sync::Arc;
use std::time::Duration;

/// A Lock object with a lease of one second, and its owners.
pub(super) struct Scene {
    pub(super) holds: Holds,
    pub(super) lock: LockId,
    pub(super) now: Moment,
}

/// An owner, with what its context remembers.
pub(super) struct Owner {
    pub(super) task: u64,
    pub(super) remembered: Vec<HoldId>,
}

impl Owner {
    pub(super) fn new(task: u64) -> Owner {
        let remembered = Vec::new();
        Owner { task, remembered }
    }

    pub(super) fn caller(&self) -> Caller {
        Caller {
            place: Place::current(Some(self.task), None),
            remembered: Arc::from(self.remembered.clone()),
        }
    }
}

pub(super) const CALL: (bool, bool) = (false, false);
pub(super) const BLOCK: (bool, bool) = (true, false);
pub(super) const EXTENDED: (bool, bool) = (true, true);

impl Scene {
    pub(super) fn new() -> Scene {
        Scene {
            holds: Holds::default(),
            lock: LockId::fresh(),
            now: Moment::now(),
        }
    }

    pub(super) fn grant(&self, (block, extended): (bool, bool), again: Option<HoldId>) -> Grant {
        Grant {
            entered: Entered {
                hold: again.unwrap_or_else(HoldId::fresh),
                level: LevelId::fresh(),
            },
            again: again.is_some(),
            lock: self.lock,
            key: Key::random(),
            fence: Some(7),
            deadline: Deadline::new(self.now, 1.0),
            lease: Lease::SECOND,
            block,
            extended,
        }
    }

    /// The owner acquires, entering again if it already has the lock.
    pub(super) fn enter(&mut self, owner: &mut Owner, how: (bool, bool)) -> Entered {
        let again = match self.holds.entry(self.lock, &owner.caller(), true) {
            Entry::Fresh => None,
            Entry::Again { hold, .. } => Some(hold),
            Entry::Lost(..) => panic!("it is lost"),
        };
        let grant = self.grant(how, again);
        let entered = grant.entered;
        assert!(self.holds.open(grant, &owner.caller(), self.now).is_some());
        owner.remembered.push(entered.hold);
        entered
    }

    pub(super) fn release(&mut self, owner: &Owner) -> Ending {
        self.holds
            .release(self.lock, &owner.caller(), None, self.now)
    }

    pub(super) fn entry(&mut self, owner: &Owner) -> Entry {
        self.holds.entry(self.lock, &owner.caller(), true)
    }

    pub(super) fn key(&self, id: HoldId) -> Key {
        self.holds.get(id).unwrap().key.clone()
    }

    pub(super) fn token(&self, id: HoldId) -> Token {
        self.key(id).token
    }

    pub(super) fn levels(&self, id: HoldId) -> usize {
        self.holds.get(id).map_or(0, |hold| hold.levels.len())
    }

    /// The lease runs out.
    pub(super) fn pass(&mut self) {
        self.now = self.now + Duration::from_secs(2);
    }
}

pub(super) fn lost(ending: &Ending) -> Option<(Loss, bool)> {
    match ending {
        Ending::Lost { reason, owed, .. } => Some((*reason, *owed)),
        _ => None,
    }
}
