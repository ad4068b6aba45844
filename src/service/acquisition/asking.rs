//! The statements that an acquisition sends, and how it handles their answers.

use super::super::granting::Asked;
use super::super::locked;
use super::super::waiters::Waiter;
use super::{Acquisition, Progress, State, Step};
use crate::engine::{Ask, Entry, Grant, Hint, Late, Loss, Outcome, Plan};
use crate::error::{Error, Obstacle, Result};
use crate::store::{Budget, Candidate, Turn};
use std::sync::Arc;
use std::time::Duration;

impl Acquisition {
    /// How often a caller that does not wait asks, because an attempt of this process has
    /// ended since: then it may not have been another process that kept it out.
    const TRIES: usize = 5;

    pub(super) fn advance(&self, progress: &mut Progress, budget: Budget) -> Result<Step> {
        match self.locks.entry(&self.request, budget) {
            Entry::Fresh => {}
            Entry::Lost(token, reason) => {
                return Err(Error::Expired(self.name.clone(), token, reason));
            }
            Entry::Again { hold, token, lease } => {
                let hold = (hold, &token, lease);
                let confirmed = self.locks.confirm(&self.name, hold, &self.request, budget);
                return Ok(self.granted(progress, confirmed?));
            }
        }
        let mut settlements = self.locks.settlements(budget);
        if progress.waiter.is_none() && self.wait.over() {
            for _ in 0..Acquisition::TRIES {
                if !self.locks.waiters().come_first(&self.name) {
                    if let Some(grant) = self.ask(progress, budget)? {
                        return Ok(self.granted(progress, grant));
                    }
                }
                // A waiter that was given up counts until its statement has an answer.
                if !self.settle(&mut settlements, budget)? {
                    break;
                }
            }
            return Err(self.refused(progress, budget));
        }
        let waiters = self.locks.waiters();
        let join = || waiters.join(&self.name, self.wakeup.clone());
        let waiter = progress.waiter.get_or_insert_with(join).clone();
        loop {
            if self.is_given_up() {
                return Err(Error::Interrupted);
            }
            let granted = match waiters.plan(&waiter) {
                Plan::Sleep(_) if self.wait.over() => return Err(self.refused(progress, budget)),
                Plan::Sleep(due) => return Ok(Step::Sleep(self.wait.limit(due))),
                Plan::Try => self.try_without_queue(progress, &waiter, budget)?,
                Plan::Ask(ask) => self.take_or_queue(progress, &waiter, &ask, budget)?,
            };
            if let Some(grant) = granted {
                progress.waiter = None;
                return Ok(self.granted(progress, grant));
            }
            if self.settle(&mut settlements, budget)? {
                waiters.look_at_once(&waiter);
            } else if self.wait.over() {
                return Err(self.refused(progress, budget));
            }
        }
    }

    fn granted(&self, progress: &mut Progress, grant: Grant) -> Step {
        if std::mem::take(&mut progress.unknown) {
            // An earlier statement may take the lock again once this hold is over.
            let late = Late::Taking {
                token: locked(&self.token).clone(),
                granted: grant.fence.filter(|_| !grant.again),
            };
            let lease = self.locks.lease_of(&self.request);
            self.locks.may_come_late(&self.name, late, lease);
        }
        progress.state = State::Granted(grant);
        Step::Granted
    }

    /// Asks without entering the queue.
    fn ask(&self, progress: &mut Progress, budget: Budget) -> Result<Option<Grant>> {
        let token = locked(&self.token).clone();
        let fresh = !progress.unknown;
        let asked = self
            .locks
            .ask(&self.name, &token, fresh, &self.request, budget)?;
        Ok(match asked {
            Asked::Granted { grant, unknown } => {
                progress.unknown |= unknown;
                Some(grant)
            }
            Asked::Refused { busy, unknown } => {
                progress.busy = busy;
                progress.unknown |= unknown;
                None
            }
        })
    }

    /// Ends a hold left by an abandoned attempt of this process, if there is one. `true` if that
    /// may have freed the lock.
    fn settle(&self, settlements: &mut u64, budget: Budget) -> Result<bool> {
        let settled = self.locks.settle(&self.name, *settlements, budget)?;
        *settlements = self.locks.settlements(budget);
        if settled {
            self.locks.hint(budget, &self.name, None);
        }
        Ok(settled)
    }

