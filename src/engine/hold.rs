//! The holds that the Lock objects of a process believe in: a state machine without
//! database or clock of its own. Callers ask it what to do, do it, and tell it the outcome.
//!
//! | condition | acquire by the owner     | a block ends                | `release()`                |
//! |-----------|--------------------------|-----------------------------|----------------------------|
//! | Held      | confirm it, add a level  | inner: level off; if it was | inner: level off           |
//! |           |                          | before, `LockExpired`       |                            |
//! |           |                          | last: gone, release is owed | last: Releasing            |
//! | Releasing | anew, once it is settled | last: gone, release is owed | release again              |
//! | Released  | anew                     | level off, `LockExpired`    | gone                       |
//! | Ended     | anew, with the blocks    | level off, `LockExpired`    | an error: no token         |
//! | Lost      | `LockExpired` once, then | level off, `LockExpired`    | level off, `LockExpired`   |
//! |           | anew outside of blocks   |                             |                            |
//!
//! The other transitions: Held or Releasing becomes *Lost* when the database does not
//! have the hold any more, when it could not be extended in time, or when somebody else
//! ended it with the token. Releasing becomes *Released* when a release whose caller was
//! told of a failure succeeds in the background. A hold that its owner has released inside
//! of a block is *Ended* until the block is left; as with 0.2.5 the owner may acquire again
//! there, and the end of the block then releases what it has acquired.
//!
//! A block leaves once and for good: its level goes when its end begins, whatever the
//! database says. A `release()` can be called again: its level goes with the outcome.

use super::{Caller, Deadline, Lease, Moment, Name, Place, Token};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! identity {
    ($(#[$comment:meta])* $name:ident) => {
        $(#[$comment])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u64);

        impl $name {
            /// One that nothing in this process has had.
            #[must_use]
            pub fn fresh() -> $name {
                static NEXT: AtomicU64 = AtomicU64::new(1);
                $name(NEXT.fetch_add(1, Relaxed))
            }

            /// As a number.
            #[must_use]
            pub fn number(self) -> u64 {
                self.0
            }

            /// From [`Self::number`].
            #[must_use]
            pub fn from_number(number: u64) -> $name {
                $name(number)
            }
        }
    };
}

identity! {
    /// A Lock object.
    LockId
}
identity! {
    /// A hold, whatever its token is by now.
    HoldId
}
identity! {
    /// One entering of a hold.
    LevelId
}

/// What whoever entered a hold keeps, to leave the level that it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entered {
    /// The hold.
    pub hold: HoldId,
    /// The level in it.
    pub level: LevelId,
}

/// Why a hold is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its lease is over.
    Expired,
    /// Somebody released it.
    Released,
    /// The database could not be reached in time to extend it.
    Unreachable,
    /// The database does not have it, and nothing says why.
    Unknown,
}

impl Loss {
    /// As `LockExpired.reason` names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Loss::Expired => "expired",
            Loss::Released => "released",
            Loss::Unreachable => "unreachable",
            Loss::Unknown => "unknown",
        }
    }
}

