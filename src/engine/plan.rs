//! The plan a waiter gets from its line, and the results it reports back.

use crate::sync::Instant;
use std::time::Duration;

/// What a waiter has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Sleep until then, or until it is woken.
    Sleep(Option<Instant>),
    /// Take the lock or enter the queue in the database.
    Ask(Ask),
    /// Take the lock if it is free: nobody has tried yet, or notifications do not come through.
    Try,
}

/// With what to ask the database.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The process's ticket.
    pub ticket: i64,
    /// An earlier one, or 0.
    pub previous: i64,
    /// The others in the queue, as last seen.
    pub known: Vec<i64>,
    /// It was called: the lock must be free, and the ticket the first.
    pub called: bool,
    /// Others of the process wait: the ticket goes to the end if the lock is taken.
    pub more: bool,
}

/// What the leader saw of the queue in the database.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The ticket is in it.
    pub queued: bool,
    /// Nobody holds the lock, and nobody comes first, but the row was locked.
    pub busy: bool,
    /// When to look again if nobody calls.
    pub due: Instant,
    /// All tickets.
    pub tickets: Vec<i64>,
}

/// How a waiter's wait ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// It has acquired the lock.
    Acquired {
        /// For so long.
        lease: Duration,
        /// Whether its statement has put the ticket to the queue's end, or out of it; `None`
        /// if it did not ask through the queue.
        queued: Option<bool>,
    },
    /// It waits no longer.
    GaveUp,
}
