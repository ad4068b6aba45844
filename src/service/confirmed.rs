//! What the database has confirmed about a hold.

use crate::engine::{Deadline, Loss, Moment, Name, Token};
use crate::error::{Error, Result};

/// The hold of a lock by a token, until a deadline.
#[derive(Debug)]
pub struct Confirmed {
    name: Name,
    token: Token,
    deadline: Deadline,
}

impl Confirmed {
    pub(super) fn new(name: &Name, token: Token, deadline: Deadline) -> Confirmed {
        Confirmed {
            name: name.clone(),
            token,
            deadline,
        }
    }

    /// Whether the deadline has not passed by now.
    #[must_use]
    pub fn is_in_time(&self) -> bool {
        !self.deadline.passed(Moment::now())
    }

    /// The token. To be asked by whoever goes on because of it, at that moment: an answer that
    /// comes after the deadline is no good news any more.
    pub fn in_time(self) -> Result<Token> {
        if self.is_in_time() {
            Ok(self.token)
        } else {
            Err(Error::Expired(self.name, self.token, Loss::Expired))
        }
    }
}
