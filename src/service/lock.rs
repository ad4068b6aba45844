//! A Lock object: its identity, and what this process knows about its holds.

use super::registry::registry;
use crate::engine::{Caller, Entered, Hold, LockId, Moment, Name, Token};
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::process_id;

/// A Lock object.
#[derive(Debug)]
pub struct Lock {
    id: LockId,
    name: Name,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let process = process_id();
        if registry(process).with(|holds| holds.forget(self.id)) {
            // Nothing is released: the token may have been handed out.
            log::debug!(
                "the Lock object of {} is gone; its hold lasts until somebody releases it \
                 with its token, or it expires",
                self.name
            );
        }
    }
}

impl Lock {
    /// A lock that nobody holds through this object.
    #[must_use]
    pub fn new(name: Name) -> Lock {
        Lock {
            id: LockId::fresh(),
            name,
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> LockId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    fn hold<T>(&self, caller: &Caller, look: impl FnOnce(&Hold) -> T) -> Option<T> {
        registry(process_id()).with(|holds| holds.of(self.id, caller).map(look))
    }

    /// The token of the caller's hold, or else of this object's latest.
    #[must_use]
    pub fn token(&self, caller: &Caller) -> Option<Token> {
        self.hold(caller, |hold| hold.key.token.clone())
    }

    /// The fencing number of that hold, or of the token that was last presented.
    #[must_use]
    pub fn fence(&self, caller: &Caller) -> Option<i64> {
        self.hold(caller, |hold| hold.fence)
            .unwrap_or_else(|| registry(process_id()).with(|holds| holds.presented(self.id)))
    }

    /// For how many seconds the hold is certainly held; 0 if it is not.
    #[must_use]
    pub fn remaining(&self, caller: &Caller) -> f64 {
        let now = Moment::now();
        let remaining = self.hold(caller, |hold| {
            let left = hold.deadline.remaining(now);
            if hold.expired(now) { 0.0 } else { left }
        });
        remaining.unwrap_or_default()
    }

    /// Whether there was a hold that is or may be lost.
    #[must_use]
    pub fn expired(&self, caller: &Caller) -> bool {
        self.hold(caller, |hold| hold.expired(Moment::now()))
            .unwrap_or_default()
    }

    /// Whether the caller's hold, or else the latest, is lost; stays true after the block is left,
    /// until the lock is acquired again.
    #[must_use]
    pub fn is_lost(&self, caller: &Caller) -> bool {
        registry(process_id()).is_lost(self.id, caller)
    }

    /// Waits for the loss, within the budget. Returns whether the hold is lost.
    pub fn await_loss(&self, caller: &Caller, budget: Budget<'_>) -> Result<bool> {
        registry(budget.process).await_loss(self.id, caller, budget)
    }

    /// An error if the hold of a level is lost.
    pub fn check(&self, entered: Entered) -> Result<()> {
        let lost = registry(process_id()).with(|holds| {
            let hold = holds.get(entered.hold)?;
            Some((hold.key.token.clone(), hold.loss(Moment::now())?))
        });
        lost.map_or(Ok(()), |(token, reason)| {
            Err(Error::Expired(self.name.clone(), token, reason))
        })
    }

    /// `held`, `lost` or `free`: the caller's hold, or else this object's latest, in one word.
    #[must_use]
    pub fn state(&self, caller: &Caller) -> &'static str {
        match self.hold(caller, |hold| hold.expired(Moment::now())) {
            Some(true) => "lost",
            Some(false) => "held",
            None => "free",
        }
    }

    /// The given token, or else that of the caller's hold.
    pub fn token_or(&self, caller: &Caller, token: Option<Token>) -> Result<Token> {
        token
            .or_else(|| self.token(caller))
            .ok_or_else(|| Error::TokenRequired(self.name.clone()))
    }

    /// The block that was entered at `enterer`'s place and that `current` leaves.
    #[must_use]
    pub fn block_of(&self, enterer: &Caller, current: &Caller) -> Option<Entered> {
        registry(process_id()).with(|holds| {
            let own = holds.block_at(self.id, enterer.place);
            own.or_else(|| holds.block(self.id, current))
        })
    }

    /// The block open here that a `with` on the object itself would end.
    #[must_use]
    pub fn block(&self, caller: &Caller) -> Option<Entered> {
        registry(process_id()).with(|holds| holds.block(self.id, caller))
    }
}
