//! Ends holds: at the end of a block, or by a release.

use super::lock::Lock;
use super::locked;
use super::locks::Locks;
use super::registry::registry;
use super::releasing::{How, Releasing};
use crate::engine::{
    Attempt, Caller, Ending, Entered, Hint, HoldId, Holds, Late, Lease, Loss, Moment, Name, Token,
};
use crate::error::{Error, Result};
use crate::store::{Budget, Released};
use crate::sync::process_id;
use std::sync::Arc;
use std::time::Duration;

/// The end of a level that has begun, for [`Locks::finish`].
pub struct End {
    ending: Ending,
    /// `None` if there is nothing to release, or the table is not known yet.
    releasing: Option<Releasing>,
}

impl End {
    /// The token of the hold that ends, if it ends in the database.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        match &self.ending {
            Ending::Release { token, .. } => Some(token.clone()),
            _ => None,
        }
    }
}

impl Locks {
    /// Ends a level as far as this process knows it. In the same step a release begins for the
    /// transfers: its database part may have to wait for its turn.
    fn begin_end(&self, name: &Name, work: impl FnOnce(&mut Holds) -> Ending) -> End {
        let registry = registry(process_id());
        let all = registry.clone();
        registry.transfers.with(|transfers| {
            let ending = all.with(work);
            let release = match &ending {
                Ending::Release { token, pending, .. } => Some((token, pending.as_ref())),
                Ending::Lost {
                    token, owed: true, ..
                } => Some((token, None)),
                _ => None,
            };
            let releasing = release.and_then(|(token, pending)| {
                let key = self.known_key(name, token)?;
                let (owed, all) = (self.owed.get(), all.clone());
                Some(Releasing::begin(owed, all, transfers, key, pending))
            });
            End { ending, releasing }
        })
    }

    /// Begins to end a block: its level is gone. [`Locks::finish`] does the rest.
    pub fn begin_exit(&self, lock: &Lock, entered: Option<Entered>) -> End {
        let Some(entered) = entered else {
            return End {
                ending: Ending::Nothing,
                releasing: None,
            };
        };
        let end = self.begin_end(lock.name(), |holds| holds.leave(entered, Moment::now()));
        registry(process_id()).forget(entered.level);
        if let Ending::Release { token, lease, .. } = &end.ending {
            // Recorded before it happens: anyone else who wants the lock waits for it.
            let lease = lease.unwrap_or(self.lease);
            self.begin(lock.name(), token, Attempt::Release, lease);
        }
        end
    }

    /// Leaves a level on nobody's behalf: the database part happens in the background.
    pub fn abandon(self: &Arc<Locks>, lock: &Lock, entered: Entered) {
        let end = self.begin_exit(lock, Some(entered));
        self.finish_later(lock.name(), end);
    }

    /// As [`Locks::finish`], in the background.
    pub fn finish_later(self: &Arc<Locks>, name: &Name, end: End) {
        match end.ending {
            Ending::Release { token, lease, .. } => {
                let lease = lease.unwrap_or(self.lease);
                self.owe_all(name, &token, end.releasing, lease);
            }
            Ending::Lost {
                token,
                lease,
                owed: true,
                ..
            } => self.owe_all(name, &token, end.releasing, lease),
            _ => {}
        }
    }

    /// Releases a hold in the background, whichever token it has.
    fn owe_all(
        self: &Arc<Locks>,
        name: &Name,
        token: &Token,
        mut releasing: Option<Releasing>,
        lease: Lease,
    ) {
        let Some(releasing) = &mut releasing else {
            return self.owe(name, token, Attempt::Release, lease);
        };
        for token in releasing.goes_on(lease) {
            self.owe(name, token, Attempt::Release, lease);
        }
    }

    /// Begins a `release()`.
    pub fn begin_release(&self, lock: &Lock, caller: &Caller, token: Option<&Token>) -> End {
        let key = token.map(|token| {
            let key = self.known_key(lock.name(), token);
            key.ok_or_else(|| Ending::of_a_stranger(token))
        });
        self.begin_end(lock.name(), |holds| match key.transpose() {
            Ok(key) => holds.release(lock.id(), caller, key.as_ref(), Moment::now()),
            Err(stranger) => stranger,
        })
    }

