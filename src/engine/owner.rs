//! Who holds a lock inside a process.

use std::thread::ThreadId;

/// The execution context that acquired a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    process: u32,
    thread: ThreadId,
    task: Option<u64>,
    greenlet: Option<u64>,
}

impl Owner {
    /// The calling thread of this process, in the given asyncio task and
    /// greenlet: numbers that are never used twice.
    #[must_use]
    pub fn current(task: Option<u64>, greenlet: Option<u64>) -> Owner {
        Owner {
            process: std::process::id(),
            thread: std::thread::current().id(),
            task,
            greenlet,
        }
    }
}
