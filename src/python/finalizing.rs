//! The end of the interpreter, as seen by threads that run Python code beneath a Rust frame.
//!
//! Before Python 3.14 a daemon thread that asks for the GIL while the interpreter ends is ended by
//! `pthread_exit`, which unwinds its stack. PyO3 keeps threads away from that where Rust code takes
//! the GIL, but Python code takes it too whenever another thread has had its turn. No Rust frame
//! can be unwound like that: the process aborts.
//!
//! So the end waits, for a moment, until no other thread is in such code, and lets none begin.

use crate::process::ProcessLocal;
use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How many threads run Python code beneath a Rust frame.
static RUNNING: LazyLock<ProcessLocal<AtomicUsize>> = LazyLock::new(ProcessLocal::default);
/// The thread that ends the interpreter.
static ENDER: OnceLock<ThreadId> = OnceLock::new();

thread_local! {
    /// Whether this thread was here before the end began, and has not waited for it yet.
    static WAITS: Cell<bool> = const { Cell::new(false) };
}

/// How long the end waits: that code calls back into an application now and then, which may wait
/// for whatever it likes.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a thread waits for the process to be over, once: a handler that comes after ours may
/// wait for it in vain, but not for ever.
const FAREWELL: Duration = Duration::from_secs(5);

/// A thread that runs Python code beneath a Rust frame, until this is dropped.
pub struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin() -> Running {
        let running = RUNNING.get();
        running.fetch_add(1, SeqCst);
        Running(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Python code, be it of this package or of the application, is about to be called.
#[must_use]
pub fn python_code(py: Python<'_>) -> Running {
    let running = Running::begin();
    match ENDER.get() {
        None => WAITS.set(true),
        Some(id) if *id != thread::current().id() && WAITS.replace(false) => {
            drop(running);
            py.detach(|| thread::sleep(FAREWELL));
            return Running::begin();
        }
        Some(_) => {}
    }
    running
}

/// Calls a function of one of the package's Python modules.
pub fn ours<'py>(
    py: Python<'py>,
    module: &str,
    function: &str,
    arguments: impl PyCallArgs<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let _running = python_code(py);
    py.import(format!("score.distlock.{module}"))?
        .getattr(function)?
        .call1(arguments)
}

/// The interpreter is about to end, on this thread.
#[pyfunction]
pub fn _finalizing(py: Python<'_>) {
    let _ = ENDER.set(thread::current().id());
    let (running, started) = (RUNNING.get(), Instant::now());
    py.detach(|| {
        while running.load(SeqCst) > 0 && started.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
