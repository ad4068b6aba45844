//! Reports holders, and ends holds by force.

use super::Locks;
use super::registry::registry;
use crate::engine::{Hint, Loss, Name, Token};
use crate::error::{Error, Result};
use crate::store::{Budget, Ended, Listener, NotListening, Record};

/// After this many tries, a hold that is still there must be kept by something other than its
/// holder, which would have to transfer it at just that moment every time.
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

    /// Facts that affect how reliable the locks are here: names and values.
    pub fn facts(&self, budget: Budget) -> Result<Vec<(String, Option<String>)>> {
        let mut facts = self.store().facts(budget)?;
        let heard = match Listener::open(self.store(), budget) {
            Ok(_) => Some("true"),
            Err(NotListening::Pooler) => Some("false"),
            Err(NotListening::Unreachable(_)) => None,
        };
        facts.push(("notifications".to_owned(), heard.map(str::to_owned)));
        Ok(facts)
    }

    /// Pairs of locks: the holder of the first waits for the second.
    pub fn waits(&self, budget: Budget) -> Result<Vec<(String, String)>> {
        self.store().waits(self.lease(), budget)
    }

    /// Ends the hold of a lock, if it has this fence (`None`: any). Returns what it ended.
    pub fn revoke(
        &self,
        name: &Name,
        fence: Option<i64>,
        budget: Budget,
    ) -> Result<Option<Record>> {
        // A hold that may have ended, although the answer was lost.
        let mut perhaps: Option<(Record, String)> = None;
        for _ in 0..TRIES {
            let mut found = self.store().revocable(name, self.lease(), budget)?;
            if let Some(ended) = perhaps.take() {
                if !found.as_ref().is_some_and(|(now, _)| now.is_of(&ended.0)) {
                    // The current hold, if any, is a different one.
                    return Ok(Some(self.revoked(name, ended, None, budget)));
                }
            }
            if fence.is_some() {
                found = found.filter(|(record, _)| record.fence == fence);
            }
            let Some(found) = found else {
                return Ok(None);
            };
            match self.store().end(name, &found.1, self.lease(), budget)? {
                Ended::Quietly => {
                    return Ok(Some(self.revoked(name, found, Some(Hint::Free), budget)));
                }
                Ended::Calling => {
                    return Ok(Some(self.revoked(name, found, Some(Hint::Awaited), budget)));
                }
                Ended::Perhaps => perhaps = Some(found),
                // It has a new token by now, or was replaced, or has ended.
                Ended::Not => {}
            }
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

    /// A hold was ended by force: tells its owner, if that is in this process.
    fn revoked(
        &self,
        name: &Name,
        (record, token): (Record, String),
        hint: Option<Hint>,
        budget: Budget,
    ) -> Record {
        self.hint(budget, name, hint);
        let token = Token::parse(&token);
        if let Some(key) = token.and_then(|token| self.known_key(name, &token)) {
            let registry = registry(budget.process);
            registry.report(|holds| {
                let (hold, _) = holds.with_key(&key)?;
                holds.lost(hold, Loss::Released)
            });
            let old = registry.transfers.with(|all| all.replaced(&key).cloned());
            let known = old.unwrap_or(key);
            registry.watched.ended(&known, Some(Loss::Released));
        }
        record
    }
}
