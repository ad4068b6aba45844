//! Statements that take a lock, or find out what stands in the way.

use super::super::answer::{Parameter, Row};
use super::super::budget::Budget;
use super::super::holder::About;
use super::super::sql::Sql;
use super::execute::{Outcome, Store, only, unless_locked};
use crate::engine::{Deadline, Lease, Moment, Name, Token};
use crate::error::{Error, Result};
use crate::zone;
use rand::RngExt;
use std::time::Duration;

/// The outcome of an attempt to acquire.
#[derive(Debug)]
pub enum Answer {
    /// The lock is held.
    Acquired {
        /// The fencing number.
        fence: i64,
        /// When the hold ends.
        deadline: Deadline,
        /// An answer was lost on the way: its statement may take the lock again.
        unknown: bool,
    },
    /// The lock could not be taken.
    Refused {
        /// Nobody holds it, but its row is locked.
        busy: bool,
        /// An answer was lost on the way: the token may turn out to have a hold.
        unknown: bool,
    },
}

/// What a look at a lock found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Look {
    /// It is held, or others wait for it.
    Held,
    /// It has a row, and nobody holds it.
    Free,
    /// It has no row.
    Missing,
}

impl Store {
    /// After this many tries, about 50 ms, a locked row counts as held: that is what a guard's row
    /// lock means.
    const TRIES_WHILE_BUSY: u32 = 6;

    /// Acquires `name` with a token made by the caller. Finds an earlier attempt with the same
    /// token that succeeded without the caller's knowledge.
    ///
    /// If the row is `likely` to be there and free, first sends a statement that can only take the
    /// lock.
    pub fn acquire(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        (about, likely): (&About, bool),
        budget: Budget,
    ) -> Result<Answer> {
        let holder = self.holder(budget.process, about);
        let parameters: [Parameter; 5] = [
            &name.as_str(),
            &token.as_str(),
            &lease.seconds(),
            &zone::offset(),
            &holder,
        ];
        let mut unknown = false;
        // Only the full statement reads the clock.
        if likely && self.clock.is_recent(Moment::now()) {
            match self.retake(&parameters, lease, budget)? {
                Ok(acquired) => return Ok(acquired),
                Err(repeated) => unknown = repeated,
            }
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = self
                .execute(Sql::Acquire, &parameters, budget)
                .map_err(|error| error.after(unknown).about(name));
            // Nobody holds it, but its row is locked: by another taker about to commit, by a guard,
            // or by 0.2.5 cleaning up.
            let mut busy = true;
            match unless_locked(answer)? {
                Ok(answer) => {
                    if let Some((fence, deadline)) =
                        self.taken(name, token, lease, &answer, budget)?
                    {
                        self.sweep_if_due(self.pace.after_acquisition(), lease, budget)?;
                        return Ok(Answer::Acquired {
                            fence,
                            deadline,
                            unknown: unknown || answer.repeated,
                        });
                    }
                    busy = only(&answer.rows)?.get::<Option<bool>>("held")? != Some(true);
                    unknown |= answer.repeated;
                }
                Err(locked) => {
                    unknown |= locked.unknown;
                    // The statement has already waited.
                    tries = Store::TRIES_WHILE_BUSY;
                }
            }
            if !busy || tries == Store::TRIES_WHILE_BUSY || budget.over() {
                self.sweep_if_due(self.pace.after_call(), lease, budget)?;
                return Ok(Answer::Refused { busy, unknown });
            }
            let limit = Duration::from_millis(1 << tries);
            budget.pause(limit.mul_f64(rand::rng().random_range(0.5..1.0)))?;
        }
    }

    /// Takes a lock that has a row and is free. `Err` if it is not, with whether an answer was lost
    /// on the way.
    fn retake(
        &self,
        parameters: &[Parameter],
        lease: Lease,
        budget: Budget,
    ) -> Result<std::result::Result<Answer, bool>> {
        let answer = match unless_locked(self.execute(Sql::Retake, parameters, budget))? {
            Ok(answer) => answer,
            Err(locked) => return Ok(Err(locked.unknown)),
        };
        let Some(row) = answer.rows.first() else {
            return Ok(Err(answer.repeated));
        };
        let deadline = Deadline::new(answer.sent, lease.seconds());
        self.catch_up(row, budget)?;
        self.sweep_if_due(self.pace.after_acquisition(), lease, budget)?;
        Ok(Ok(Answer::Acquired {
            fence: row.get("fence")?,
            deadline,
            unknown: answer.repeated,
        }))
    }

    /// Lets the sequence catch up with the fence of a row that was taken, or part of the way: the
    /// next taker continues.
    pub(super) fn catch_up(&self, taken: &Row, budget: Budget) -> Result<()> {
        if taken.get::<Option<bool>>("beyond")? != Some(true) {
            return Ok(());
        }
        match self.execute(Sql::Repair, &[&Store::NUMBERS_PER_REPAIR], budget) {
            Err(error @ (Error::Interrupted | Error::Forked)) => Err(error),
            Err(error) => {
                log::debug!("the sequence of fences could not be advanced: {error}");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// The fence and deadline of the hold that acquire.sql or wait.sql took, if any.
    ///
    /// Draws a new fence if this one may be older than another of the same name, as may be if an
    /// earlier statement took the hold and its answer was lost.
    pub(super) fn taken(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        answer: &Outcome,
        budget: Budget,
    ) -> Result<Option<(i64, Deadline)>> {
        let row = only(&answer.rows)?;
        self.clock.learn(row.get("instant")?, Moment::now());
        let deadline = |seconds| Deadline::new(answer.sent, seconds);
        let fence = row.get::<Option<i64>>("fence")?;
        let (before, deadline) = match fence {
            Some(fence) if row.get("newest")? => {
                self.catch_up(row, budget)?;
                return Ok(Some((fence, deadline(lease.seconds()))));
            }
            Some(fence) => (fence, deadline(lease.seconds())),
            None if row.get::<Option<bool>>("mine")? == Some(true) => {
                let before = row.get::<Option<i64>>("seen_fence")?.unwrap_or_default();
                (before, deadline(row.get("remaining")?))
            }
            None => return Ok(None),
        };
        let parameters: [Parameter; 5] = [
            &name.as_str(),
            &token.as_str(),
            &lease.seconds(),
            &zone::offset(),
            &before,
        ];
        let numbered = self
            .execute(Sql::Number, &parameters, budget)
            .map_err(|error| error.after(true).about(name))?;
        match numbered.rows.first() {
            Some(row) => Ok(Some((row.get("fence")?, deadline))),
            // The hold has ended meanwhile.
            None => Ok(None),
        }
    }

    /// Looks at a lock without touching it.
    pub fn look(&self, name: &Name, lease: Lease, budget: Budget) -> Result<Look> {
        let parameters: [Parameter; 3] = [&name.as_str(), &zone::offset(), &lease.seconds()];
        let answer = unless_locked(self.execute(Sql::Probe, &parameters, budget))?;
        let Ok(answer) = answer else {
            // The table is locked: an attempt to take the lock will tell by whom.
            return Ok(Look::Free);
        };
        Ok(match answer.rows.first() {
            None => Look::Missing,
            Some(row) if row.get::<Option<bool>>("held")? == Some(true) => Look::Held,
            Some(_) => Look::Free,
        })
    }

    /// The server processes that may have locked the row of a free lock.
    pub fn busy(&self, budget: Budget) -> Result<Vec<i64>> {
        let answer = self.execute(Sql::Busy, &[], budget)?;
        answer.rows.iter().map(|row| row.get("pid")).collect()
    }
}
