//! Why a hold is lost.

use std::fmt;

/// Why a hold is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its lease has run out.
    Expired,
    /// Another caller released it.
    Released,
    /// The database could not be reached in time to extend it.
    Unreachable,
    /// The database does not have it, and the reason is unknown.
    Unknown,
}

impl Loss {
    /// The value of `LockExpired.reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Loss::Expired => "expired",
            Loss::Released => "released",
            Loss::Unreachable => "unreachable",
            Loss::Unknown => "unknown",
        }
    }

    /// Whether the database has not confirmed it, and so may still have the hold.
    pub(super) fn is_presumed(self) -> bool {
        matches!(self, Loss::Unreachable | Loss::Expired)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