impl Loss {
    /// Whether the database has not said so: it may have the hold yet.
    fn is_presumed(self) -> bool {
        matches!(self, Loss::Unreachable | Loss::Expired)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The condition of a hold; see the table at the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It stands, as far as its deadline says so.
    Held,
    /// A `release()` has begun, and it is not known to have succeeded.
    Releasing,
    /// That release has succeeded without its caller, who was told of a failure.
    Released,
    /// Its owner has released it inside of a block that is open, or has tried to and was
    /// told that it is lost.
    Ended(Loss),
    /// It is gone.
    Lost {
        /// Why.
        reason: Loss,
        /// An acquire of the owner has said so.
        reported: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Level {
    id: LevelId,
    kind: Kind,
    extended: bool,
}

/// How a level is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By a `release()`.
    Call,
    /// By the end of the block that entered.
    Block,
    /// By that end too, though a `release()` inside of the block has taken it off: it holds
    /// nothing, and what the owner has entered since inside of the block ends in its place.
    Released,
}

impl Level {
    fn is_block(&self) -> bool {
        self.kind != Kind::Call
    }
}

/// What an owner has of a lock.
#[derive(Debug)]
pub struct Hold {
    /// The Lock object it was taken through.
    pub lock: LockId,
    /// The name of the lock.
    pub name: Name,
    /// The proof.
    pub token: Token,
    /// The token that a transfer is giving it, or may have given it.
    pub pending: Option<Token>,
    /// The fencing number; `None` for a hold that 0.2.5 acquired.
    pub fence: Option<i64>,
    /// Until when it is certainly held.
    pub deadline: Deadline,
    /// The lease it is extended by.
    pub lease: Lease,
    /// Where it was taken.
    place: Place,
    /// How often its owner entered and has not left yet, outermost first.
    levels: Vec<Level>,
    /// Its condition.
    pub condition: Condition,
}

impl Hold {
    /// Whether it is known or must be assumed to be gone.
    #[must_use]
    pub fn expired(&self, now: Moment) -> bool {
        matches!(self.condition, Condition::Lost { .. } | Condition::Ended(_))
            || self.deadline.passed(now)
    }

    fn has_blocks(&self) -> bool {
        self.levels.iter().any(Level::is_block)
    }

    /// How many levels hold it.
    fn depth(&self) -> usize {
        let holding = |level: &&Level| level.kind != Kind::Released;
        self.levels.iter().filter(holding).count()
    }

    /// Takes off the level that a `release()` means: the innermost that is no block, as a
    /// block ends its own; or else that of the innermost block, whose end then says so.
    fn take_off(&mut self) {
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

    /// Removes the level of a block that ends. `None`: there is none. `Some(false)`: it had been
    /// taken off, and nothing was entered in its place.
    fn end_block(&mut self, id: LevelId) -> Option<bool> {
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

/// A lock that the database has granted, before its owner is told.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The identities that the hold and the level get.
    pub entered: Entered,
    /// It confirms the hold, which the owner has entered before.
    pub again: bool,
    /// The Lock object.
    pub lock: LockId,
    /// The name of the lock.
    pub name: Name,
    /// The proof.
    pub token: Token,
    /// The fencing number.
    pub fence: Option<i64>,
    /// Until when it is certainly held.
    pub deadline: Deadline,
    /// Its lease.
    pub lease: Lease,
    /// It is the beginning of a block.
    pub block: bool,
    /// It is to be extended automatically until this level is left.
    pub extended: bool,
}

/// What an acquire has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Ask the database for the lock, with a new token.
    Fresh,
    /// The owner has it: confirm and extend the hold of this token.
    Again {
        /// The hold.
        hold: HoldId,
        /// Its token.
        token: Token,
        /// Its lease.
        lease: Lease,
    },
    /// The owner had it and is told that it is lost.
    Lost(Token, Loss),
}

/// What the end of a block, or a release, has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// Nothing: an inner level is left, or a release that seemed to fail has succeeded.
    Done,
    /// An inner level is left past the deadline: confirm the hold.
    Confirm {
        /// The hold.
        hold: HoldId,
        /// Its token.
        token: Token,
        /// Its lease.
        lease: Lease,
    },
    /// Release the hold of this token.
    Release {
        /// The hold, if its caller can call again; a block's end has forgotten it.
        hold: Option<HoldId>,
        /// The proof.
        token: Token,
        /// The token that a transfer may be giving it.
        pending: Option<Token>,
        /// Its lease, if it is known.
        lease: Option<Lease>,
        /// Its deadline has not passed.
        held: bool,
        /// The owner does it, or a stranger through the owner's Lock object.
        own: bool,
    },
    /// The hold is lost; release it nevertheless (`owed`) if the database did not say so.
    Lost {
        /// The proof.
        token: Token,
        /// Its lease.
        lease: Lease,
        /// Why.
        reason: Loss,
        /// It may be in the database yet.
        owed: bool,
    },
    /// There is no hold to end.
    Nothing,
}

/// A loss of which the hold's Lock object has just learned, for those who want to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// The name of the lock.
    pub name: Name,
    /// The proof.
    pub token: Token,
    /// The fencing number of the hold.
    pub fence: Option<i64>,
    /// Why it is lost.
    pub reason: Loss,
    /// The levels that are open.
    pub levels: Vec<LevelId>,
}

/// The holds of one process. Of those of one Lock object only the newest can be alive in
/// the database: more are there when an owner outlived its lease and another took over.
#[derive(Debug, Default)]
pub struct Holds {
    all: HashMap<HoldId, Hold>,
    by_lock: HashMap<LockId, Vec<HoldId>>,
    by_token: HashMap<Token, HoldId>,
    /// The fence of a hold whose token was presented to a Lock object that did not take it.
    presented: HashMap<LockId, i64>,
}

impl Holds {
    /// Of the holds of one Lock object whose owners never release, this many are remembered.
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

