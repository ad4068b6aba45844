//! Asks the database for a lock, and hands the hold to its owner.

use super::locked;
use super::locks::Locks;
use super::registry::{Callbacks, registry};
use crate::engine::{
    Caller, Deadline, Entered, Entry, Grant, Hint, HoldId, Lease, LevelId, LockId, Moment, Name,
    Token,
};
use crate::error::{Error, Result};
use crate::store::{About, Answer, Budget, Look};
use crate::sync::process_id;
use std::sync::Arc;

/// How a lock is to be acquired.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Who wants it through which Lock object. Nobody: only the token counts.
    pub owner: Option<(LockId, Caller)>,
    /// It is the beginning of a block.
    pub block: bool,
    /// It is extended automatically.
    pub extended: bool,
    /// Another lease than `maxtime`.
    pub lease: Option<Lease>,
    /// What is to be known about the holder.
    pub about: About,
}

/// What the database said to an attempt to acquire.
#[derive(Debug)]
pub(super) enum Asked {
    /// It has the lock. With `unknown`, an answer was lost before: its statement may come late.
    Granted { grant: Grant, unknown: bool },
    /// It could not be taken; with `busy`, though nobody has it. With `unknown`, an answer
    /// was lost: the token may turn out to be that of a hold.
    Refused { busy: bool, unknown: bool },
}

impl Locks {
    /// The lease that a request asks for.
    pub(super) fn lease_of(&self, request: &Request) -> Lease {
        request.lease.unwrap_or(self.lease)
    }

    /// Whether the owner has the lock and enters it once more.
    pub(super) fn entry(&self, request: &Request, call: Budget) -> Entry {
        match &request.owner {
            Some((lock, caller)) => {
                registry(call.process).with(|holds| holds.entry(*lock, caller, self.reentrant))
            }
            None => Entry::Fresh,
        }
    }

    /// Whether the owner has no hold of it to enter once more.
    pub(super) fn is_fresh(&self, request: &Request) -> bool {
        request.owner.as_ref().is_none_or(|(lock, caller)| {
            registry(process_id()).with(|holds| !self.reentrant || !holds.is_owned(*lock, caller))
        })
    }

    /// What the database has granted, as its owner is going to have it.
    pub(super) fn grant(
        &self,
        name: &Name,
        token: &Token,
        (fence, deadline): (Option<i64>, Deadline),
        request: &Request,
    ) -> Grant {
        Grant {
            entered: Entered {
                hold: HoldId::fresh(),
                level: LevelId::fresh(),
            },
            again: false,
            // An object of nobody's, if nobody asks.
            lock: request
                .owner
                .as_ref()
                .map_or_else(LockId::fresh, |(lock, _)| *lock),
            name: name.clone(),
            token: token.clone(),
            fence,
            deadline,
            lease: self.lease_of(request),
            block: request.block,
            extended: request.extended,
        }
    }

    /// Asks the database for the lock, with the statement that suits what was seen of
    /// it last. A token that is not `fresh` may be that of a hold already.
    pub(super) fn ask(
        &self,
        name: &Name,
        token: &Token,
        fresh: bool,
        request: &Request,
        budget: Budget,
    ) -> Result<Asked> {
        let lease = self.lease_of(request);
        let hint = locked(&self.hints.of(budget.process)).of(name);
        let likely = match hint {
            _ if !fresh => false,
            Some(Hint::Free) => true,
            // Who was refused just now is likely to be refused again.
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
            // They still wait, so the release had better expect it.
            Answer::Acquired { .. } => hint.filter(|hint| *hint == Hint::Awaited),
        };
        self.hint(budget, name, hint);
        Ok(match answer {
            Answer::Acquired {
                fence,
                deadline,
                unknown,
            } => Asked::Granted {
                grant: self.grant(name, token, (Some(fence), deadline), request),
                unknown,
            },
            Answer::Refused { busy, unknown } => Asked::Refused { busy, unknown },
        })
    }

    /// Confirms and extends the hold that the owner wants to enter once more.
    pub(super) fn confirm(
        &self,
        name: &Name,
        (hold, token, lease): (HoldId, &Token, Lease),
        request: &Request,
        budget: Budget,
    ) -> Result<Grant> {
        // A block within may want a longer lease, but does not shorten it.
        let lease = request.lease.map_or(lease, |wanted| wanted.max(lease));
        let extended = self.extend_hold(hold, name, token, lease, budget);
        if matches!(extended, Err(Error::Expired(..))) {
            registry(budget.process).with(|holds| holds.reported(hold));
        }
        let (token, deadline) = extended?;
        Ok(Grant {
            entered: Entered {
                hold,
                level: LevelId::fresh(),
            },
            again: true,
            lease,
            ..self.grant(name, &token, (None, deadline), request)
        })
    }

    /// The owner is told that it has the lock. The last moment: it is held here or not at all.
    ///
    /// `false` if it is too late for that: the caller gives the hold back.
    pub(super) fn open(
        self: &Arc<Locks>,
        grant: &Grant,
        owner: Option<&Caller>,
        callbacks: Callbacks,
        process: u32,
    ) -> bool {
        // A lease of no time at all is what was asked for, and never in time.
        let late = grant.lease != Lease::ZERO && grant.deadline.passed(Moment::now());
        // What is entered again may have been renewed since, which the registry knows.
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
