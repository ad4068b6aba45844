//! What the database has confirmed about a hold.

use super::owed::Owed;
use crate::engine::{Claim, Deadline, Loss, Moment, Name, Token};
use crate::error::{Error, Result};
use crate::sync::process_id;
use std::sync::Arc;

/// The hold of a lock by a token, until a deadline.
pub struct Confirmed {
    name: Name,
    token: Token,
    deadline: Deadline,
    /// The token that it has replaced.
    replaced: Option<Replaced>,
}

/// A token that was replaced stands for the new one until somebody has read that: a coroutine
/// may be cancelled before, and knows no other.
struct Replaced {
    owed: Arc<Owed>,
    process: u32,
    claim: Claim,
}

impl Drop for Replaced {
    fn drop(&mut self) {
        // In a child that was forked meanwhile it may be locked for ever.
        if process_id() == self.process {
            // Of no effect if it was read.
            self.owed
                .with(|unresolved| unresolved.transfers.failed(&self.claim));
        }
    }
}

impl Confirmed {
    pub(super) fn new(name: &Name, token: Token, deadline: Deadline) -> Confirmed {
        Confirmed {
            name: name.clone(),
            token,
            deadline,
            replaced: None,
        }
    }

    /// The same after a transfer from another token.
    pub(super) fn replacing(self, owed: Arc<Owed>, claim: Claim, process: u32) -> Confirmed {
        let replaced = Replaced {
            owed,
            process,
            claim,
        };
        Confirmed {
            replaced: Some(replaced),
            ..self
        }
    }

    /// Whether the deadline has not passed by now.
    #[must_use]
    pub fn is_in_time(&self) -> bool {
        !self.deadline.passed(Moment::now())
    }

    /// The token. To be asked by whoever goes on because of it, at that moment: an answer that
    /// comes after the deadline is no good news any more. [`Confirmed::read`] comes after it.
    pub fn in_time(&self) -> Result<&Token> {
        if self.is_in_time() {
            return Ok(&self.token);
        }
        let (name, token) = (self.name.clone(), self.token.clone());
        Err(Error::Expired(name, token, Loss::Expired))
    }

    /// The token is about to be read, which is the last moment to refuse it: somebody may have
    /// released the hold under the old one.
    pub fn read(self) -> Result<()> {
        let Some(replaced) = &self.replaced else {
            return Ok(());
        };
        if process_id() != replaced.process {
            return Err(Error::Forked);
        }
        let Replaced { owed, claim, .. } = replaced;
        if owed.with(|unresolved| unresolved.transfers.read(claim)) {
            return Ok(());
        }
        let (name, token) = (self.name.clone(), self.token.clone());
        Err(Error::Expired(name, token, Loss::Released))
    }
}
