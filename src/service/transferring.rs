//! Gives holds new tokens.

use super::confirmed::Confirmed;
use super::lock::Lock;
use super::locks::Locks;
use super::registry::registry;
use crate::engine::{Caller, HoldId, Lease, Moment, Name, Token};
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::process_id;

/// A transfer that has begun.
#[derive(Clone, Debug)]
pub struct Transfer {
    old: Token,
    new: Token,
    hold: Option<HoldId>,
    lease: Lease,
}

impl Locks {
    /// A transfer begins. From now on whoever presents the old token may mean the new one, until
    /// somebody has read that.
    pub fn begin_transfer(
        &self,
        lock: &Lock,
        caller: &Caller,
        token: Option<Token>,
    ) -> Result<Transfer> {
        let old = lock.token_or(caller, token)?;
        let process = process_id();
        let owed = self.owed.of(process);
        let failed = owed.with(|unresolved| unresolved.failed_transfer(&old, Moment::now()));
        let new = failed.unwrap_or_else(Token::random);
        // Before the statement is sent: whoever extends the hold meanwhile may meet
        // either token.
        let (hold, lease) = registry(process).with(|holds| {
            holds.transferring(&old, Some(new.clone()));
            let known = holds.with_token(&old);
            known.map_or((None, self.lease), |(id, hold)| (Some(id), hold.lease))
        });
        owed.with(|unresolved| unresolved.transferring(&old, &new, lease, Moment::now()));
        Ok(Transfer {
            old,
            new,
            hold,
            lease,
        })
    }

    /// Its caller has been cancelled, and is not going to read the new token.
    pub fn transfer_failed(&self, transfer: &Transfer) {
        let Transfer { old, new, .. } = transfer;
        let owed = self.owed.get();
        owed.with(|unresolved| unresolved.transfer_failed(old, new));
    }

    /// Gives the hold its new token and voids the old one.
    pub fn transfer(&self, lock: &Lock, transfer: Transfer, budget: Budget) -> Result<Confirmed> {
        let Transfer {
            old,
            new,
            hold,
            lease,
        } = transfer;
        let owed = self.owed.of(budget.process);
        let registry = registry(budget.process);
        match self
            .store
            .transfer(lock.name(), &old, &new, self.lease, budget)
        {
            Ok(Some((fence, deadline))) => {
                owed.with(|unresolved| unresolved.transferring(&old, &new, lease, Moment::now()));
                registry.with(|holds| {
                    holds.transferred(&old, &new);
                    holds.present(lock.id(), &new, fence);
                });
                registry.watched.transferred(&old, &new);
                let confirmed =
                    Confirmed::new(lock.name(), new.clone(), deadline).replacing(owed, old);
                if confirmed.is_in_time() {
                    self.catch_up(lock, hold, &new, budget)?;
                }
                Ok(confirmed)
            }
            Ok(None) => {
                owed.with(|unresolved| unresolved.transferred(&old, &new));
                registry.with(|holds| holds.transferring(&old, None));
                let current = hold.filter(|hold| {
                    registry.with(|holds| holds.get(*hold).is_some_and(|hold| hold.token == old))
                });
                let reason = self.loss_of(&registry, current, lock.name(), &old, budget);
                Err(Error::Expired(lock.name().clone(), old, reason))
            }
            // In a child that was forked meanwhile it is the parent's business.
            Err(Error::Forked) => Err(Error::Forked),
            Err(error) => {
                if error.outcome_unknown() {
                    owed.with(|unresolved| {
                        unresolved.transferring(&old, &new, lease, Moment::now());
                        unresolved.transfer_failed(&old, &new);
                    });
                } else {
                    owed.with(|unresolved| unresolved.transferred(&old, &new));
                    registry.with(|holds| holds.transferring(&old, None));
                }
                Err(error)
            }
        }
    }

    /// The token that the hold of `token` has: another one, if a transfer that
    /// seemed to fail has succeeded.
    pub(super) fn resolve(&self, name: &Name, token: &Token, budget: Budget) -> Result<Token> {
        let owed = self.owed.of(budget.process);
        let Some(new) = owed.with(|unresolved| unresolved.transfer(token, Moment::now())) else {
            return Ok(token.clone());
        };
        let answer = self.store.transfer(name, token, &new, self.lease, budget)?;
        let registry = registry(budget.process);
        if answer.is_none() {
            owed.with(|unresolved| unresolved.transferred(token, &new));
            registry.with(|holds| holds.transferring(token, None));
            return Ok(token.clone());
        }
        // Its caller may know the old one only, also next time.
        owed.with(|unresolved| unresolved.transferring(token, &new, self.lease, Moment::now()));
        registry.with(|holds| holds.transferred(token, &new));
        registry.watched.transferred(token, &new);
        Ok(new)
    }

    /// Renews a hold that should have been extended automatically by now: one that is
    /// transferred again and again has another token whenever the extending thread comes.
    pub(super) fn catch_up(
        &self,
        lock: &Lock,
        hold: Option<HoldId>,
        token: &Token,
        budget: Budget,
    ) -> Result<()> {
        let registry = registry(budget.process);
        let overdue = hold
            .and_then(|id| registry.with(|holds| Some((id, holds.overdue(id, Moment::now())?))));
        let Some((id, lease)) = overdue else {
            return Ok(());
        };
        match self.store.extend(lock.name(), token, lease, budget) {
            Ok(Some((fence, deadline))) => {
                registry.extended(id, fence, deadline);
            }
            // The signal's exception; the Lock object has the new token.
            Err(error @ (Error::Interrupted | Error::Forked)) => return Err(error),
            // The extending thread finds the same, or tries again.
            Ok(None) => {}
            Err(error) => log::debug!("extending lock {} late: {error}", lock.name()),
        }
        Ok(())
    }
}
