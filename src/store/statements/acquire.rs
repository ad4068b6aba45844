//! Statements that take a lock, or find out what is in the way.

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

/// What an attempt to acquire came to.
#[derive(Debug)]
pub enum Answer {
    /// The lock is held.
    Acquired {
        /// The fencing number.
        fence: i64,
        /// Until when.
        deadline: Deadline,
        /// An answer was lost on the way: its statement may take the lock once more.
        unknown: bool,
    },
    /// It could not be taken.
    Refused {
        /// Nobody has it, but its row is locked.
        busy: bool,
        /// An answer was lost on the way: the token may turn out to be that of a hold.
        unknown: bool,
    },
}

/// What a look at a lock found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Look {
    /// Somebody holds it, or others wait for it.
    Held,
    /// It has a row, and nobody holds it.
    Free,
    /// It has no row.
    Missing,
}

impl Store {
    /// After these many tries, about 50 ms, a locked row counts as held: that
    /// is what a guard means by its lock.
    const TRIES_WHILE_BUSY: u32 = 6;

    /// Acquires `name` with a token made by the caller. An earlier attempt with
    /// the same token that succeeded unknown to the caller is found.
    ///
    /// If it is `likely` that the lock's row is there and free, a statement that can do
    /// no more than take it goes first.
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
        // What is asked otherwise tells what the clock says.
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
            // Nobody holds it, but its row is locked: by another taker who is
            // about to commit, by a guard, or by 0.2.5 cleaning up.
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
                    // It has waited already.
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

    /// Takes a lock that has a row and is free. `Err` if it is not, and whether an answer
    /// was lost on the way.
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

    /// Lets the sequence catch up with the fence of a row that was taken, or a part of the
    /// way: who takes it next goes on.
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

    /// What acquire.sql or wait.sql has taken, if it has: the fence and the deadline.
    ///
    /// If the fence may be older than another of the same name, a new one is drawn. So it
    /// is for a hold that an earlier statement took whose answer was lost.
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
            // It has ended meanwhile.
            None => Ok(None),
        }
    }

    /// Looks at a lock without touching it.
    pub fn look(&self, name: &Name, lease: Lease, budget: Budget) -> Result<Look> {
        let parameters: [Parameter; 3] = [&name.as_str(), &zone::offset(), &lease.seconds()];
        let answer = unless_locked(self.execute(Sql::Probe, &parameters, budget))?;
        let Ok(answer) = answer else {
            // Somebody keeps the table locked: who tries to take it is told who.
            return Ok(Look::Free);
        };
        Ok(match answer.rows.first() {
            None => Look::Missing,
            Some(row) if row.get::<Option<bool>>("held")? == Some(true) => Look::Held,
            Some(_) => Look::Free,
        })
    }

    /// Which server processes may have locked the row of a lock that nobody holds.
    pub fn busy(&self, budget: Budget) -> Result<Vec<i64>> {
        let answer = self.execute(Sql::Busy, &[], budget)?;
        answer.rows.iter().map(|row| row.get("pid")).collect()
    }
}
