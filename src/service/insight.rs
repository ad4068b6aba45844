//! Who holds what, and the end of a hold by force.

use super::Locks;
use super::registry::registry;
use crate::engine::{Hint, Loss, Name, Token};
use crate::error::{Error, Result};
use crate::store::{Budget, Record, Released};

/// After so many tries a hold that is there and does not end is kept by something else than
/// its holder, who would have to transfer it just then each time.
const TRIES: u32 = 20;

impl Locks {
    /// All holds, by name.
    pub fn holders(&self, budget: Budget) -> Result<Vec<Record>> {
        self.store().holders(self.lease(), budget)
    }

    /// The hold of a lock, if there is one.
    pub fn info(&self, name: &Name, budget: Budget) -> Result<Option<Record>> {
        self.store().info(name, self.lease(), budget)
    }

    /// What decides about how well locks are kept here: names and values.
    pub fn facts(&self, budget: Budget) -> Result<Vec<(String, Option<String>)>> {
        self.store().facts(budget)
    }

    /// Ends the hold of a lock, if it has this fence, or whichever it is. What was ended.
    pub fn revoke(
        &self,
        name: &Name,
        fence: Option<i64>,
        budget: Budget,
    ) -> Result<Option<Record>> {
        for _ in 0..TRIES {
            let Some((record, token)) = self.store().revocable(name, self.lease(), budget)? else {
                return Ok(None);
            };
            if fence.is_some() && record.fence != fence {
                return Ok(None);
            }
            let hint = match self.store().end(name, &token, self.lease(), budget)? {
                Released::Quietly => Hint::Free,
                Released::Calling => Hint::Awaited,
                // It has another token by now, or is another one, or none.
                Released::Lost => continue,
            };
            self.hint(budget, name, Some(hint));
            if let Some(token) = Token::parse(&token) {
                registry(budget.process).report(|holds| {
                    let (hold, _) = holds.with_token(&token)?;
                    holds.lost(hold, Loss::Released)
                });
            }
            return Ok(Some(record));
        }
        Err(Error::Sql {
            sqlstate: "02000".to_owned(), // no_data
            unknown: false,
            message: format!(
                "the hold of lock {name} is there, but an update of its row changes nothing; look \
                 for a policy or a trigger on the table"
            ),
        })
    }
}
