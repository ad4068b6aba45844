//! Transitions that keep a hold: extensions and transfers.

use super::super::{Condition, Deadline, Entered, Hold, HoldId, Lease, Moment, Token};
use super::Holds;

impl Holds {
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

    /// The hold of `old` is about to have another token.
    pub fn transferring(&mut self, old: &Token, new: &Token) {
        let Some(id) = self.by_token.get(old).copied() else {
            return;
        };
        let Some(hold) = self.all.get_mut(&id) else {
            return;
        };
        if let Some(before) = hold.pending.replace(new.clone()) {
            self.by_token.remove(&before);
        }
        self.by_token.insert(new.clone(), id);
    }

    /// It is not going to have that one.
    pub fn not_transferred(&mut self, old: &Token, new: &Token) {
        let id = self.by_token.get(old).copied();
        let hold = id.and_then(|id| self.all.get_mut(&id));
        if let Some(hold) = hold.filter(|hold| hold.pending.as_ref() == Some(new)) {
            hold.pending = None;
            self.by_token.remove(new);
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
}
