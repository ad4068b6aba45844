//! Asks the database for a lock, and hands the hold to its owner.

use super::locked;
use super::locks::Locks;
use super::registry::{Callbacks, registry};
use crate::engine::{
    Caller, Deadline, Entered, Entry, Grant, Hint, HoldId, Key, Lease, LevelId, LockId, Moment,
    Name, Token,
};
use crate::error::{Error, Result};
use crate::store::{About, Answer, Budget, Look};
use crate::sync::process_id;
use std::sync::Arc;

/// How to acquire a lock.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The owner, and its Lock object. `None`: only the token identifies the hold.
    pub owner: Option<(LockId, Caller)>,
    /// Whether a block begins.
    pub block: bool,
    /// Whether the hold is extended automatically.
    pub extended: bool,
    /// A lease other than `maxtime`.
    pub lease: Option<Lease>,
    /// Information about the holder.
    pub about: About,
}

/// The database's answer to an attempt to acquire.
#[derive(Debug)]
pub(super) enum Asked {
    /// The lock is held. `unknown`: an answer was lost before, and its statement may come late.
    Granted { grant: Grant, unknown: bool },
    /// Not taken; `busy`: although nobody holds it. `unknown`: an answer was lost, so the token may
    /// turn out to have a hold.
    Refused { busy: bool, unknown: bool },
}

impl Locks {
    /// The lease that a request asks for.
    pub(super) fn lease_of(&self, request: &Request) -> Lease {
        request.lease.unwrap_or(self.lease)
    }

    /// Whether the owner already has the lock and enters it again.
    pub(super) fn entry(&self, request: &Request, call: Budget) -> Entry {
        match &request.owner {
            Some((lock, caller)) => {
                registry(call.process).with(|holds| holds.entry(*lock, caller, self.reentrant))
            }
            None => Entry::Fresh,
        }
    }

    /// Whether the owner has no hold to enter again.
    pub(super) fn is_fresh(&self, request: &Request) -> bool {
        request.owner.as_ref().is_none_or(|(lock, caller)| {
            registry(process_id()).with(|holds| !self.reentrant || !holds.is_owned(*lock, caller))
        })
    }

    /// The grant for the owner, from the database's answer.
    pub(super) fn grant(
        &self,
        key: Key,
        (fence, deadline): (Option<i64>, Deadline),
        request: &Request,
    ) -> Grant {
        Grant {
            entered: Entered {
                hold: HoldId::fresh(),
                level: LevelId::fresh(),
            },
            again: false,
            // Without an owner, use a Lock object of nobody's.
            lock: request
                .owner
                .as_ref()
                .map_or_else(LockId::fresh, |(lock, _)| *lock),
            key,
            fence,
            deadline,
            lease: self.lease_of(request),
            block: request.block,
            extended: request.extended,
        }
    }

    /// Asks the database for the lock, with the statement that fits what was last seen of it. A
    /// token that is not `fresh` may already have a hold.
    pub(super) fn ask(
        &self,
        name: &Name,
        token: &Token,
        fresh: bool,
        request: &Request,
        budget: Budget,
    ) -> Result<Asked> {
        let lease = self.lease_of(request);
        let key = self.key(name, token, budget)?;
        let hint = locked(&self.hints.of(budget.process)).of(name);
        let likely = match hint {
            _ if !fresh => false,
            Some(Hint::Free) => true,
            // A caller refused a moment ago is likely to be refused again.
            Some(Hint::Held) => match self.store.look(name, lease, budget)? {
                Look::Held => {
                    return Ok(Asked::Refused {
                        busy: false,
                        unknown: false,
                    });
                }
                Look::Free => true,
                Look::Missing => false,
            },
            Some(Hint::Awaited) | None => false,
        };
        let answer = self
            .store
            .acquire(name, token, lease, (&request.about, likely), budget)?;
        let hint = match answer {
            Answer::Refused { busy, .. } => (!busy).then_some(Hint::Held),
            // The others still wait, so our release should expect them.
            Answer::Acquired { .. } => hint.filter(|hint| *hint == Hint::Awaited),
        };
        self.hint(budget, name, hint);
        Ok(match answer {
            Answer::Acquired {
                fence,
                deadline,
                unknown,
            } => Asked::Granted {
                grant: self.grant(key, (Some(fence), deadline), request),
                unknown,
            },
            Answer::Refused { busy, unknown } => Asked::Refused { busy, unknown },
        })
    }

    /// Confirms and extends the hold that the owner wants to enter again.
    pub(super) fn confirm(
        &self,
        name: &Name,
        (hold, token, lease): (HoldId, &Token, Lease),
        request: &Request,
        budget: Budget,
    ) -> Result<Grant> {
        // An inner block may ask for a longer lease, but never shortens it.
        let lease = request.lease.map_or(lease, |wanted| wanted.max(lease));
        let extended = self.extend_hold(hold, name, token, lease, budget);
        if matches!(extended, Err(Error::Expired(..))) {
            registry(budget.process).with(|holds| holds.reported(hold));
        }
        let (_, deadline) = extended?;
        // Not the token of a transfer whose caller does not know it yet.
        let known = registry(budget.process).with(|holds| Some(holds.get(hold)?.key.clone()));
        let key = known.map_or_else(|| self.key(name, token, budget), Ok)?;
        Ok(Grant {
            entered: Entered {
                hold,
                level: LevelId::fresh(),
            },
            again: true,
            lease,
            ..self.grant(key, (None, deadline), request)
        })
    }

    /// Tells the owner that it has the lock. Last check: from here on it is held or not at all.
    ///
    /// `false` if the deadline has passed: then the caller gives the hold back.
    pub(super) fn open(
        self: &Arc<Locks>,
        grant: &Grant,
        owner: Option<&Caller>,
        callbacks: Callbacks,
        process: u32,
    ) -> bool {
        // A zero lease was asked for, and can never be in time.
        let late = grant.lease != Lease::ZERO && grant.deadline.passed(Moment::now());
        // A hold entered again may have been renewed since; the registry knows.
        if late && (!grant.again || owner.is_none()) {
            return false;
        }
        let Some(caller) = owner else {
            return true;
        };
        let registry = registry(process);
        let warned = callbacks.expiring.as_ref().map(|(before, _)| *before);
        let watched = callbacks.lost.is_some() || warned.is_some();
        // Before the hold can be lost.
        if watched {
            registry.call(grant.entered.level, callbacks);
        }
        let Some(opened) = registry.with(|holds| holds.open(grant.clone(), caller, Moment::now()))
        else {
            registry.forget(grant.entered.level);
            return false;
        };
        if watched {
            self.attend_hold(grant.entered, grant.lease, grant.extended);
        }
        if let Some(before) = warned {
            let class = self
                .renewal
                .get()
                .warn(grant.entered, before, grant.deadline);
            self.attend(class);
        }
        for entered in opened {
            let extended = registry.with(|holds| Some(holds.watched(entered)?.1));
            if extended == Some(true) {
                self.attend_hold(entered, grant.lease, true);
            }
        }
        true
    }
}
