//! A hold that the database has confirmed.

use super::registry::Registry;
use crate::engine::{Claim, Deadline, Loss, Moment, Name, Token};
use crate::error::{Error, Result};
use crate::sync::process_id;
use std::sync::Arc;

/// A hold of a lock by a token, confirmed until a deadline.
pub struct Confirmed {
    name: Name,
    token: Token,
    deadline: Deadline,
    /// The token that this one replaced.
    replaced: Option<Replaced>,
}

/// A replaced token stands for the new one until a caller has read the new one: a coroutine may be
/// cancelled before, and then knows only the old one.
struct Replaced {
    registry: Arc<Registry>,
    process: u32,
    claim: Claim,
}

impl Drop for Replaced {
    fn drop(&mut self) {
        // In a child forked in the meantime the mutex may be locked for ever.
        if process_id() == self.process {
            // No effect if the token was read.
            self.registry
                .transfers
                .change(&self.claim.old, |all| all.failed(&self.claim));
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
    pub(super) fn replacing(
        self,
        registry: Arc<Registry>,
        claim: Claim,
        process: u32,
    ) -> Confirmed {
        let replaced = Replaced {
            registry,
            process,
            claim,
        };
        Confirmed {
            replaced: Some(replaced),
            ..self
        }
    }

    /// Whether the deadline has not passed yet.
    #[must_use]
    pub fn is_in_time(&self) -> bool {
        !self.deadline.passed(Moment::now())
    }

    /// The token, if the deadline has not passed. Call it at the moment of relying on the hold:
    /// after the deadline a confirmation is worthless. Then call [`Confirmed::read`].
    pub fn in_time(&self) -> Result<&Token> {
        if self.is_in_time() {
            return Ok(&self.token);
        }
        let (name, token) = (self.name.clone(), self.token.clone());
        Err(Error::Expired(name, token, Loss::Expired))
    }

    /// Last check before the caller gets the token: another caller may have released the hold with
    /// the old one.
    pub fn read(self) -> Result<()> {
        let Some(replaced) = &self.replaced else {
            return Ok(());
        };
        if process_id() != replaced.process {
            return Err(Error::Forked);
        }
        if replaced.registry.read(&replaced.claim) {
            return Ok(());
        }
        let (name, token) = (self.name.clone(), self.token.clone());
        Err(Error::Expired(name, token, Loss::Released))
    }
}
