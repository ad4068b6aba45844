//! Gives holds new tokens.

use super::confirmed::Confirmed;
use super::lock::Lock;
use super::locked;
use super::locks::Locks;
use super::registry::registry;
use crate::engine::{Caller, Claim, HoldId, Lease, Moment, Name, Token, Transfers};
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::{Mutex, process_id};
use std::sync::Arc;

/// A transfer of a token. Its clones are the same transfer.
#[derive(Clone, Debug)]
pub struct Transfer {
    old: Token,
    attempt: Arc<Mutex<Attempt>>,
}

/// How far its caller and the thread that does it are.
#[derive(Debug)]
enum Attempt {
    /// It waits for another transfer of the same token, or for a release.
    Waits,
    Begun(Begun),
    /// The caller will not read the new token, so it need not begin.
    GivenUp,
}

#[derive(Clone, Debug)]
struct Begun {
    claim: Claim,
    hold: Option<HoldId>,
    lease: Lease,
}

/// How long the old token may stand for the new one: others may extend the hold, and whoever
/// has acquired it may have a longer lease than this configuration.
fn remembered(lease: Lease) -> Lease {
    const DAY: f64 = 86_400.0;
    Lease::from_seconds(lease.seconds().max(DAY)).unwrap_or(lease)
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
        let attempt = Mutex::new(begun.map_or(Attempt::Waits, Attempt::Begun));
        let attempt = Arc::new(attempt);
        Ok(Transfer { old, attempt })
    }

    fn claim(&self, old: &Token, process: u32) -> Option<Begun> {
        let registry = registry(process);
        let (hold, lease) = registry.with(|holds| {
            let known = holds.with_token(old);
            known.map_or((None, self.lease), |(id, hold)| (Some(id), hold.lease))
        });
        let claim = registry
            .transfers
            .with(|transfers| transfers.begin(old, remembered(lease), Moment::now()))?;
        // Before sending the statement: a thread that extends the hold meanwhile may find either
        // token.
        registry.with(|holds| holds.transferring(&claim.old, &claim.new));
        Some(Begun { claim, hold, lease })
    }

    /// The caller was cancelled and will not read the new token.
    pub fn transfer_failed(&self, transfer: &Transfer) {
        let mut attempt = locked(&transfer.attempt);
        let attempt = std::mem::replace(&mut *attempt, Attempt::GivenUp);
        if let Attempt::Begun(Begun { claim, .. }) = attempt {
            let registry = registry(process_id());
            registry
                .transfers
                .with(|transfers| transfers.failed(&claim));
        }
    }

    /// What the transfer has claimed, after any other transfer of the same token: a hold may have
    /// one of two tokens, but not one of three.
    fn begun(&self, lock: &Lock, transfer: &Transfer, budget: Budget) -> Result<Begun> {
        let registry = registry(budget.process);
        let unavailable = |what| Error::Unavailable(format!("lock {} {what}", lock.name()));
        loop {
            let mut attempt = locked(&transfer.attempt);
            if matches!(*attempt, Attempt::Waits) {
                if let Some(begun) = self.claim(&transfer.old, budget.process) {
                    *attempt = Attempt::Begun(begun);
                }
            }
            match &*attempt {
                Attempt::Begun(begun) => return Ok(begun.clone()),
                Attempt::GivenUp => return Err(unavailable("is not transferred any more")),
                Attempt::Waits => drop(attempt),
            }
            let busy = |transfers: &Transfers| transfers.is_busy(&transfer.old);
            if !registry.transfers.wait_while(busy, budget)? {
                return Err(unavailable(
                    "is being transferred or released by another call",
                ));
            }
        }
    }

    /// Gives the hold its new token and voids the old one.
    pub fn transfer(&self, lock: &Lock, transfer: &Transfer, budget: Budget) -> Result<Confirmed> {
        let registry = registry(budget.process);
        let Begun { claim, hold, lease } = self.begun(lock, transfer, budget)?;
        let (old, new) = (claim.old.clone(), claim.new.clone());
        match self
            .store
            .transfer(lock.name(), &old, &new, self.lease, budget)
        {
            Ok(Some((fence, deadline))) => {
                registry.with(|holds| {
                    holds.transferred(&old, &new);
                    holds.present(lock.id(), &new, fence);
                });
                registry.transfers.with(|transfers| {
                    transfers.stands(&old, &new, remembered(lease), Moment::now());
                    transfers.made(&claim);
                });
                registry.watched.transferred(&old, &new);
                let confirmed = Confirmed::new(lock.name(), new.clone(), deadline).replacing(
                    registry.clone(),
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
                registry
                    .transfers
                    .with(|transfers| transfers.over(&old, &new));
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
                    registry.transfers.with(|transfers| {
                        transfers.stands(&old, &new, remembered(lease), Moment::now());
                        transfers.failed(&claim);
                    });
                } else {
                    registry.with(|holds| holds.not_transferred(&old, &new));
                    registry
                        .transfers
                        .with(|transfers| transfers.over(&old, &new));
                }
                Err(error)
            }
        }
    }

    /// The current token of the hold of `token`: a different one if a transfer that seemed to fail
    /// succeeded.
    pub(super) fn resolve(&self, name: &Name, token: &Token, budget: Budget) -> Result<Token> {
        let registry = registry(budget.process);
        let all = &registry.transfers;
        let Some(new) = all.with(|transfers| transfers.meant(token, Moment::now())) else {
            return Ok(token.clone());
        };
        let answer = self.store.transfer(name, token, &new, self.lease, budget)?;
        if answer.is_none() {
            all.with(|transfers| transfers.over(token, &new));
            registry.with(|holds| holds.not_transferred(token, &new));
            return Ok(token.clone());
        }
        // The caller may know only the old token, next time too.
        all.with(|transfers| {
            transfers.stands(token, &new, remembered(self.lease), Moment::now());
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
