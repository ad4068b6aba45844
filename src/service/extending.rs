//! Extends and transfers holds, and detects that they are lost.

use super::confirmed::Confirmed;
use super::held::has_either;
use super::lock::Lock;
use super::locks::Locks;
use super::registry::{Registry, registry};
use crate::engine::{Caller, Deadline, HoldId, Key, Lease, Loss, Moment, Name, Token};
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::process_id;

impl Locks {
    /// Gives the hold a new lease.
    pub fn extend(
        &self,
        lock: &Lock,
        caller: &Caller,
        token: Option<Token>,
        budget: Budget,
    ) -> Result<Confirmed> {
        let token = lock.token_or(caller, token)?;
        let key = self.key(lock.name(), &token, budget)?;
        let token = self.resolve(&key, budget)?;
        let registry = registry(budget.process);
        let known = registry.with(|holds| {
            let (id, hold) = holds.with_key(&key.with(&token))?;
            Some((id, hold.lease))
        });
        let Some((hold, lease)) = known else {
            let extended = self.store.extend(lock.name(), &token, self.lease, budget)?;
            let Some((fence, deadline)) = extended else {
                let reason = self.loss_of(&registry, None, &key, budget);
                return Err(Error::Expired(key.name, key.token, reason));
            };
            registry.watched.extended(&key, deadline);
            registry.with(|holds| holds.present(lock.id(), &key.with(&token), fence));
            return Ok(Confirmed::new(lock.name(), token, deadline));
        };
        let (token, deadline) = self.extend_hold(hold, lock.name(), &token, lease, budget)?;
        Ok(Confirmed::new(lock.name(), token, deadline))
    }

    /// Extends a hold of this process under its current token, which a transfer may be changing. If
    /// the database has the hold under neither token, reports it lost.
    pub(super) fn extend_hold(
        &self,
        hold: HoldId,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<(Token, Deadline)> {
        let registry = registry(budget.process);
        let told = registry.with(|holds| holds.get(hold)?.recorded_loss());
        if let Some(reason) = told {
            // Others may rely on the loss. Extending the hold would only keep them out.
            return Err(Error::Expired(name.clone(), token.clone(), reason));
        }
        let mut candidates = vec![token.clone()];
        let mut tried = 0;
        loop {
            while let Some(token) = candidates.get(tried).cloned() {
                tried += 1;
                let extended = self.store.extend(name, &token, lease, budget);
                // An interrupted one may have been extended: its caller can ask again.
                let failed = !matches!(extended, Ok(_) | Err(Error::Interrupted | Error::Forked));
                if failed {
                    registry.report(|holds| holds.expire(hold, Loss::Expired, Moment::now()));
                }
                let extended = extended?;
                let extended =
                    extended.and_then(|(fence, deadline)| registry.extended(hold, fence, deadline));
                if let Some(deadline) = extended {
                    return Ok((token, deadline));
                }
            }
            // If another thread has transferred it, it now has one of these tokens.
            registry.with(|holds| {
                if let Some(hold) = holds.get(hold) {
                    let others = [Some(&hold.key.token), hold.pending.as_ref()];
                    for other in others.into_iter().flatten() {
                        if !candidates.contains(other) {
                            candidates.push(other.clone());
                        }
                    }
                }
            });
            if tried == candidates.len() {
                let (token, reason) = self.lose(&registry, hold, name, token, budget);
                return Err(Error::Expired(name.clone(), token, reason));
            }
        }
    }

    /// The database does not have the hold: tells everybody concerned, with the reason.
    pub(super) fn lose(
        &self,
        registry: &Registry,
        hold: HoldId,
        name: &Name,
        token: &Token,
        budget: Budget,
    ) -> (Token, Loss) {
        let known = registry.with(|holds| {
            let hold = holds.get(hold)?;
            Some((hold.key.clone(), hold.loss(Moment::now())))
        });
        let Some((key, reason)) = known else {
            return (token.clone(), Loss::Released);
        };
        let reason = reason.unwrap_or_else(|| self.store.why_lost(name, &key.token, budget));
        let token = key.token;
        // In a child forked in the meantime this is the parent's business.
        if process_id() == budget.process {
            registry.report(|holds| holds.not_found(hold, reason));
        }
        (token, reason)
    }

    /// Why the database has no hold for a key, which need not belong to a Lock object of this
    /// process.
    pub(super) fn loss_of(
        &self,
        registry: &Registry,
        hold: Option<HoldId>,
        key: &Key,
        budget: Budget,
    ) -> Loss {
        let (name, token) = (&key.name, &key.token);
        if let Some(hold) = hold {
            return self.lose(registry, hold, name, token, budget).1;
        }
        let reason = self.why_lost(name, token, None, budget);
        if registry.transfers.with(|all| all.releases(key)) == 0 {
            registry.watched.ended(key, Some(reason));
        }
        reason
    }

    pub(super) fn why_lost(
        &self,
        name: &Name,
        token: &Token,
        deadline: Option<Deadline>,
        budget: Budget,
    ) -> Loss {
        if deadline.is_some_and(|deadline| deadline.passed(Moment::now())) {
            return Loss::Expired;
        }
        self.store.why_lost(name, token, budget)
    }

    /// A guard has seen this token's hold in the database.
    pub fn seen(&self, lock: &Lock, token: &Token, fence: Option<i64>) {
        if let Some(key) = self.known_key(lock.name(), token) {
            registry(process_id()).with(|holds| holds.present(lock.id(), &key, fence));
        }
    }

    /// The token by which the database has the hold of a token, if a transfer may be changing it.
    pub fn current_token(&self, lock: &Lock, token: &Token, budget: Budget) -> Result<Token> {
        self.resolve(&self.key(lock.name(), token, budget)?, budget)
    }

    /// Asks the database whether the hold of a token is lost.
    pub fn is_lost(&self, lock: &Lock, token: &Token, budget: Budget) -> Result<Option<Loss>> {
        let registry = registry(budget.process);
        let mut key = self.key(lock.name(), token, budget)?;
        loop {
            let hold = registry.with(|holds| {
                let (id, hold) = holds.with_key(&key)?;
                Some((id, hold.key.clone(), hold.pending.clone()))
            });
            let pending = match &hold {
                Some((_, known, pending)) => {
                    key = known.clone();
                    pending.clone()
                }
                None => registry
                    .transfers
                    .with(|transfers| transfers.meant(&key, Moment::now())),
            };
            if has_either(&self.store, &key, pending.as_ref(), self.lease, budget)? {
                return Ok(None);
            }
            let unchanged = |id| {
                registry.with(|holds| {
                    let hold = holds.get(id);
                    hold.is_some_and(|hold| hold.key == key && hold.pending == pending)
                })
            };
            if hold.as_ref().is_none_or(|(id, ..)| unchanged(*id)) {
                let hold = hold.map(|(id, ..)| id);
                return Ok(Some(self.loss_of(&registry, hold, &key, budget)));
            }
        }
    }
}
