//! The owner of a lock inside a process: a unit of work.

use super::HoldId;
use crate::sync::process_id;
use crate::sync::thread::{self, ThreadId};
use std::sync::Arc;

/// Where code runs: a thread of a process, in one of its tasks or greenlets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    process: u32,
    thread: ThreadId,
    task: Option<u64>,
    greenlet: Option<u64>,
}

impl Place {
    /// The calling thread of this process, in the given asyncio or trio task and greenlet: numbers
    /// that are never reused.
    #[must_use]
    pub fn current(task: Option<u64>, greenlet: Option<u64>) -> Place {
        Place {
            process: process_id(),
            thread: thread::current().id(),
            task,
            greenlet,
        }
    }
}

/// A caller: where it runs, and the holds that its context remembers.
///
/// A hold is remembered by the `contextvars` context in which it was acquired, and so by every
/// later copy of that context. A pool thread runs each unit of work in a context of its own, so the
/// next one remembers nothing of this one's.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where it runs.
    pub place: Place,
    /// The holds that its context remembers.
    pub remembered: Arc<[HoldId]>,
}
