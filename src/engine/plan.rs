//! The plan a waiter gets from its line, and the results it reports back.

use crate::sync::Instant;
use std::time::Duration;

/// What a waiter should do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Sleep until this instant, or until woken.
    Sleep(Option<Instant>),
    /// Take the lock or enter the queue in the database.
    Ask(Ask),
    /// Take the lock if it is free: nobody has tried yet, or notifications do not get through.
    Try,
}

/// The arguments for asking the database.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The process's ticket.
    pub ticket: i64,
    /// An earlier ticket, or 0.
    pub previous: i64,
    /// The other tickets in the queue, as last seen.
    pub known: Vec<i64>,
    /// Whether it was called: then the lock must be free, and the ticket the first.
    pub called: bool,
    /// Whether others of the process wait: then the ticket goes to the end if the lock is taken.
    pub more: bool,
}

/// The queue in the database, as the leader saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The ticket is in the queue.
    pub queued: bool,
    /// Nobody holds the lock, and nobody is ahead, but the row was locked.
    pub busy: bool,
    /// When to look again if no call comes.
    pub due: Instant,
    /// All tickets.
    pub tickets: Vec<i64>,
}

/// How a waiter's wait ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// It acquired the lock.
    Acquired {
        /// For this long.
        lease: Duration,
        /// Whether its statement put the ticket at the queue's end, or removed it; `None` if it did
        /// not ask through the queue.
        queued: Option<bool>,
    },
    /// It stopped waiting.
    GaveUp,
}
