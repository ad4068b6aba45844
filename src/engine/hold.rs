//! One hold, and the levels that its owner has entered.

use super::{Deadline, Key, Lease, LevelId, LockId, Loss, Moment, Place, Token};

/// The condition of a hold; see the table in `holds.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It stands, as far as its deadline shows.
    Held,
    /// A `release()` has begun, and it is not known to have succeeded.
    Releasing {
        /// Whether its owner knows of it: as one of the callers, or because an acquire said so.
        known: bool,
    },
    /// That release has succeeded after its caller was told of a failure.
    Released,
    /// Its owner has released it inside an open block, or tried to and was told that it is lost.
    Ended(Loss),
    /// It is gone.
    Lost {
        /// Why.
        reason: Loss,
        /// Whether an acquire by the owner has reported it.
        reported: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) id: LevelId,
    pub(super) kind: Kind,
    pub(super) extended: bool,
}

/// How a level is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// By a `release()`.
    Call,
    /// By the end of the block that entered it.
    Block,
    /// By that end too, but a `release()` inside the block has taken it off: it holds nothing, and
    /// the end of the block instead leaves what the owner has entered inside it since.
    Released,
}

impl Level {
    pub(super) fn is_block(&self) -> bool {
        self.kind != Kind::Call
    }
}

/// An owner's hold of a lock.
#[derive(Debug)]
pub struct Hold {
    /// The Lock object it was taken through.
    pub lock: LockId,
    /// What its owner knows it by.
    pub key: Key,
    /// The token that a transfer is giving or may have given it, until its caller knows that one.
    pub pending: Option<Token>,
    /// The fencing number; `None` for a hold that 0.2.5 acquired.
    pub fence: Option<i64>,
    /// The hold is certain until then.
    pub deadline: Deadline,
    /// The lease for extensions.
    pub lease: Lease,
    /// Where it was acquired.
    pub(super) place: Place,
    /// The levels that its owner has entered and not left yet, outermost first.
    pub(super) levels: Vec<Level>,
    /// Its condition.
    pub condition: Condition,
    /// A release found no hold in the database while the owner's was under way, which may have ended
    /// it.
    pub(super) found_gone: Option<Gone>,
}

/// What a release found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub reason: Loss,
    /// Whether an owner's release found it.
    pub own: bool,
}

impl Hold {
    /// Why it is gone, or must be presumed gone.
    #[must_use]
    pub fn loss(&self, now: Moment) -> Option<Loss> {
        let expired = || self.deadline.passed(now).then_some(Loss::Expired);
        self.recorded_loss().or_else(expired)
    }

    /// The loss that was reported to its owner, or to a caller.
    #[must_use]
    pub fn recorded_loss(&self) -> Option<Loss> {
        match self.condition {
            Condition::Lost { reason, .. } | Condition::Ended(reason) => Some(reason),
            Condition::Held | Condition::Releasing { .. } | Condition::Released => None,
        }
    }

    /// Whether it is known or presumed to be gone.
    #[must_use]
    pub fn expired(&self, now: Moment) -> bool {
        self.loss(now).is_some()
    }

    /// Whether a release has begun whose end the owner has to learn of: it is in a block, or only
    /// others release the hold.
    pub(super) fn is_release_news(&self) -> bool {
        match self.condition {
            Condition::Releasing { known } => !known || self.has_blocks(),
            _ => false,
        }
    }

    pub(super) fn has_blocks(&self) -> bool {
        self.levels.iter().any(Level::is_block)
    }

    /// How many levels hold the lock.
    pub(super) fn depth(&self) -> usize {
        let holding = |level: &&Level| level.kind != Kind::Released;
        self.levels.iter().filter(holding).count()
    }

    /// Takes off the level that a `release()` refers to: the innermost that is not a block, as
    /// blocks end their own; otherwise that of the innermost block, whose end then reports it.
    pub(super) fn take_off(&mut self) {
        let innermost = |kind| {
            self.levels
                .iter()
                .rposition(move |level| level.kind == kind)
        };
        if let Some(position) = innermost(Kind::Call) {
            self.levels.remove(position);
        } else if let Some(position) = innermost(Kind::Block) {
            self.levels[position].kind = Kind::Released;
            self.levels[position].extended = false;
        }
    }

    /// Removes the level of a block that ends. `None`: there is none. `Some(false)`: a release had
    /// taken it off, and nothing was entered in its place.
    pub(super) fn end_block(&mut self, id: LevelId) -> Option<bool> {
        let position = self.levels.iter().position(|level| level.id == id)?;
        if self.levels.remove(position).kind != Kind::Released {
            return Some(true);
        }
        let since = self.levels[position..].iter();
        let call = since.rev().position(|level| level.kind == Kind::Call);
        call.map_or(Some(false), |from_end| {
            self.levels.remove(self.levels.len() - 1 - from_end);
            Some(true)
        })
    }
}
