//! What the database has confirmed about a hold.

use super::owed::Owed;
use crate::engine::{Deadline, Loss, Moment, Name, Token};
use crate::error::{Error, Result};
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
    old: Token,
    new: Token,
}

impl Drop for Replaced {
    fn drop(&mut self) {
        // Of no effect if it was read.
        self.owed
            .with(|unresolved| unresolved.transfer_failed(&self.old, &self.new));
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
    pub(super) fn replacing(self, owed: Arc<Owed>, old: Token) -> Confirmed {
        let new = self.token.clone();
        let replaced = Some(Replaced { owed, old, new });
        Confirmed { replaced, ..self }
    }

    /// Whether the deadline has not passed by now.
    #[must_use]
    pub fn is_in_time(&self) -> bool {
        !self.deadline.passed(Moment::now())
    }

    /// The token. To be asked by whoever goes on because of it, at that moment: an answer that
    /// comes after the deadline is no good news any more.
    pub fn in_time(&self) -> Result<&Token> {
        if self.is_in_time() {
            return Ok(&self.token);
        }
        let (name, token) = (self.name.clone(), self.token.clone());
        Err(Error::Expired(name, token, Loss::Expired))
    }

    /// The token has been read.
    pub fn read(self) {
        if let Some(Replaced { owed, old, new }) = &self.replaced {
            owed.with(|unresolved| unresolved.transfer_known(old, new));
        }
    }
}