    /// Begins to repeat the release of a level that was left.
    pub fn begin_repeated_release(&self, lock: &Lock, token: &Token) -> End {
        self.begin_end(lock.name(), |_| Ending::of_a_stranger(token))
    }

    /// Does the database part of ending a block or of a release.
    pub fn finish(self: &Arc<Locks>, name: &Name, end: End, budget: Budget) -> Result<()> {
        match end.ending {
            Ending::Done => Ok(()),
            Ending::Nothing => Err(Error::TokenRequired(name.clone())),
            Ending::Confirm { hold, token, lease } => {
                match self.extend_hold(hold, name, &token, lease, budget) {
                    // The lease was over before, and nobody can know better.
                    Err(Error::Unavailable(_)) => {
                        Err(Error::Expired(name.clone(), token, Loss::Expired))
                    }
                    extended => extended.map(drop),
                }
            }
            Ending::Lost {
                token,
                lease,
                reason,
                owed,
            } => {
                if owed {
                    self.owe_all(name, &token, end.releasing, lease);
                }
                Err(Error::Expired(name.clone(), token, reason))
            }
            Ending::Release {
                hold,
                token,
                pending: _,
                lease,
                fence,
                held,
                own,
            } => {
                let releasing = match end.releasing {
                    Some(releasing) => releasing,
                    None => self.begin_of_a_stranger(name, &token, budget)?,
                };
                let how = How {
                    lease,
                    fence,
                    held,
                    own,
                };
                self.release(releasing, hold, &how, budget)
            }
        }
    }

    /// Begins a release now that it can be known which table this is.
    fn begin_of_a_stranger(&self, name: &Name, token: &Token, budget: Budget) -> Result<Releasing> {
        let key = self.key(name, token, budget)?;
        let registry = registry(budget.process);
        let (owed, all) = (self.owed.of(budget.process), registry.clone());
        Ok(registry
            .transfers
            .with(|transfers| Releasing::begin(owed, all, transfers, key, None)))
    }

    fn release(
        self: &Arc<Locks>,
        mut releasing: Releasing,
        hold: Option<HoldId>,
        how: &How,
        budget: Budget,
    ) -> Result<()> {
        if releasing.process() != budget.process {
            return Err(Error::Forked);
        }
        let (registry, known) = (registry(budget.process), how.lease.is_some());
        let lease = how.lease.unwrap_or(self.lease);
        let held = how.held;
        let key = releasing.key().clone();
        let name = &key.name;
        let before = releasing.before();
        if before == Some(true) {
            // In the background, for a caller that was told of a failure.
            releasing.resolved();
            releasing.ended(hold, &key, how);
            return Ok(());
        }
        let known_end = (held, before.is_some());
        let attempt = self.try_to_release(name, &releasing, lease, known_end, budget);
        let (current, released) = match attempt {
            Ok(released) => released,
            Err(error) => {
                // In a child forked in the meantime this is the parent's business.
                if matches!(error, Error::Forked) {
                    return Err(error);
                }
                let interrupted = matches!(error, Error::Interrupted);
                let over = known && !held && before.is_none() && !interrupted;
                let unreachable = matches!(error, Error::Unavailable(_));
                if over {
                    releasing.expired(hold, unreachable, how);
                }
                if known || error.outcome_unknown() {
                    self.owe_all(name, &key.token, Some(releasing), lease);
                }
                return Err(if over && unreachable {
                    Error::Expired(key.name, key.token, Loss::Expired)
                } else {
                    error
                });
            }
        };
        let current = key.with(&current);
        // The token may have been replaced by a transfer that its caller does not know of, or which
        // table this is was not known.
        let hold = hold.or_else(|| registry.with(|holds| Some(holds.with_key(&current)?.0)));
        if released != Released::Lost {
            releasing.resolved();
            releasing.ended(hold, &current, how);
            return Ok(());
        }
        releasing.found_nothing();
        let reason = if known && !held {
            Loss::Expired
        } else {
            self.why_lost(name, &current.token, None, budget)
        };
        releasing.lost(hold, &current, reason, how);
        Err(Error::Expired(key.name.clone(), key.token.clone(), reason))
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