    /// Asks for the first time, or while notifications do not get through.
    fn try_without_queue(
        &self,
        progress: &mut Progress,
        waiter: &Arc<Waiter>,
        budget: Budget,
    ) -> Result<Option<Grant>> {
        let waiters = self.locks.waiters();
        let asked = self.ask(progress, budget);
        match &asked {
            Err(Error::Forked) => {}
            Err(_) => waiters.failed(waiter),
            Ok(Some(grant)) => self.acquired(waiter, grant, None),
            Ok(None) => {
                if waiters.refused(waiter) {
                    self.locks.attend_waiters();
                }
            }
        }
        asked
    }

    /// Takes the lock if it is the process's turn, or enters the queue in the database.
    fn take_or_queue(
        &self,
        progress: &mut Progress,
        waiter: &Arc<Waiter>,
        ask: &Ask,
        budget: Budget,
    ) -> Result<Option<Grant>> {
        let token = locked(&self.token).clone();
        let waiters = self.locks.waiters();
        let candidate = Candidate {
            name: &self.name,
            token: &token,
            lease: self.locks.lease_of(&self.request),
            about: &self.request.about,
            ticket: ask.ticket,
            previous: ask.previous,
            more: ask.more,
        };
        let key = self.locks.key(&self.name, &token, budget);
        let turn = key.and_then(|key| Ok((key, self.turn(progress, candidate, ask, budget)?)));
        let granted = match turn {
            Ok((
                key,
                Turn::Acquired {
                    fence,
                    deadline,
                    queued,
                    unknown,
                },
            )) => {
                progress.unknown |= unknown;
                let granted = (Some(fence), deadline);
                let grant = self.locks.grant(key, granted, &self.request);
                self.acquired(waiter, &grant, Some(queued));
                Some(grant)
            }
            Ok((_, Turn::Later(queue))) => {
                progress.busy = queue.is_busy();
                progress.unknown |= queue.unknown;
                waiters.found(waiter, queue);
                None
            }
            Err(Error::Forked) => return Err(Error::Forked),
            Err(error) => {
                waiters.failed(waiter);
                return Err(error);
            }
        };
        // Where one waits, others often do: the next release in this process should expect waiters.
        self.locks.hint(budget, &self.name, Some(Hint::Awaited));
        Ok(granted)
    }

    /// Takes the lock directly if this waiter was called, or else as the queue allows.
    fn turn(
        &self,
        progress: &mut Progress,
        candidate: Candidate,
        ask: &Ask,
        budget: Budget,
    ) -> Result<Turn> {
        let store = self.locks.store();
        if ask.called {
            match store.take(candidate, budget)? {
                Turn::Later(queue) => progress.unknown |= queue.unknown,
                acquired @ Turn::Acquired { .. } => return Ok(acquired),
            }
        }
        let turn = store.wait(candidate, &ask.known, budget);
        let unknown = match &turn {
            Ok(Turn::Acquired { unknown, .. }) => *unknown,
            Ok(Turn::Later(queue)) => queue.unknown,
            Err(error) => error.outcome_unknown(),
        };
        if unknown {
            let late = Late::Entering(ask.ticket);
            self.locks.may_come_late(&self.name, late, candidate.lease);
        }
        turn
    }

    fn acquired(&self, waiter: &Arc<Waiter>, grant: &Grant, queued: Option<bool>) {
        let lease = Duration::from_secs_f64(grant.lease.seconds());
        let outcome = Outcome::Acquired { lease, queued };
        if let Some(ticket) = self.locks.waiters().left(waiter, outcome) {
            self.locks.leave_queue(&self.name, ticket);
        }
    }

    fn refused(&self, progress: &Progress, budget: Budget) -> Error {
        if progress.late {
            return self.too_late();
        }
        let obstacle = if progress.busy {
            // Only for the error message.
            let budget = budget.at_most(Duration::from_secs(1));
            match self.locks.store().busy(budget) {
                Err(Error::Forked) => return Error::Forked,
                busy => Obstacle::Busy(busy.unwrap_or_default()),
            }
        } else {
            Obstacle::Held
        };
        Error::NotAcquired(self.name.clone(), obstacle)
    }

    pub(super) fn too_late(&self) -> Error {
        let token = locked(&self.token).clone();
        Error::Expired(self.name.clone(), token, Loss::Expired)
    }
}
