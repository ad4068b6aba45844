//! Ends holds: at the end of a block, or by a release.

use super::lock::Lock;
use super::locked;
use super::locks::Locks;
use super::registry::registry;
use super::releasing::Releasing;
use crate::engine::{
    Attempt, Caller, Ending, Entered, Hint, HoldId, Late, Lease, Loss, Moment, Name, Token,
};
use crate::error::{Error, Result};
use crate::store::{Budget, Released};
use crate::sync::process_id;
use std::sync::Arc;
use std::time::Duration;

impl Locks {
    /// Begins to end a block: its level is gone. [`Locks::finish`] does the rest.
    pub fn begin_exit(&self, lock: &Lock, entered: Option<Entered>) -> Ending {
        let registry = registry(process_id());
        let Some(entered) = entered else {
            return Ending::Nothing;
        };
        let ending = registry.with(|holds| holds.leave(entered, Moment::now()));
        registry.forget(entered.level);
        if let Ending::Release { token, lease, .. } = &ending {
            // Recorded before it happens: anyone else who wants the lock waits for it.
            let lease = lease.unwrap_or(self.lease);
            self.begin(lock.name(), token, Attempt::Release, lease);
        }
        ending
    }

    /// Leaves a level on nobody's behalf: the database part happens in the background.
    pub fn abandon(self: &Arc<Locks>, lock: &Lock, entered: Entered) {
        let ending = self.begin_exit(lock, Some(entered));
        self.finish_later(lock.name(), ending);
    }

    /// As [`Locks::finish`], in the background.
    pub fn finish_later(self: &Arc<Locks>, name: &Name, ending: Ending) {
        match ending {
            Ending::Release {
                token,
                pending,
                lease,
                ..
            } => {
                let lease = lease.unwrap_or(self.lease);
                for token in [Some(token), pending].into_iter().flatten() {
                    self.owe(name, &token, Attempt::Release, lease);
                }
            }
            Ending::Lost {
                token,
                lease,
                owed: true,
                ..
            } => self.owe(name, &token, Attempt::Release, lease),
            _ => {}
        }
    }

    /// Begins a `release()`.
    pub fn begin_release(&self, lock: &Lock, caller: &Caller, token: Option<&Token>) -> Ending {
        let key = token.map(|token| {
            let key = self.known_key(lock.name(), token);
            key.ok_or_else(|| Ending::of_a_stranger(token))
        });
        match key.transpose() {
            Ok(key) => registry(process_id())
                .with(|holds| holds.release(lock.id(), caller, key.as_ref(), Moment::now())),
            Err(stranger) => stranger,
        }
    }

    /// Does the database part of ending a block or of a release.
    pub fn finish(self: &Arc<Locks>, name: &Name, ending: Ending, budget: Budget) -> Result<()> {
        match ending {
            Ending::Done => Ok(()),
            Ending::Nothing => Err(Error::TokenRequired(name.clone())),
            Ending::Confirm { hold, token, lease } => self
                .extend_hold(hold, name, &token, lease, budget)
                .map(drop),
            Ending::Lost {
                token,
                lease,
                reason,
                owed,
            } => {
                if owed {
                    self.owe(name, &token, Attempt::Release, lease);
                }
                Err(Error::Expired(name.clone(), token, reason))
            }
            Ending::Release {
                hold,
                token,
                pending,
                lease,
                held,
                own,
            } => {
                let how = (lease, held, own);
                self.release(name, hold, (&token, pending.as_ref()), how, budget)
            }
        }
    }

