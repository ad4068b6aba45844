//! Asks the database for a hold that a transfer may be changing.

use crate::engine::{Key, Lease, Token};
use crate::error::Result;
use crate::store::{Budget, Store};

/// Whether the database has the hold of a key, which a transfer may be giving another token.
pub(super) fn has_either(
    store: &Store,
    key: &Key,
    pending: Option<&Token>,
    lease: Lease,
    budget: Budget,
) -> Result<bool> {
    // In this order: the first becomes the second, and never the other way round.
    for token in [Some(&key.token), pending].into_iter().flatten() {
        if store.is_held(&key.name, token, lease, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}
