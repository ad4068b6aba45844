//! Gives holds new tokens.

use super::confirmed::Confirmed;
use super::lock::Lock;
use super::locks::Locks;
use super::registry::registry;
use crate::engine::{Caller, Claim, HoldId, Lease, Moment, Name, Token, Unresolved};
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::process_id;

/// A transfer that has begun, or waits for another one of the same token.
#[derive(Clone, Debug)]
pub struct Transfer {
    old: Token,
    begun: Option<Begun>,
}

#[derive(Clone, Debug)]
struct Begun {
    claim: Claim,
    hold: Option<HoldId>,
    lease: Lease,
}

impl Locks {
    /// Begins a transfer. From now on the old token may stand for the new one, until a caller has
    /// read the new one.
    pub fn begin_transfer(
        &self,
        lock: &Lock,
        caller: &Caller,
        token: Option<Token>,
    ) -> Result<Transfer> {
        let old = lock.token_or(caller, token)?;
        let begun = self.claim(&old, process_id());
        Ok(Transfer { old, begun })
    }

    fn claim(&self, old: &Token, process: u32) -> Option<Begun> {
        let (owed, registry) = (self.owed.of(process), registry(process));
        let (hold, lease) = registry.with(|holds| {
            let known = holds.with_token(old);
            known.map_or((None, self.lease), |(id, hold)| (Some(id), hold.lease))
        });
        let claim =
            owed.with(|unresolved| unresolved.transfers.begin(old, lease, Moment::now()))?;
        // Before sending the statement: a thread that extends the hold meanwhile may find either
        // token.
        registry.with(|holds| holds.transferring(old, &claim.new));
        Some(Begun { claim, hold, lease })
    }

    /// The caller was cancelled and will not read the new token.
    pub fn transfer_failed(&self, transfer: &Transfer) {
        if let Some(Begun { claim, .. }) = &transfer.begun {
            let owed = self.owed.get();
            owed.change(|unresolved| unresolved.transfers.failed(claim));
        }
    }

    /// The transfer once it has begun, after any other transfer of the same token: a hold may have
    /// one of two tokens, but not one of three.
    fn begun(
        &self,
        lock: &Lock,
        old: &Token,
        mut begun: Option<Begun>,
        budget: Budget,
    ) -> Result<Begun> {
        let owed = self.owed.of(budget.process);
        loop {
            if let Some(begun) = begun {
                return Ok(begun);
            }
            let busy =
                |unresolved: &mut Unresolved| unresolved.transfers.is_busy(old, Moment::now());
            if !owed.wait_while(busy, budget)? {
                let message = format!(
                    "lock {} is being transferred or released by another call",
                    lock.name()
                );
                return Err(Error::Unavailable(message));
            }
            begun = self.claim(old, budget.process);
        }
    }

    /// Gives the hold its new token and voids the old one.
    pub fn transfer(
        &self,
        lock: &Lock,
        Transfer { old, begun }: Transfer,
        budget: Budget,
    ) -> Result<Confirmed> {
        let owed = self.owed.of(budget.process);
        let registry = registry(budget.process);
        let Begun { claim, hold, lease } = self.begun(lock, &old, begun, budget)?;
        let new = claim.new.clone();
        match self
            .store
            .transfer(lock.name(), &old, &new, self.lease, budget)
        {
            Ok(Some((fence, deadline))) => {
                registry.with(|holds| {
                    holds.transferred(&old, &new);
                    holds.present(lock.id(), &new, fence);
                });
                owed.change(|unresolved| {
                    unresolved
                        .transfers
                        .stands(&old, &new, lease, Moment::now());
                    unresolved.transfers.made(&claim);
                });
                registry.watched.transferred(&old, &new);
                let confirmed = Confirmed::new(lock.name(), new.clone(), deadline).replacing(
                    owed,
                    claim,
                    budget.process,
                );
                if confirmed.is_in_time() {
                    self.catch_up(lock, hold, &new, budget)?;
                }
                Ok(confirmed)
            }
            Ok(None) => {
                registry.with(|holds| holds.not_transferred(&old, &new));
                owed.change(|unresolved| unresolved.transfers.over(&old, &new));
                let current = hold.filter(|hold| {
                    registry.with(|holds| holds.get(*hold).is_some_and(|hold| hold.token == old))
                });
                let reason = self.loss_of(&registry, current, lock.name(), &old, budget);
                Err(Error::Expired(lock.name().clone(), old, reason))
            }
            // In a child forked in the meantime this is the parent's business.
            Err(Error::Forked) => Err(Error::Forked),
            Err(error) => {
                if error.outcome_unknown() {
                    owed.change(|unresolved| {
                        unresolved
                            .transfers
                            .stands(&old, &new, lease, Moment::now());
                        unresolved.transfers.failed(&claim);
                    });
                } else {
                    registry.with(|holds| holds.not_transferred(&old, &new));
                    owed.change(|unresolved| unresolved.transfers.over(&old, &new));
                }
                Err(error)
            }
        }
    }

    /// The current token of the hold of `token`: a different one if a transfer that seemed to fail
    /// succeeded.
    pub(super) fn resolve(&self, name: &Name, token: &Token, budget: Budget) -> Result<Token> {
        let owed = self.owed.of(budget.process);
        let Some(new) = owed.with(|unresolved| unresolved.transfers.meant(token, Moment::now()))
        else {
            return Ok(token.clone());
        };
        let answer = self.store.transfer(name, token, &new, self.lease, budget)?;
        let registry = registry(budget.process);
        if answer.is_none() {
            owed.with(|unresolved| unresolved.transfers.over(token, &new));
            registry.with(|holds| holds.not_transferred(token, &new));
            return Ok(token.clone());
        }
        // The caller may know only the old token, next time too.
        owed.with(|unresolved| {
            unresolved
                .transfers
                .stands(token, &new, self.lease, Moment::now());
        });
        registry.with(|holds| holds.transferred(token, &new));
        registry.watched.transferred(token, &new);
        Ok(new)
    }

    /// Renews a hold whose automatic extension is overdue: a hold that is transferred again and
    /// again has a new token whenever the extending thread comes.
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
            // Raise the signal's exception; the Lock object has the new token.
            Err(error @ (Error::Interrupted | Error::Forked)) => return Err(error),
            // The extending thread finds the same, or tries again.
            Ok(None) => {}
            Err(error) => log::debug!("extending lock {} late: {error}", lock.name()),
        }
        Ok(())
    }
}
