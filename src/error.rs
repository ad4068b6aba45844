//! Everything that can go wrong, in one enum; `python/errors.rs` maps it to exceptions.

use crate::engine::{Loss, Name, Token};

/// Why a call failed.
///
/// No variant holds a password; tokens are only kept for the exception's fields and never
/// formatted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock could not be acquired in time.
    #[error("the lock {0} could not be acquired")]
    NotAcquired(Name, Obstacle),

    /// The token is not, or no longer, that of the lock's hold.
    #[error("the hold of {0} is lost: {2}")]
    Expired(Name, Token, Loss),

    /// Like `Expired`, for a value that cannot be a token at all.
    #[error("the hold of {0} is lost: this is not a token")]
    NotAToken(Name, String),

    /// `extend`, `release` or the like without token, on a Lock that has none.
    #[error(
        "no token was given for {0}, and its Lock object does not hold it; \
         pass the token that acquire() returned"
    )]
    TokenRequired(Name),

    /// The server cannot be reached or does not answer, or no pooled connection became free.
    #[error("{0}")]
    Unavailable(String),

    /// The server refused a statement.
    #[error("{message}")]
    Sql {
        /// The five characters of `SQLSTATE`.
        sqlstate: String,
        /// The server's message, and advice if we have any.
        message: String,
        /// An earlier statement of the same call may have had an effect: its answer was lost.
        unknown: bool,
    },

    /// The database cannot store the name of the lock.
    #[error("{0}")]
    Name(String),

    /// An option of the configuration, or a part of the URL, is not usable.
    #[error("{0}")]
    Configuration(String),

    /// The wait was interrupted, by Ctrl-C for instance. The outcome of the
    /// statement in flight is unknown.
    #[error("interrupted")]
    Interrupted,

    /// A signal handler forked during the call, and this is the child. The call and its outcome are
    /// the parent's.
    #[error(
        "a signal handler forked this process in the middle of a call; \
         the call goes on in the parent, make another one here"
    )]
    Forked,
}

/// Why a lock could not be acquired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Another owner holds it.
    Held,
    /// Nobody holds it, but another transaction has locked its row: perhaps that of one of these
    /// server processes.
    Busy(Vec<i64>),
}

impl Error {
    /// The same after earlier statements, with whether the answer to one was lost.
    #[must_use]
    pub fn after(mut self, lost: bool) -> Error {
        if let Error::Sql { unknown, .. } = &mut self {
            *unknown |= lost;
        }
        self
    }

    /// The same, with a better message if the server refused the statement because of the name.
    #[must_use]
    pub fn about(self, name: &Name) -> Error {
        let Error::Sql { sqlstate, .. } = &self else {
            return self;
        };
        let begin: String = name.as_str().chars().take(40).collect();
        let bytes = name.as_str().len();
        match sqlstate.as_str() {
            // program_limit_exceeded: the index row is too large.
            "54000" => Error::Name(format!(
                "the name of the lock is too long: it has {bytes} bytes in UTF-8, and \
                 PostgreSQL's index takes 2,704, after compression; it begins with {begin:?}"
            )),
            // untranslatable_character
            "22P05" => Error::Name(format!(
                "the name of the lock has a character that the database's encoding cannot \
                 store; it begins with {begin:?}"
            )),
            _ => self,
        }
    }

    /// Another call with the same token took too long.
    #[must_use]
    pub fn in_transfer(name: &Name) -> Error {
        Error::Unavailable(format!(
            "lock {name} is being transferred or released by another call"
        ))
    }

    /// Whether the call may have had an effect anyway.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            Error::Unavailable(_) | Error::Interrupted | Error::Sql { unknown: true, .. }
        )
    }
}

/// The result of every fallible function of the core.
pub type Result<T> = std::result::Result<T, Error>;
