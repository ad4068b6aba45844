//! Statements of the queue: wait for a lock, take a turn, leave.

use super::super::budget::Budget;
use super::super::holder::About;
use super::super::sql::Sql;
use super::execute::{Store, only, unless_locked};
use crate::engine::{Deadline, Lease, Name, Token};
use crate::error::Result;
use crate::zone;

/// The outcome of a waiter's attempt.
#[derive(Debug)]
pub enum Turn {
    /// The lock is held.
    Acquired {
        /// The fencing number.
        fence: i64,
        /// When the hold ends.
        deadline: Deadline,
        /// Whether the ticket is queued again, at the end.
        queued: bool,
        /// An answer was lost on the way: its statement may take the lock again.
        unknown: bool,
    },
    /// Not yet.
    Later(Queue),
}

/// The queue of a lock as a waiter found it.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // they are independent of each other
pub struct Queue {
    /// The waiter is in the queue.
    pub queued: bool,
    /// The lock is held.
    pub live: bool,
    /// score.distlock 0.2.5 has acquired or extended the hold.
    pub foreign: bool,
    /// The fence of the hold.
    pub fence: Option<i64>,
    /// How long the hold lasts, in seconds; negative once it has ended.
    pub remaining: f64,
    /// How many other processes are ahead.
    pub ahead: u32,
    /// All tickets.
    pub tickets: Vec<i64>,
    /// An answer was lost: its statement may have taken the lock, or may yet.
    pub unknown: bool,
}

impl Queue {
    /// Whether something other than a hold or a waiter is in the way: a lock on the row.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.live && self.ahead == 0
    }

    /// Nothing is known of the queue.
    fn unseen(unknown: bool) -> Queue {
        Queue {
            unknown,
            ..Queue::default()
        }
    }
}

/// A waiter, and what it waits for.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The name of the lock.
    pub name: &'a Name,
    /// The token to take it with.
    pub token: &'a Token,
    /// The lease to take it for.
    pub lease: Lease,
    /// Information about the holder.
    pub about: &'a About,
    /// The waiter's ticket.
    pub ticket: i64,
    /// The waiter's earlier ticket, or 0.
    pub previous: i64,
    /// Others of the process wait: the ticket should go to the queue's end.
    pub more: bool,
}

impl Store {
    /// Takes the lock for a waiter that was called. "Later" if the row is not as expected: then
    /// [`Store::wait`] finds out why.
    pub fn take(&self, waiter: Candidate, budget: Budget) -> Result<Turn> {
        let lease = waiter.lease.seconds();
        let holder = self.holder(budget.process, waiter.about);
        let answer = self.execute(
            Sql::Take,
            &[
                &waiter.name.as_str(),
                &waiter.token.as_str(),
                &lease,
                &zone::offset(),
                &holder,
                &waiter.ticket,
                &waiter.more,
            ],
            budget,
        );
        let answer = match unless_locked(answer)? {
            Ok(answer) => answer,
            Err(locked) => return Ok(Turn::Later(Queue::unseen(locked.unknown))),
        };
        let unknown = answer.repeated;
        Ok(match answer.rows.first() {
            Some(row) => {
                self.catch_up(row, budget)?;
                Turn::Acquired {
                    fence: row.get("fence")?,
                    deadline: Deadline::new(answer.sent, lease),
                    queued: waiter.more,
                    unknown,
                }
            }
            None => Turn::Later(Queue::unseen(unknown)),
        })
    }

    /// Takes the lock if it is the waiter's turn, or puts the waiter into the
    /// queue. `known` is the queue as last seen, without the waiter.
    pub fn wait(&self, waiter: Candidate, known: &[i64], budget: Budget) -> Result<Turn> {
        let answer = self.execute(
            Sql::Wait,
            &[
                &waiter.name.as_str(),
                &waiter.token.as_str(),
                &waiter.lease.seconds(),
                &zone::offset(),
                &self.holder(budget.process, waiter.about),
                &waiter.ticket,
                &waiter.previous,
                &known,
                &waiter.more,
            ],
            budget,
        );
        let answer = match unless_locked(answer.map_err(|error| error.about(waiter.name)))? {
            Ok(answer) => answer,
            Err(locked) => return Ok(Turn::Later(Queue::unseen(locked.unknown))),
        };
        let row = only(&answer.rows)?;
        let (name, token) = (waiter.name, waiter.token);
        let taken = self.taken(name, token, waiter.lease, &answer, budget)?;
        let remaining = row.get::<Option<f64>>("remaining")?.unwrap_or_default();
        let tickets: Vec<i64> = row.get::<Option<_>>("waiters")?.unwrap_or_default();
        if let Some((fence, deadline)) = taken {
            let mine = row.get::<Option<i64>>("fence")?.is_none();
            return Ok(Turn::Acquired {
                fence,
                deadline,
                queued: if mine {
                    tickets.contains(&waiter.ticket)
                } else {
                    waiter.more
                },
                unknown: answer.repeated,
            });
        }
        Ok(Turn::Later(Queue {
            queued: tickets.contains(&waiter.ticket),
            live: row.get::<Option<bool>>("live")? == Some(true),
            foreign: row.get::<Option<bool>>("foreign_hold")? == Some(true),
            fence: row.get("seen_fence")?,
            remaining,
            ahead: u32::try_from(row.get::<i64>("ahead")?).unwrap_or(u32::MAX),
            tickets,
            unknown: answer.repeated,
        }))
    }

    /// Takes a waiter out of the queue; notifies the next one if necessary.
    pub fn leave(&self, name: &Name, ticket: i64, lease: Lease, budget: Budget) -> Result<()> {
        self.execute(
            Sql::Leave,
            &[&name.as_str(), &ticket, &lease.seconds(), &zone::offset()],
            budget,
        )
        .map(drop)
    }

    /// Sends a listener a message over a connection of the pool.
    pub(in super::super) fn tell(
        &self,
        listener: i64,
        message: &str,
        budget: Budget,
    ) -> Result<()> {
        self.execute(Sql::Prove, &[&listener, &message], budget)
            .map(drop)
    }
}
