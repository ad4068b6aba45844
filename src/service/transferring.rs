//! Gives holds new tokens.

use super::confirmed::Confirmed;
use super::lock::Lock;
use super::locked;
use super::locks::Locks;
use super::registry::{Registry, registry};
use super::wakeup::Wakeup;
use crate::engine::{Begin, Caller, Claim, HoldId, Key, Lease, Loss, Moment, Token, Transfers};
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::{Mutex, process_id};
use std::sync::Arc;

/// A transfer of a token. Its clones are the same transfer.
#[derive(Clone, Debug)]
pub struct Transfer {
    old: Token,
    process: u32,
    attempt: Arc<Mutex<Attempt>>,
}

/// How far its caller and the thread that does it are.
#[derive(Clone, Debug)]
enum Attempt {
    /// It waits for another transfer of the same token, or for a release.
    Waits,
    Begun(Begun),
    /// A release was faster.
    TooLate,
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
        let transfer = Transfer {
            old: lock.token_or(caller, token)?,
            process: process_id(),
            attempt: Arc::new(Mutex::new(Attempt::Waits)),
        };
        // Otherwise it begins together with its statement.
        if let Some(old) = self.known_key(lock.name(), &transfer.old) {
            let registry = registry(transfer.process);
            registry
                .transfers
                .with(|all| self.try_to_begin(&registry, all, &old, &transfer));
        }
        Ok(transfer)
    }

    /// Whether a transfer has to wait for another one of the same token, or for a release. From
    /// now on each change calls the wakeup, for as long as that is referenced.
    pub fn transfer_waits(&self, lock: &Lock, transfer: &Transfer, wakeup: &Arc<Wakeup>) -> bool {
        let Some(old) = self.known_key(lock.name(), &transfer.old) else {
            return false;
        };
        let registry = registry(transfer.process);
        let waits = || {
            let begin = |all: &mut Transfers| self.try_to_begin(&registry, all, &old, transfer);
            matches!(registry.transfers.with(begin), Attempt::Waits)
        };
        if process_id() != transfer.process || !waits() {
            return false;
        }
        registry.transfers.wake_by_changes(old.clone(), wakeup);
        // It may have changed before.
        waits()
    }

    /// Begins a transfer, if it has not begun and nothing is in its way.
    fn try_to_begin(
        &self,
        registry: &Registry,
        transfers: &mut Transfers,
        old: &Key,
        transfer: &Transfer,
    ) -> Attempt {
        let mut attempt = locked(&transfer.attempt);
        if matches!(*attempt, Attempt::Waits) {
            *attempt = registry.with(|holds| {
                let (hold, lease, pending) = match holds.with_key(old) {
                    Some((id, hold)) => (Some(id), hold.lease, hold.pending.clone()),
                    None => (None, self.lease, None),
                };
                match transfers.begin(old, pending, remembered(lease), Moment::now()) {
                    Begin::Now(claim) => {
                        // Before its statement is sent: a thread that extends the hold meanwhile
                        // may find either token.
                        holds.transferring(old, &claim.new);
                        Attempt::Begun(Begun { claim, hold, lease })
                    }
                    Begin::Later => Attempt::Waits,
                    Begin::TooLate => Attempt::TooLate,
                }
            });
        }
        attempt.clone()
    }

    /// The caller was cancelled and will not read the new token.
    pub fn transfer_failed(&self, transfer: &Transfer) {
        // In a child forked in the meantime a mutex may be locked for ever.
        if process_id() == transfer.process {
            let registry = registry(transfer.process);
            // In the order in which the mutexes are locked elsewhere.
            let attempt = registry.transfers.with(|_| {
                let mut attempt = locked(&transfer.attempt);
                std::mem::replace(&mut *attempt, Attempt::GivenUp)
            });
            match attempt {
                Attempt::Begun(Begun { claim, .. }) => registry
                    .transfers
                    .change(&claim.old, |transfers| transfers.failed(&claim)),
                // A thread may wait on its behalf.
                Attempt::Waits => registry.transfers.wake_threads(),
                Attempt::TooLate | Attempt::GivenUp => {}
            }
        }
    }

    /// What the transfer has claimed, after any other transfer of the same token: a hold may have
    /// one of two tokens, but not one of three.
    fn begun(&self, lock: &Lock, transfer: &Transfer, budget: Budget) -> Result<Begun> {
        if transfer.process != budget.process {
            return Err(Error::Forked);
        }
        let registry = registry(budget.process);
        let old = self.key(lock.name(), &transfer.old, budget)?;
        let begin = |all: &mut Transfers| {
            let attempt = self.try_to_begin(&registry, all, &old, transfer);
            (!matches!(attempt, Attempt::Waits)).then_some(attempt)
        };
        match registry.transfers.wait_for(begin, budget)? {
            Some(Attempt::Begun(begun)) => Ok(begun),
            Some(Attempt::TooLate) => Err(Error::Expired(old.name, old.token, Loss::Released)),
            Some(Attempt::GivenUp) => Err(Error::Interrupted),
            Some(Attempt::Waits) | None => Err(Error::in_transfer(lock.name())),
        }
    }

    /// Gives the hold its new token and voids the old one.
    pub fn transfer(&self, lock: &Lock, transfer: &Transfer, budget: Budget) -> Result<Confirmed> {
        let registry = registry(budget.process);
        let Begun { claim, hold, lease } = self.begun(lock, transfer, budget)?;
        let (old, new) = (claim.old.clone(), claim.new.clone());
        let stands = |transfers: &mut Transfers| {
            transfers.stands(&old, &new, remembered(lease), Moment::now());
        };
        match self
            .store
            .transfer(lock.name(), &old.token, &new, self.lease, budget)
        {
            Ok(Some((fence, deadline))) => {
                registry.with(|holds| holds.present(lock.id(), &old.with(&new), fence));
                registry.transfers.with(|transfers| {
                    stands(transfers);
                    transfers.made(&claim);
                });
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
                registry.not_transferred(&old, &new);
                let current =
                    hold.filter(|hold| registry.with(|holds| holds.is_known(*hold, &old)));
                let reason = self.loss_of(&registry, current, &old, budget);
                Err(Error::Expired(old.name, old.token, reason))
            }
            // In a child forked in the meantime this is the parent's business.
            Err(Error::Forked) => Err(Error::Forked),
            Err(error) => {
                registry.transfers.change(&old, |transfers| {
                    if error.outcome_unknown() {
                        stands(transfers);
                        transfers.failed(&claim);
                    } else if transfers.refused(&claim) {
                        registry.with(|holds| holds.not_transferred(&old, &new));
                    }
                });
                Err(error)
            }
        }
    }

    /// The current token of the hold of a key: a different one if a transfer that seemed to fail
    /// succeeded.
    pub(super) fn resolve(&self, key: &Key, budget: Budget) -> Result<Token> {
        let complete = |transfers: &mut Transfers| transfers.complete(key, Moment::now());
        match registry(budget.process).transfers.with(complete) {
            Some(new) => self.complete(key, &new, budget),
            None => Ok(key.token.clone()),
        }
    }

    /// Completes a transfer that may have failed. Returns the token that the hold has now; if it
    /// has neither, the old one.
    pub(super) fn complete(&self, old: &Key, new: &Token, budget: Budget) -> Result<Token> {
        let (registry, token) = (registry(budget.process), &old.token);
        let answer = self
            .store
            .transfer(&old.name, token, new, self.lease, budget)?;
        if answer.is_none() {
            registry.not_transferred(old, new);
            return Ok(token.clone());
        }
        // The caller may know only the old token, next time too.
        registry.transfers.with(|transfers| {
            transfers.stands(old, new, remembered(self.lease), Moment::now());
        });
        Ok(new.clone())
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
            // Raise the signal's exception; a later call finds the new token.
            Err(error @ (Error::Interrupted | Error::Forked)) => return Err(error),
            // The extending thread finds the same, or tries again.
            Ok(None) => {}
            Err(error) => log::debug!("extending lock {} late: {error}", lock.name()),
        }
        Ok(())
    }
}