    /// The caller's hold of a Lock object, or else the newest of it.
    #[must_use]
    pub fn of(&self, lock: LockId, caller: &Caller) -> Option<&Hold> {
        let id = self.owned(lock, caller).or_else(|| self.newest(lock))?;
        let hold = self.all.get(&id)?;
        (hold.condition != Condition::Released).then_some(hold)
    }

    /// A hold.
    #[must_use]
    pub fn get(&self, id: HoldId) -> Option<&Hold> {
        self.all.get(&id)
    }

    /// The hold that has this token, or may have it after a transfer.
    #[must_use]
    pub fn with_token(&self, token: &Token) -> Option<(HoldId, &Hold)> {
        let id = *self.by_token.get(token)?;
        Some((id, self.all.get(&id)?))
    }

    /// The fence of the hold whose token was presented last.
    #[must_use]
    pub fn presented(&self, lock: LockId) -> Option<i64> {
        self.presented.get(&lock).copied()
    }

    /// A token was presented to a Lock object; its hold has this fence.
    pub fn present(&mut self, lock: LockId, token: &Token, fence: Option<i64>) {
        if self
            .with_token(token)
            .is_none_or(|(_, hold)| hold.lock != lock)
        {
            match fence {
                Some(fence) => drop(self.presented.insert(lock, fence)),
                None => drop(self.presented.remove(&lock)),
            }
        }
    }

    /// Those of these holds that are there.
    #[must_use]
    pub fn living(&self, ids: &[HoldId]) -> Vec<HoldId> {
        let known = ids.iter().filter(|id| self.all.contains_key(id));
        known.copied().collect()
    }

