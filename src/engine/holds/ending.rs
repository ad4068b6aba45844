//! Transitions that end a hold: the end of a block, a release, a loss.

use super::super::{
    Caller, Condition, Entered, Gone, Hold, HoldId, Key, Lease, LockId, Loss, Moment, Token,
};
use super::{Holds, Reported};

/// What ending a block, or a release, requires.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// Nothing: an inner level was left, or a release that seemed to fail has succeeded.
    Done,
    /// An inner level was left past the deadline: confirm the hold.
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
        /// The hold, if its caller can retry; the end of a block has already forgotten it.
        hold: Option<HoldId>,
        /// Proves ownership.
        token: Token,
        /// The token that a transfer may have given it.
        pending: Option<Token>,
        /// Its lease, if known.
        lease: Option<Lease>,
        /// Its fence, if known.
        fence: Option<i64>,
        /// Its deadline has not passed.
        held: bool,
        /// Whether its owner does it, rather than a stranger through the owner's Lock object.
        own: bool,
    },
    /// The hold is lost; release it anyway (`owed`) unless the database said so.
    Lost {
        /// Proves ownership.
        token: Token,
        /// Its lease.
        lease: Lease,
        /// Why.
        reason: Loss,
        /// The database may still have it.
        owed: bool,
    },
    /// There is no hold to end.
    Nothing,
}

impl Ending {
    /// Releases the hold of a token that no Lock object of this process has acquired.
    #[must_use]
    pub fn of_a_stranger(token: &Token) -> Ending {
        Ending::Release {
            hold: None,
            token: token.clone(),
            pending: None,
            lease: None,
            fence: None,
            held: false,
            own: false,
        }
    }
}

impl Holds {
    /// A block ends. Afterwards its level is gone.
    #[must_use]
    pub fn leave(&mut self, entered: Entered, now: Moment) -> Ending {
        let mut id = entered.hold;
        let has_level = |hold: &Hold| hold.levels.iter().any(|level| level.id == entered.level);
        if !self.all.get(&id).is_some_and(has_level) {
            // The hold was released inside the block, and the lock acquired again.
            let moved = self.all.iter().find(|(_, hold)| has_level(hold));
            id = moved.map_or(id, |(id, _)| *id);
        }
        let Some(hold) = self.all.get_mut(&id) else {
            return Ending::Nothing;
        };
        let Some(holding) = hold.end_block(entered.level) else {
            // The attempt failed, or was given up before.
            return Ending::Done;
        };
        let (token, lease, last) = (hold.key.token.clone(), hold.lease, hold.depth() == 0);
        let pending = hold.pending.clone();
        let held = !hold.deadline.passed(now);
        let lost = |token, reason, owed| Ending::Lost {
            token,
            lease,
            reason,
            owed,
        };
        let ending = match hold.condition {
            Condition::Held | Condition::Releasing { .. } if !holding => {
                return lost(token, Loss::Released, false);
            }
            Condition::Held | Condition::Releasing { .. } if last => Ending::Release {
                hold: None,
                token,
                pending,
                lease: Some(lease),
                fence: hold.fence,
                held,
                own: true,
            },
            Condition::Held if !held => Ending::Confirm {
                hold: id,
                token,
                lease,
            },
            Condition::Held | Condition::Releasing { .. } => Ending::Done,
            Condition::Released => lost(token, Loss::Released, false),
            Condition::Ended(reason) => lost(token, reason, false),
            Condition::Lost { reason, .. } => lost(token, reason, last && reason.is_presumed()),
        };
        if last {
            if !held {
                self.lost.insert(hold.lock);
            }
            self.remove(id);
        }
        ending
    }

