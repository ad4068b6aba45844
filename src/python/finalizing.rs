//! The end of the interpreter, as seen by threads that run Python code beneath a Rust frame.
//!
//! Before Python 3.14 a daemon thread that asks for the GIL while the interpreter ends is ended by
//! `pthread_exit`, which unwinds its stack. PyO3 keeps threads away from that where Rust code takes
//! the GIL, but Python code takes it too whenever another thread has had its turn. No Rust frame
//! can be unwound like that: the process aborts.
//!
//! So the end waits, for a moment, until no other thread is in such code, and lets none begin.

use pyo3::prelude::*;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How many threads run Python code beneath a Rust frame.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// The thread that ends the interpreter.
static ENDER: OnceLock<ThreadId> = OnceLock::new();

/// How long the end waits: that code calls back into an application now and then, which may wait
/// for whatever it likes.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a thread waits for the process to be over. A handler of the end that comes after ours
/// may wait for it in vain, but not for ever.
const FAREWELL: Duration = Duration::from_secs(5);

/// A thread that runs Python code beneath a Rust frame, until this is dropped.
pub struct Running(());

impl Running {
    fn begin() -> Running {
        RUNNING.fetch_add(1, SeqCst);
        Running(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, SeqCst);
    }
}

/// Python code, be it of this package or of the application, is about to be called.
#[must_use]
pub fn python_code(py: Python<'_>) -> Running {
    let running = Running::begin();
    if ENDER.get().is_none_or(|id| *id == thread::current().id()) {
        return running;
    }
    drop(running);
    py.detach(|| thread::sleep(FAREWELL));
    Running::begin()
}

/// The interpreter is about to end, on this thread.
#[pyfunction]
pub fn _finalizing(py: Python<'_>) {
    let _ = ENDER.set(thread::current().id());
    let started = Instant::now();
    py.detach(|| {
        while RUNNING.load(SeqCst) > 0 && started.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