    /// Whether the caller has a hold of a Lock object, in whatever condition.
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
                token: hold.token.clone(),
                lease: hold.lease,
            },
            Condition::Releasing | Condition::Released | Condition::Ended(_) => Entry::Fresh,
            Condition::Lost { reported: true, .. } if !hold.has_blocks() => Entry::Fresh,
            Condition::Lost { reason, .. } => {
                let reported = true;
                hold.condition = Condition::Lost { reason, reported };
                Entry::Lost(hold.token.clone(), reason)
            }
        }
    }

    /// The owner is told that it has the lock. `None` if the hold it wanted to enter again
    /// has ended or expired meanwhile; otherwise the levels that are to be extended from now on.
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
            // Whatever became known since this answer was sent for counts too.
            hold.deadline = hold.deadline.max(grant.deadline);
            if grant.lease != Lease::ZERO && hold.deadline.passed(now) {
                return None;
            }
            hold.lease = grant.lease;
            hold.levels.push(level);
            return Some(vec![grant.entered]);
        }
        // Those that this one replaces: lost and reported, or released.
        let mut levels = Vec::new();
        while let Some(id) = self.owned(grant.lock, caller) {
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
        // Inside of blocks whose hold was released, a call takes the place of that.
        if levels.is_empty() || grant.block {
            levels.push(level);
        }
        let opened = levels.iter().map(|level| Entered {
            hold: grant.entered.hold,
            level: level.id,
        });
        let opened = opened.collect();
        let siblings = self.by_lock.entry(grant.lock).or_default();
        siblings.push(grant.entered.hold);
        if siblings.len() > Holds::MANY {
            let oldest = siblings[0];
            self.remove(oldest);
        }
        self.by_token
            .insert(grant.token.clone(), grant.entered.hold);
        let hold = Hold {
            lock: grant.lock,
            name: grant.name,
            token: grant.token,
            pending: None,
            fence: grant.fence,
            deadline: grant.deadline,
            lease: grant.lease,
            place: caller.place,
            levels,
            condition: Condition::Held,
        };
        self.all.insert(grant.entered.hold, hold);
        Some(opened)
    }

    fn remove(&mut self, id: HoldId) {
        let Some(hold) = self.all.remove(&id) else {
            return;
        };
        self.by_token.remove(&hold.token);
        if let Some(pending) = &hold.pending {
            self.by_token.remove(pending);
        }
        if let Some(siblings) = self.by_lock.get_mut(&hold.lock) {
            siblings.retain(|other| *other != id);
            if siblings.is_empty() {
                self.by_lock.remove(&hold.lock);
            }
        }
    }

    /// A Lock object is gone: nobody asks for its holds any more, except for those that
    /// are extended until somebody releases them. Tells whether there are any.
    pub fn forget(&mut self, lock: LockId) -> bool {
        self.presented.remove(&lock);
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

    /// The block that the end of a `with lock` belongs to: the caller's innermost, or else
    /// the oldest that is open.
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

    /// A block ends. Its level is gone afterwards.
    #[must_use]
    pub fn leave(&mut self, entered: Entered, now: Moment) -> Ending {
        let mut id = entered.hold;
        let has_level = |hold: &Hold| hold.levels.iter().any(|level| level.id == entered.level);
        if !self.all.get(&id).is_some_and(has_level) {
            // Of a hold that was released inside of the block, and acquired again.
            let moved = self.all.iter().find(|(_, hold)| has_level(hold));
            id = moved.map_or(id, |(id, _)| *id);
        }
        let Some(hold) = self.all.get_mut(&id) else {
            return Ending::Nothing;
        };
        let Some(holding) = hold.end_block(entered.level) else {
            // An attempt that came to nothing, or that has been given up before.
            return Ending::Done;
        };
        let (token, lease, last) = (hold.token.clone(), hold.lease, hold.depth() == 0);
        let pending = hold.pending.clone();
        let held = !hold.deadline.passed(now);
        let lost = |token, reason, owed| Ending::Lost {
            token,
            lease,
            reason,
            owed,
        };
        let ending = match hold.condition {
            Condition::Held | Condition::Releasing if !holding => {
                return lost(token, Loss::Released, false);
            }
            Condition::Held | Condition::Releasing if last => Ending::Release {
                hold: None,
                token,
                pending,
                lease: Some(lease),
                held,
                own: true,
            },
            Condition::Held if !held => Ending::Confirm {
                hold: id,
                token,
                lease,
            },
            Condition::Held | Condition::Releasing => Ending::Done,
            Condition::Released => lost(token, Loss::Released, false),
            Condition::Ended(reason) => lost(token, reason, false),
            Condition::Lost { reason, .. } => lost(token, reason, last && reason.is_presumed()),
        };
        if last {
            self.remove(id);
        }
        ending
    }

    /// Somebody calls `release()`, with a token or for what the Lock object holds.
    #[must_use]
    pub fn release(
        &mut self,
        lock: LockId,
        caller: &Caller,
        token: Option<&Token>,
        now: Moment,
    ) -> Ending {
        let owned = self.owned(lock, caller);
        let target = match token {
            Some(token) => self.by_token.get(token).copied(),
            None => owned.or_else(|| self.newest(lock)),
        };
        let Some((id, hold)) = target.and_then(|id| Some((id, self.all.get_mut(&id)?))) else {
            return token.map_or(Ending::Nothing, |token| Ending::Release {
                hold: None,
                token: token.clone(),
                pending: None,
                lease: None,
                held: false,
                own: false,
            });
        };
        let (given, lease) = (token, hold.lease);
        let token = token.unwrap_or(&hold.token).clone();
        let inner = owned == Some(id) && hold.depth() > 1;
        let held = !hold.deadline.passed(now);
        match hold.condition {
            Condition::Held if inner => {
                hold.take_off();
                if held {
                    return Ending::Done;
                }
                Ending::Confirm {
                    hold: id,
                    token,
                    lease,
                }
            }
            Condition::Held | Condition::Releasing => {
                hold.condition = Condition::Releasing;
                Ending::Release {
                    hold: Some(id),
                    pending: hold.pending.clone().filter(|pending| *pending != token),
                    token,
                    lease: Some(lease),
                    held,
                    own: given.is_none() || owned == Some(id),
                }
            }
            Condition::Released => {
                self.remove(id);
                Ending::Done
            }
            Condition::Ended(_) if given.is_none() => Ending::Nothing,
            Condition::Ended(reason) => Ending::Lost {
                token,
                lease,
                reason,
                owed: false,
            },
            Condition::Lost { reason, .. } => {
                let last = !inner;
                if inner {
                    hold.take_off();
                } else if hold.has_blocks() {
                    if owned == Some(id) {
                        hold.condition = Condition::Ended(reason);
                    }
                } else {
                    self.remove(id);
                }
                Ending::Lost {
                    token,
                    lease,
                    reason,
                    owed: last && reason.is_presumed(),
                }
            }
        }
    }

    /// The database has ended a hold for `release()`. Its owner is to hear of it if it is
    /// in a block, or if somebody else (not `own`) has done it.
    pub fn released(&mut self, id: HoldId, own: bool) -> Option<Reported> {
        let blocks = self.all.get(&id)?.has_blocks();
        if own && !blocks {
            self.remove(id);
            return None;
        }
        let reported = self.lost(id, Loss::Released)?;
        if let Some(hold) = self.all.get_mut(&id).filter(|_| own) {
            hold.condition = Condition::Ended(Loss::Released);
        }
        Some(reported)
    }

    /// A release that was owed has been done, or was not needed any more.
    pub fn settled(&mut self, token: &Token) -> Option<Reported> {
        let id = *self.by_token.get(token)?;
        let hold = self.all.get_mut(&id)?;
        if hold.condition != Condition::Releasing {
            return None;
        }
        if hold.has_blocks() {
            return self.released(id, true);
        }
        hold.condition = Condition::Released;
        None
    }

    /// The database said for `release()` that a hold was gone before. The caller is told
    /// so; the hold stays for blocks that are open.
    pub fn not_released(&mut self, id: HoldId, reason: Loss, own: bool) -> Option<Reported> {
        if !self.all.get(&id)?.has_blocks() {
            self.remove(id);
            return None;
        }
        let reported = self.lost(id, reason);
        if let Some(hold) = self.all.get_mut(&id).filter(|_| own) {
            hold.condition = Condition::Ended(reason);
        }
        reported
    }

    /// A hold is gone. Tells it once.
    pub fn lost(&mut self, id: HoldId, reason: Loss) -> Option<Reported> {
        let hold = self.all.get_mut(&id)?;
        if matches!(hold.condition, Condition::Lost { .. } | Condition::Ended(_)) {
            return None;
        }
        let reported = false;
        hold.condition = Condition::Lost { reason, reported };
        Some(Reported {
            name: hold.name.clone(),
            token: hold.token.clone(),
            fence: hold.fence,
            reason,
            levels: hold.levels.iter().map(|level| level.id).collect(),
        })
    }

    /// The lease of a hold is over for want of an extension, if it is.
    pub fn expire(&mut self, id: HoldId, reason: Loss, now: Moment) -> Option<Reported> {
        let hold = self.all.get(&id)?;
        if hold.condition == Condition::Held && hold.deadline.passed(now) {
            return self.lost(id, reason);
        }
        None
    }

    /// An acquire of the owner has said that the hold is lost.
    pub fn reported(&mut self, id: HoldId) {
        if let Some(hold) = self.all.get_mut(&id) {
            if let Condition::Lost { reported, .. } = &mut hold.condition {
                *reported = true;
            }
        }
    }

    /// A level that is to be extended automatically, or watched, and its hold: `None` if
    /// there is nothing to do for it any more.
    #[must_use]
    pub fn watched(&self, entered: Entered) -> Option<(&Hold, bool)> {
        let hold = self.all.get(&entered.hold)?;
        let level = hold.levels.iter().find(|level| level.id == entered.level)?;
        (hold.condition == Condition::Held).then_some((hold, level.extended))
    }

    /// The lease to renew a hold by at once: a level wants it extended, and that is late
    /// already.
    #[must_use]
    pub fn overdue(&self, id: HoldId, now: Moment) -> Option<Lease> {
        let hold = self.all.get(&id)?;
        let extended = hold.levels.iter().any(|level| level.extended);
        let late = hold.deadline.remaining(now) < hold.lease.seconds() * 0.6;
        (extended && late && hold.condition == Condition::Held).then_some(hold.lease)
    }

    /// A level is extended automatically no longer.
    pub fn stop_extending(&mut self, entered: Entered) {
        let hold = self.all.get_mut(&entered.hold);
        let levels = hold.map_or(&mut [][..], |hold| &mut hold.levels);
        if let Some(level) = levels.iter_mut().find(|level| level.id == entered.level) {
            level.extended = false;
        }
    }

    /// The lease of a hold was extended, though perhaps by less than is known by now: answers
    /// come late, and the database shortens none. Tells the deadline that the hold has.
    ///
    /// `None` if the `fence` is another one: that is another hold, whose token is the same.
    pub fn extended(
        &mut self,
        id: HoldId,
        fence: Option<i64>,
        deadline: Deadline,
    ) -> Option<Deadline> {
        let Some(hold) = self.all.get_mut(&id) else {
            return Some(deadline);
        };
        if hold.fence.is_some() && hold.fence != fence {
            return None;
        }
        hold.deadline = hold.deadline.max(deadline);
        Some(hold.deadline)
    }

    /// The hold of `old` is about to have another token, or (`None`) is not.
    pub fn transferring(&mut self, old: &Token, new: Option<Token>) {
        let Some(id) = self.by_token.get(old).copied() else {
            return;
        };
        let Some(hold) = self.all.get_mut(&id) else {
            return;
        };
        if let Some(before) = std::mem::replace(&mut hold.pending, new.clone()) {
            self.by_token.remove(&before);
        }
        if let Some(new) = new {
            self.by_token.insert(new, id);
        }
    }

    /// The hold of `old` has the token `new` now.
    pub fn transferred(&mut self, old: &Token, new: &Token) {
        let Some(id) = self.by_token.remove(old) else {
            return;
        };
        if let Some(hold) = self.all.get_mut(&id) {
            if let Some(pending) = hold.pending.take() {
                self.by_token.remove(&pending);
            }
            hold.token = new.clone();
            self.by_token.insert(new.clone(), id);
        }
    }

    /// Whether a Lock object holds something, as far as it knows.
    #[must_use]
    pub fn holds_any(&self, lock: LockId) -> bool {
        let ids = self.by_lock.get(&lock).map_or(&[][..], Vec::as_slice);
        let mut holds = ids.iter().filter_map(|id| self.all.get(id));
        holds.any(|hold| hold.condition != Condition::Released)
    }
}

