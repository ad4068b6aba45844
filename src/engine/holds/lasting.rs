//! Transitions that keep a hold: extensions and transfers.

use super::super::{Condition, Deadline, Entered, Hold, HoldId, Key, Lease, Moment, Token};
use super::Holds;

impl Holds {
    /// A level to extend automatically or to watch, with its hold: `None` if there is nothing left
    /// to do for it.
    #[must_use]
    pub fn watched(&self, entered: Entered) -> Option<(&Hold, bool)> {
        let hold = self.all.get(&entered.hold)?;
        let level = hold.levels.iter().find(|level| level.id == entered.level)?;
        match hold.condition {
            Condition::Held => Some((hold, level.extended)),
            _ if hold.is_release_news() => Some((hold, false)),
            _ => None,
        }
    }

    /// The lease with which to renew a hold at once: a level wants it extended, and that is
    /// overdue.
    #[must_use]
    pub fn overdue(&self, id: HoldId, now: Moment) -> Option<Lease> {
        let hold = self.all.get(&id)?;
        let extended = hold.levels.iter().any(|level| level.extended);
        let late = hold.deadline.remaining(now) < hold.lease.seconds() * 0.6;
        (extended && late && hold.condition == Condition::Held).then_some(hold.lease)
    }

    /// Stops extending a level automatically.
    pub fn stop_extending(&mut self, entered: Entered) {
        let hold = self.all.get_mut(&entered.hold);
        let levels = hold.map_or(&mut [][..], |hold| &mut hold.levels);
        if let Some(level) = levels.iter_mut().find(|level| level.id == entered.level) {
            level.extended = false;
        }
    }

    /// The lease of a hold was extended, though perhaps to an earlier deadline than already known:
    /// answers come late, and the database never shortens a lease. Returns the hold's deadline.
    ///
    /// `None` if the `fence` differs: that is another hold with the same token; or if the loss of the
    /// hold was told.
    pub fn extended(
        &mut self,
        id: HoldId,
        fence: Option<i64>,
        deadline: Deadline,
    ) -> Option<Deadline> {
        let Some(hold) = self.all.get_mut(&id) else {
            return Some(deadline);
        };
        let another = hold.fence.is_some() && hold.fence != fence;
        if another || hold.recorded_loss().is_some() {
            return None;
        }
        hold.deadline = hold.deadline.max(deadline);
        Some(hold.deadline)
    }

    /// The hold of `old` is about to get the token `new`, unless an earlier transfer may have given
    /// it another one.
    pub fn transferring(&mut self, old: &Key, new: &Token) {
        let Some(id) = self.by_key.get(old).copied() else {
            return;
        };
        let hold = self.all.get_mut(&id);
        if let Some(hold) = hold.filter(|hold| hold.key == *old && hold.pending.is_none()) {
            hold.pending = Some(new.clone());
            self.by_key.insert(old.with(new), id);
        }
    }

    /// It will not get that token.
    pub fn not_transferred(&mut self, old: &Key, new: &Token) {
        let id = self.by_key.get(old).copied();
        let hold = id.and_then(|id| self.all.get_mut(&id));
        if let Some(hold) = hold.filter(|hold| hold.pending.as_ref() == Some(new)) {
            hold.pending = None;
            self.by_key.remove(&old.with(new));
        }
    }

    /// The caller of the transfer is about to know the token `new`, so the owner may know it too.
    pub fn transferred(&mut self, old: &Key, new: &Token) {
        let Some(id) = self.by_key.remove(old) else {
            return;
        };
        if let Some(hold) = self.all.get_mut(&id) {
            if let Some(pending) = hold.pending.take() {
                self.by_key.remove(&old.with(&pending));
            }
            hold.key = old.with(new);
            self.by_key.insert(hold.key.clone(), id);
        }
    }
}
