//! A release in progress, by a token that a transfer may be replacing.

use super::owed::Owed;
use super::registry::{Registry, log_loss};
use crate::engine::{HoldId, Key, Lease, Loss, Moment, ReleaseOutcome, Token, Transfers};
use crate::sync::process_id;
use std::sync::Arc;

/// How a hold is released.
pub struct How {
    /// Its lease, if it is known here.
    pub lease: Option<Lease>,
    /// Its fence, if it is known here.
    pub fence: Option<i64>,
    /// Its deadline had not passed.
    pub held: bool,
    /// By its owner.
    pub own: bool,
}

/// From its beginning nobody is given the new token of a transfer, nor after its end if the hold
/// has ended, or is going to. A transfer that begins later waits for the end.
pub struct Releasing {
    owed: Arc<Owed>,
    registry: Arc<Registry>,
    process: u32,
    /// What the caller knows.
    key: Key,
    /// The new token of a transfer that the hold may have.
    new: Option<Token>,
    outcome: ReleaseOutcome,
}

impl Releasing {
    /// Begins a release by `key` in this process; `pending` is the new token of a transfer that the
    /// hold knows of.
    pub fn begin(
        owed: Arc<Owed>,
        registry: Arc<Registry>,
        transfers: &mut Transfers,
        key: Key,
        pending: Option<&Token>,
    ) -> Releasing {
        let new = transfers.begin_release(&key, Moment::now());
        Releasing {
            owed,
            registry,
            process: process_id(),
            key,
            new: new.or_else(|| pending.cloned()),
            outcome: ReleaseOutcome::Failed,
        }
    }

    /// The process in which it began.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// What the caller knows.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The new token of a transfer that the hold may have.
    pub fn transferred(&self) -> Option<&Token> {
        self.new.as_ref()
    }

    /// All tokens that the hold may have.
    fn tokens(&self) -> impl Iterator<Item = &Token> {
        [Some(&self.key.token), self.new.as_ref()]
            .into_iter()
            .flatten()
    }

    /// Whether an earlier call may have released the hold, or has: then it has done so for each
    /// token.
    pub fn before(&self) -> Option<bool> {
        let known: Vec<Option<bool>> = self.owed.with(|unresolved| {
            self.tokens()
                .map(|token| unresolved.may_be_released(&self.key.name, token))
                .collect()
        });
        let all = known.iter().all(|released| *released == Some(true));
        known.iter().any(Option::is_some).then_some(all)
    }

    /// The hold has ended.
    pub fn resolved(&mut self) {
        self.outcome = ReleaseOutcome::Done;
        self.found_nothing();
    }

    /// The hold has none of the tokens, and nothing is owed.
    pub fn found_nothing(&self) {
        for token in self.tokens() {
            self.owed.resolved(&self.key.name, token);
        }
    }

    /// The database has ended the hold, which had the key `current`: tells everybody concerned. The end
    /// of a block has already forgotten its hold.
    pub fn ended(&self, hold: Option<HoldId>, current: &Key, how: &How) {
        for key in [&self.key, current] {
            self.registry.watched.ended(key, None);
        }
        if let Some(hold) = hold.filter(|_| process_id() == self.process) {
            self.registry.report(|holds| holds.released(hold, how.own));
        }
    }

    /// The database does not have the hold. If another release of it is under way here, that one may
    /// have ended it, unless the lease was over anyway.
    pub fn lost(&self, hold: Option<HoldId>, current: &Key, reason: Loss, how: &How) {
        if process_id() != self.process {
            return;
        }
        let releases = |all: &mut Transfers| all.releases(&self.key);
        let another = how.held && self.registry.transfers.with(releases) > 1;
        if !another || hold.is_none() {
            for key in [&self.key, current] {
                self.registry.watched.ended(key, Some(reason));
            }
        }
        match hold {
            Some(hold) => self
                .registry
                .report(|holds| holds.not_released(hold, reason, how.own, another)),
            None if how.lease.is_some() => log_loss(&self.key.name, how.fence, reason),
            None => {}
        }
    }

    /// The lease was over before the release began, and the release failed: whatever becomes of it,
    /// nobody may rely on the hold. `told`: that is what its caller is told, instead of the failure.
    pub fn expired(&self, hold: Option<HoldId>, told: bool, how: &How) {
        let reason = Loss::Expired;
        self.registry.watched.ended(&self.key, Some(reason));
        match hold {
            Some(hold) => self.registry.report(|holds| {
                if told {
                    holds.not_released(hold, reason, how.own, false)
                } else {
                    holds.lost(hold, reason)
                }
            }),
            None => log_loss(&self.key.name, how.fence, reason),
        }
    }

    /// The hold will be ended in the background, whichever of these tokens it has.
    pub fn goes_on(&mut self, lease: Lease) -> impl Iterator<Item = &Token> {
        self.outcome = ReleaseOutcome::GoesOn(lease);
        self.tokens()
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        // In a child that was forked meanwhile it may be locked for ever.
        if process_id() == self.process {
            let (key, outcome) = (&self.key, self.outcome);
            let last = self.registry.transfers.change(key, |transfers| {
                transfers.end_release(key, outcome, Moment::now())
            });
            if last && outcome != ReleaseOutcome::Done {
                self.registry.report(|holds| holds.last_release(key));
            }
        }
    }
}