#[cfg(test)]
mod promises;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::time::Duration;

    /// What owners, blocks and the database may do.
    #[derive(Clone, Debug)]
    enum Step {
        Acquire {
            owner: usize,
            block: bool,
            works: bool,
        },
        Leave {
            owner: usize,
        },
        LeaveTwice {
            owner: usize,
        },
        Release {
            owner: usize,
            works: bool,
        },
        ReleaseByToken {
            of: usize,
        },
        Lose {
            owner: usize,
        },
        Settle {
            owner: usize,
        },
        Transfer {
            owner: usize,
        },
        Pass {
            millis: u64,
        },
    }

    const OWNERS: usize = 3;

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let owner = 0..OWNERS;
        let works = prop::bool::weighted(0.8);
        let step = prop_oneof![
            5 => (owner.clone(), any::<bool>(), works)
                .prop_map(|(owner, block, works)| Step::Acquire { owner, block, works }),
            4 => owner.clone().prop_map(|owner| Step::Leave { owner }),
            1 => owner.clone().prop_map(|owner| Step::LeaveTwice { owner }),
            3 => (owner.clone(), works).prop_map(|(owner, works)| Step::Release { owner, works }),
            1 => owner.clone().prop_map(|of| Step::ReleaseByToken { of }),
            1 => owner.clone().prop_map(|owner| Step::Lose { owner }),
            1 => owner.clone().prop_map(|owner| Step::Settle { owner }),
            1 => owner.prop_map(|owner| Step::Transfer { owner }),
            1 => (0..800u64).prop_map(|millis| Step::Pass { millis }),
        ];
        prop::collection::vec(step, 1..80)
    }

    /// What the model knows of an owner: the levels that it opened and did not leave.
    #[derive(Clone, Debug, Default)]
    struct Model {
        remembered: Vec<HoldId>,
        blocks: Vec<Entered>,
        left: Vec<Entered>,
        hold: Option<HoldId>,
    }

    fn caller(owner: usize, model: &Model) -> Caller {
        Caller {
            place: Place::current(Some(owner as u64 + 1), None),
            remembered: Arc::from(model.remembered.clone()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Whatever happens: a block is left once and its level is gone, nobody enters a
        /// hold that is ending or lost, no owner's step changes the levels of another's
        /// hold, and what nobody has open is not extended.
        #[test]
        fn levels_are_what_was_opened_and_not_left(steps in steps()) {
            let mut holds = Holds::default();
            let lock = LockId::fresh();
            let mut models = vec![Model::default(); OWNERS];
            let mut now = Moment::now();
            for step in steps {
                let levels = |holds: &Holds, id: HoldId| {
                    holds.get(id).map(|hold| hold.levels.len())
                };
                let before: Vec<_> = models
                    .iter()
                    .map(|model| model.hold.and_then(|id| levels(&holds, id)))
                    .collect();
                let mut acts = None;
                match step {
                    Step::Pass { millis } => now = now + Duration::from_millis(millis),
                    Step::Acquire { owner, block, works } => {
                        acts = Some(owner);
                        let caller = caller(owner, &models[owner]);
                        let (again, entry_token) = match holds.entry(lock, &caller, true) {
                            Entry::Fresh => (None, Token::random()),
                            Entry::Again { hold, token, .. } => {
                                prop_assert_eq!(holds.get(hold).unwrap().condition, Condition::Held);
                                prop_assert_eq!(models[owner].hold, Some(hold));
                                (Some(hold), token)
                            }
                            Entry::Lost(..) => continue,
                        };
                        if !works {
                            continue;
                        }
                        let entered = Entered {
                            hold: again.unwrap_or_else(HoldId::fresh),
                            level: LevelId::fresh(),
                        };
                        let grant = Grant {
                            entered,
                            again: again.is_some(),
                            lock,
                            name: Name::new("name").unwrap(),
                            token: entry_token,
                            fence: Some(1),
                            deadline: Deadline::new(now, 1.0),
                            lease: Lease::SECOND,
                            block,
                            extended: true,
                        };
                        prop_assert!(holds.open(grant, &caller, Moment::now()).is_some());
                        let model = &mut models[owner];
                        for open in &mut model.blocks {
                            // Those of a hold that was released inside of them have moved.
                            let hold = holds.get(entered.hold).unwrap();
                            if hold.levels.iter().any(|level| level.id == open.level) {
                                open.hold = entered.hold;
                            }
                        }
                        model.hold = Some(entered.hold);
                        model.remembered.push(entered.hold);
                        if block {
                            model.blocks.push(entered);
                        }
                        let hold = holds.get(entered.hold).unwrap();
                        prop_assert!(hold.condition == Condition::Held && !hold.levels.is_empty());
                    }
                    Step::Leave { owner } => {
                        acts = Some(owner);
                        let caller = caller(owner, &models[owner]);
                        let Some(entered) = models[owner].blocks.pop() else { continue };
                        let last = holds.get(entered.hold).is_some_and(|hold| {
                            hold.levels.len() == 1 && hold.levels[0].id == entered.level
                        });
                        let over = holds.get(entered.hold).is_some_and(|hold| {
                            hold.levels.last().is_some_and(|level| {
                                level.id == entered.level && level.kind == Kind::Released
                            })
                        });
                        let ending = holds.leave(entered, now);
                        let told = matches!(ending, Ending::Lost { .. });
                        prop_assert!(told || !over, "a block ends that holds nothing");
                        models[owner].left.push(entered);
                        // Whatever the database is going to say.
                        prop_assert!(holds.watched(entered).is_none());
                        if last {
                            prop_assert!(holds.get(entered.hold).is_none());
                            let fresh = matches!(
                                holds.entry(lock, &caller, true),
                                Entry::Fresh | Entry::Again { .. } | Entry::Lost(..)
                            );
                            prop_assert!(fresh);
                        }
                    }
                    Step::LeaveTwice { owner } => {
                        let Some(entered) = models[owner].left.last().copied() else { continue };
                        let ending = holds.leave(entered, now);
                        prop_assert!(matches!(ending, Ending::Nothing | Ending::Done));
                    }
                    Step::Release { owner, works } => {
                        acts = Some(owner);
                        let caller = caller(owner, &models[owner]);
                        if !holds.is_owned(lock, &caller) {
                            continue;
                        }
                        if let Ending::Release { hold, own, .. } =
                            holds.release(lock, &caller, None, now)
                        {
                            let id = hold.unwrap();
                            prop_assert!(own);
                            prop_assert_eq!(holds.get(id).unwrap().condition, Condition::Releasing);
                            // Neither entered nor extended from now on.
                            prop_assert_eq!(holds.entry(lock, &caller, true), Entry::Fresh);
                            for entered in &models[owner].blocks {
                                prop_assert!(holds.watched(*entered).is_none());
                            }
                            if works {
                                holds.released(id, own);
                            }
                        }
                    }
                    Step::ReleaseByToken { of } => {
                        let token = models[of].hold.and_then(|id| Some(holds.get(id)?.token.clone()));
                        let (Some(token), Some(id)) = (token, models[of].hold) else { continue };
                        let stranger = Caller {
                            place: Place::current(Some(99), None),
                            remembered: Arc::from([]),
                        };
                        acts = Some(of);
                        match holds.release(lock, &stranger, Some(&token), now) {
                            Ending::Release { hold, own, .. } => {
                                prop_assert!(!own);
                                prop_assert_eq!(hold, Some(id));
                                let reported = holds.released(id, own).unwrap();
                                prop_assert_eq!(reported.reason, Loss::Released);
                                prop_assert!(holds.get(id).unwrap().expired(now));
                                // Told once.
                                prop_assert_eq!(holds.lost(id, Loss::Unknown), None);
                            }
                            Ending::Lost { .. } | Ending::Done => {}
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                    Step::Lose { owner } => {
                        let Some(id) = models[owner].hold else { continue };
                        let told = holds.lost(id, Loss::Unreachable);
                        prop_assert_eq!(holds.lost(id, Loss::Unreachable), None);
                        if told.is_some() {
                            prop_assert!(holds.get(id).unwrap().expired(now));
                        }
                    }
                    Step::Settle { owner } => {
                        acts = Some(owner);
                        let token = models[owner].hold.and_then(|id| Some(holds.get(id)?.token.clone()));
                        if let Some(token) = token {
                            let _ = holds.settled(&token);
                        }
                    }
                    Step::Transfer { owner } => {
                        let old = models[owner].hold.and_then(|id| Some(holds.get(id)?.token.clone()));
                        let Some(old) = old else { continue };
                        let new = Token::random();
                        holds.transferring(&old, Some(new.clone()));
                        prop_assert!(holds.with_token(&new).is_some());
                        holds.transferred(&old, &new);
                        prop_assert!(holds.with_token(&old).is_none());
                        prop_assert_eq!(holds.with_token(&new).map(|(id, _)| id), models[owner].hold);
                    }
                }
                for (owner, before) in before.iter().enumerate() {
                    if acts != Some(owner) {
                        let after = models[owner].hold.and_then(|id| levels(&holds, id));
                        prop_assert_eq!(&after, before, "another owner's levels changed");
                    }
                }
                for (id, hold) in &holds.all {
                    prop_assert_eq!(holds.by_token.get(&hold.token), Some(id));
                    // What is extended or kept, somebody is inside of or has to release.
                    prop_assert!(hold.condition != Condition::Held || hold.depth() > 0);
                    let released = |level: &Level| level.kind == Kind::Released;
                    prop_assert!(!hold.levels.iter().any(|level| released(level) && level.extended));
                    prop_assert!(holds.by_lock[&lock].contains(id));
                }
                prop_assert_eq!(
                    holds.by_lock.values().map(Vec::len).sum::<usize>(),
                    holds.all.len()
                );
            }
            // Everybody leaves: no block is open, and nothing is extended.
            for model in &models {
                for entered in &model.blocks {
                    let _ = holds.leave(*entered, now);
                }
            }
            prop_assert!(holds.all.values().all(|hold| !hold.has_blocks()));
        }
    }

    #[test]
    fn a_late_exit_ends_its_own_hold() {
        let (mut holds, lock, now) = (Holds::default(), LockId::fresh(), Moment::now());
        let mut enter = |task: u64| {
            let entered = Entered {
                hold: HoldId::fresh(),
                level: LevelId::fresh(),
            };
            let grant = Grant {
                entered,
                again: false,
                lock,
                name: Name::new("name").unwrap(),
                token: Token::random(),
                fence: None,
                deadline: Deadline::new(now, 1.0),
                lease: Lease::SECOND,
                block: true,
                extended: false,
            };
            let caller = Caller {
                place: Place::current(Some(task), None),
                remembered: Arc::from([entered.hold]),
            };
            assert!(holds.open(grant, &caller, Moment::now()).is_some());
            entered
        };
        let (first, second) = (enter(1), enter(2));
        let stranger = Caller {
            place: Place::current(Some(3), None),
            remembered: Arc::from([]),
        };
        assert_eq!(holds.block(lock, &stranger), Some(first));
        assert!(matches!(holds.leave(first, now), Ending::Release { .. }));
        assert!(holds.watched(second).is_some());
        assert_eq!(holds.block(lock, &stranger), Some(second));
    }
}