    /// A caller calls `release()`, with a key or for the Lock object's own hold.
    #[must_use]
    #[allow(clippy::too_many_lines)] // the last column of the table of conditions
    pub fn release(
        &mut self,
        lock: LockId,
        caller: &Caller,
        key: Option<&Key>,
        now: Moment,
    ) -> Ending {
        let owned = self.owned(lock, caller);
        let target = match key {
            Some(key) => self.by_key.get(key).copied(),
            None => owned.or_else(|| self.newest(lock)),
        };
        let Some((id, hold)) = target.and_then(|id| Some((id, self.all.get_mut(&id)?))) else {
            return key.map_or(Ending::Nothing, |key| Ending::of_a_stranger(&key.token));
        };
        let lease = hold.lease;
        let token = key.unwrap_or(&hold.key).token.clone();
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
            condition @ (Condition::Held | Condition::Releasing { .. }) => {
                let own = key.is_none() || owned == Some(id);
                let known = own || condition == Condition::Releasing { known: true };
                hold.condition = Condition::Releasing { known };
                Ending::Release {
                    hold: Some(id),
                    pending: hold.pending.clone().filter(|pending| *pending != token),
                    token,
                    lease: Some(lease),
                    fence: hold.fence,
                    held,
                    own,
                }
            }
            Condition::Released => {
                self.remove(id);
                Ending::Done
            }
            Condition::Ended(_) if key.is_none() => Ending::Nothing,
            Condition::Ended(reason) => Ending::Lost {
                token,
                lease,
                reason,
                owed: false,
            },
            Condition::Lost { reason, .. } => {
                if inner {
                    hold.take_off();
                } else if !hold.has_blocks() {
                    self.remove(id);
                } else if owned == Some(id) {
                    hold.condition = Condition::Ended(reason);
                }
                Ending::Lost {
                    token,
                    lease,
                    reason,
                    owed: !inner && reason.is_presumed(),
                }
            }
        }
    }

    /// The database has ended a hold for `release()`. Tells its owner if it is in a block, or if
    /// another caller (not `own`) ended it.
    pub fn released(&mut self, id: HoldId, own: bool) -> Option<Reported> {
        let hold = self.all.get(&id)?;
        let own = own || hold.found_gone.is_some_and(|gone| gone.own);
        let blocks = hold.has_blocks();
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

    /// An owed release was done, or turned out to be unnecessary.
    pub fn settled(&mut self, key: &Key) -> Option<Reported> {
        let id = *self.by_key.get(key)?;
        let hold = self.all.get_mut(&id)?;
        let Condition::Releasing { known } = hold.condition else {
            return None;
        };
        if hold.is_release_news() {
            return self.released(id, known);
        }
        hold.condition = Condition::Released;
        None
    }

    /// The database answered a `release()` that the hold was already gone. The caller is told so,
    /// which is enough for its own levels; the hold stays for open blocks.
    ///
    /// If `another` release is under way and the owner has called one, the hold may have ended as the
    /// owner wants: then nothing is lost, and the last release tells ([`Holds::last_release`]).
    pub fn not_released(
        &mut self,
        id: HoldId,
        reason: Loss,
        own: bool,
        another: bool,
    ) -> Option<Reported> {
        let hold = self.all.get_mut(&id)?;
        let own = own || hold.found_gone.is_some_and(|gone| gone.own);
        if another && hold.condition == (Condition::Releasing { known: true }) {
            hold.found_gone = Some(Gone { reason, own });
            return None;
        }
        if !hold.has_blocks() {
            let told = hold.recorded_loss().is_some();
            let (key, fence) = (hold.key.clone(), hold.fence);
            self.remove(id);
            return (!told).then_some(Reported {
                key,
                fence,
                reason,
                levels: Vec::new(),
            });
        }
        let reported = self.lost(id, reason);
        if let Some(hold) = self.all.get_mut(&id).filter(|_| own) {
            hold.condition = Condition::Ended(reason);
        }
        reported
    }

    /// The last release under way has failed. If the owner was told that the hold is gone, it is.
    pub fn last_release(&mut self, key: &Key) -> Option<Reported> {
        let id = *self.by_key.get(key)?;
        let gone = self.all.get_mut(&id)?.found_gone.take()?;
        if gone.own {
            self.not_released(id, gone.reason, true, false)
        } else {
            None
        }
    }

    /// The database does not have a hold. If its owner is releasing it, that may be why.
    pub fn not_found(&mut self, id: HoldId, reason: Loss) -> Option<Reported> {
        let releasing = Condition::Releasing { known: true };
        if self.all.get(&id)?.condition == releasing {
            return None;
        }
        self.lost(id, reason)
    }

    /// A hold is lost. Reports it only once.
    pub fn lost(&mut self, id: HoldId, reason: Loss) -> Option<Reported> {
        let hold = self.all.get_mut(&id)?;
        if hold.recorded_loss().is_some() {
            return None;
        }
        let reported = false;
        hold.condition = Condition::Lost { reason, reported };
        self.lost.insert(hold.lock);
        Some(Reported {
            key: hold.key.clone(),
            fence: hold.fence,
            reason,
            levels: hold.levels.iter().map(|level| level.id).collect(),
        })
    }

    /// Marks a hold as lost if its lease has run out.
    pub fn expire(&mut self, id: HoldId, reason: Loss, now: Moment) -> Option<Reported> {
        let hold = self.all.get(&id)?;
        let standing = hold.condition == Condition::Held || hold.is_release_news();
        if standing && hold.deadline.passed(now) {
            return self.lost(id, reason);
        }
        None
    }

    /// The same for the caller's hold of a Lock object, or else the latest.
    pub fn expire_of(&mut self, lock: LockId, caller: &Caller, now: Moment) -> Option<Reported> {
        let id = self.owned(lock, caller).or_else(|| self.newest(lock))?;
        let extended = |hold: &Hold| hold.levels.iter().any(|level| level.extended);
        let reason = if self.all.get(&id).is_some_and(extended) {
            Loss::Unreachable
        } else {
            Loss::Expired
        };
        self.expire(id, reason, now)
    }

    /// An acquire by the owner has reported the loss.
    pub fn reported(&mut self, id: HoldId) {
        if let Some(hold) = self.all.get_mut(&id) {
            if let Condition::Lost { reported, .. } = &mut hold.condition {
                *reported = true;
            }
        }
    }
}