    fn release(
        self: &Arc<Locks>,
        name: &Name,
        hold: Option<HoldId>,
        (token, pending): (&Token, Option<&Token>),
        (lease, held, own): (Option<Lease>, bool, bool),
        budget: Budget,
    ) -> Result<()> {
        let (registry, known) = (registry(budget.process), lease.is_some());
        let lease = lease.unwrap_or(self.lease);
        let key = self.key(name, token, budget)?;
        let owed = self.owed.of(budget.process);
        let mut releasing = Releasing::begin(owed, key.clone(), pending, budget);
        let before = releasing.before();
        if before == Some(true) {
            // In the background, for a caller that was told of a failure.
            releasing.resolved();
            if let Some(hold) = hold {
                registry.report(|holds| holds.released(hold, own));
            }
            registry.watched.ended(&key, None);
            return Ok(());
        }
        let how = (held, before.is_some());
        let attempt = self.try_to_release(name, &releasing, lease, how, budget);
        let (current, released) = match attempt {
            Ok(released) => released,
            Err(error) => {
                // In a child forked in the meantime this is the parent's business.
                if !matches!(error, Error::Forked) && (known || error.outcome_unknown()) {
                    for token in releasing.goes_on() {
                        self.owe(name, token, Attempt::Release, lease);
                    }
                }
                return Err(error);
            }
        };
        if released == Released::Lost {
            releasing.found_nothing();
        } else {
            releasing.resolved();
        }
        let current = key.with(&current);
        // The token may have been replaced by a transfer that its caller does not know of, or which
        // table this is was not known.
        let hold = hold.or_else(|| registry.with(|holds| Some(holds.with_key(&current)?.0)));
        let ended = |lost| {
            for key in [&key, &current] {
                registry.watched.ended(key, lost);
            }
        };
        if released != Released::Lost {
            if let Some(hold) = hold {
                registry.report(|holds| holds.released(hold, own));
            }
            ended(None);
            return Ok(());
        }
        let reason = if known && !held {
            Loss::Expired
        } else {
            self.why_lost(name, &current.token, None, budget)
        };
        ended(Some(reason));
        if let Some(hold) = hold.filter(|_| process_id() == budget.process) {
            registry.report(|holds| holds.not_released(hold, &key, reason, own));
        }
        Err(Error::Expired(key.name, key.token, reason))
    }

    /// Releases the hold under its current token, which a transfer may be changing. Returns the
    /// token tried last.
    fn try_to_release(
        &self,
        name: &Name,
        releasing: &Releasing,
        lease: Lease,
        (held, again): (bool, bool),
        budget: Budget,
    ) -> Result<(Token, Released)> {
        let awaited = locked(&self.hints.of(budget.process)).of(name) == Some(Hint::Awaited);
        let how = (held, again, awaited);
        let mut token = releasing.key().token.clone();
        let new = releasing.transferred();
        if let Some(new) = new {
            token = self.complete(releasing.key(), new, budget)?;
        }
        let mut released = self.store.release(name, &token, lease, how, budget)?;
        // The hold has neither token: an earlier call may have released it under the new one.
        if let (Released::Lost, Some(new)) = (released, new.filter(|new| **new != token)) {
            token = new.clone();
            released = self.store.release(name, &token, lease, how, budget)?;
        }
        let hint = match released {
            Released::Quietly => Some(Hint::Free),
            Released::Calling => Some(Hint::Awaited),
            Released::Lost => None,
        };
        self.hint(budget, name, hint);
        Ok((token, released))
    }

    /// Takes the process out of the database's queue.
    pub(super) fn leave_queue_now(self: &Arc<Locks>, name: &Name, ticket: i64) {
        let budget = Budget::new(Duration::from_secs(2), &|| Ok(()));
        if let Err(error) = self.store.leave(name, ticket, self.lease, budget) {
            // The waiters behind us wait half a second in vain.
            log::debug!("leaving the queue of lock {name} later: {error}");
            self.may_come_late(name, Late::Entering(ticket), self.lease);
        }
    }

    /// The same in the background. Anyone refused in the meantime waits for it.
    pub(super) fn leave_queue(self: &Arc<Locks>, name: &Name, ticket: i64) {
        let (locks, name, owed) = (self.clone(), name.clone(), self.owed.get());
        owed.leaving(&name, true);
        self.submit_ending(Box::new(move || {
            locks.leave_queue_now(&name, ticket);
            owed.leaving(&name, false);
        }));
    }
}
