//! A release in progress, by a token that a transfer may be replacing.

use super::owed::Owed;
use super::registry::{Registry, registry};
use crate::engine::{Moment, Name, Token, Transfers};
use crate::store::Budget;
use crate::sync::process_id;
use std::sync::Arc;

/// Nobody is given the new token of a transfer until this is dropped, nor afterwards if the
/// hold has ended, or is going to. A transfer that begins later waits for that.
pub struct Releasing {
    owed: Arc<Owed>,
    registry: Arc<Registry>,
    process: u32,
    /// The token that the caller knows.
    token: Token,
    /// The token that the transfers know this release by.
    counted: Token,
    /// The new token of a transfer, if its caller does not know it yet.
    new: Option<Token>,
    /// The new token of a transfer that the hold is known to be in.
    pending: Option<Token>,
    done: bool,
}

impl Releasing {
    /// Begins a release by `token`; `pending` is the token that the hold is known to be getting.
    pub fn begin(
        owed: Arc<Owed>,
        token: &Token,
        pending: Option<&Token>,
        budget: Budget,
    ) -> Releasing {
        let registry = registry(budget.process);
        let begin = |transfers: &mut Transfers| transfers.begin_release(token, Moment::now());
        let (counted, new) = registry.transfers.with(begin);
        Releasing {
            owed,
            registry,
            process: budget.process,
            token: token.clone(),
            counted,
            new,
            pending: pending.cloned(),
            done: false,
        }
    }

    /// The token that the caller knows.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Whether the hold may have another token already.
    pub fn meets_transfer(&self) -> bool {
        self.new.is_some()
    }

    /// The token that the hold was known to be getting when the release began.
    pub fn pending(&self) -> Option<&Token> {
        self.pending.as_ref()
    }

    /// All tokens that the hold may have.
    fn tokens(&self) -> impl Iterator<Item = &Token> {
        let pending = self.pending.as_ref();
        let other = pending.filter(|pending| Some(*pending) != self.new.as_ref());
        [Some(&self.token), self.new.as_ref(), other]
            .into_iter()
            .flatten()
    }

    /// Whether an earlier call may have released the hold, or has.
    pub fn before(&self, name: &Name) -> Option<bool> {
        self.owed.with(|unresolved| {
            self.tokens()
                .filter_map(|token| unresolved.may_be_released(name, token))
                .reduce(|all, one| all && one)
        })
    }

    /// The hold has ended.
    pub fn resolved(&mut self, name: &Name) {
        self.done = true;
        self.found_nothing(name);
    }

    /// The outcome is known, and nothing is owed.
    pub fn found_nothing(&self, name: &Name) {
        for token in self.tokens() {
            self.owed.resolved(name, token);
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
            let (token, done) = (&self.counted, self.done);
            self.registry
                .transfers
                .with(|transfers| transfers.end_release(token, done));
        }
    }
}
