//! A release in progress, by a token that a transfer may be replacing.

use super::owed::Owed;
use super::registry::{Registry, registry};
use crate::engine::{Key, Moment, Token};
use crate::store::Budget;
use crate::sync::process_id;
use std::sync::Arc;

/// Nobody is given the new token of a transfer until this is dropped, nor afterwards if the
/// hold has ended, or is going to. A transfer that begins later waits for that.
pub struct Releasing {
    owed: Arc<Owed>,
    registry: Arc<Registry>,
    process: u32,
    /// What the caller knows.
    key: Key,
    /// The new token of a transfer that the hold may have.
    new: Option<Token>,
    done: bool,
}

impl Releasing {
    /// Begins a release by `key`; `pending` is the token that a transfer may have given to the hold
    /// of a block, which has been forgotten.
    pub fn begin(owed: Arc<Owed>, key: Key, pending: Option<&Token>, budget: Budget) -> Releasing {
        let registry = registry(budget.process);
        // In one step: from now on nobody reads the new token of a transfer.
        let new = registry.transfers.with(|transfers| {
            let meant = transfers.begin_release(&key, Moment::now());
            meant.or_else(|| registry.with(|holds| holds.pending(&key)))
        });
        Releasing {
            owed,
            registry,
            process: budget.process,
            key,
            new: new.or_else(|| pending.cloned()),
            done: false,
        }
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
        self.done = true;
        self.found_nothing();
    }

    /// The hold has none of the tokens, and nothing is owed.
    pub fn found_nothing(&self) {
        for token in self.tokens() {
            self.owed.resolved(&self.key.name, token);
        }
    }

    /// The hold will be ended in the background, whichever of these tokens it has.
    pub fn goes_on(&mut self) -> impl Iterator<Item = &Token> {
        self.done = true;
        self.tokens()
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        // In a child that was forked meanwhile it may be locked for ever.
        if process_id() == self.process {
            let (key, done) = (&self.key, self.done);
            self.registry
                .transfers
                .with(|transfers| transfers.end_release(key, done));
        }
    }
}
