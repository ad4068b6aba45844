//! Finalization of the interpreter, as seen by threads that run Python code beneath a Rust frame.
//!
//! Before Python 3.14 a daemon thread that asks for the GIL during finalization is ended by
//! `pthread_exit`, which unwinds its stack. PyO3 prevents that where Rust code takes the GIL, but
//! Python code also takes it, each time after another thread had its turn. Rust frames cannot be
//! unwound like that: the process aborts.
//!
//! So finalization waits briefly until no other thread runs such code, and lets none begin.

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
/// The thread that finalizes the interpreter.
static FINALIZER: OnceLock<ThreadId> = OnceLock::new();

thread_local! {
    /// Whether this thread started before finalization and has not waited for it yet.
    static WAITS: Cell<bool> = const { Cell::new(false) };
}

/// How long finalization waits: such code sometimes calls back into the application, which may wait
/// for anything.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long a thread waits for the process to exit, once: an exit handler that runs after ours may
/// wait for this thread in vain, but not for ever.
const EXIT_WAIT: Duration = Duration::from_secs(5);

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

/// Call this before Python code, of this package or of the application.
#[must_use]
pub fn python_code(py: Python<'_>) -> Running {
    let running = Running::begin();
    match FINALIZER.get() {
        None => WAITS.set(true),
        Some(id) if *id != thread::current().id() && WAITS.replace(false) => {
            drop(running);
            py.detach(|| thread::sleep(EXIT_WAIT));
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

/// The calling thread is about to finalize the interpreter.
#[pyfunction]
pub fn _finalizing(py: Python<'_>) {
    let _ = FINALIZER.set(thread::current().id());
    let (running, started) = (RUNNING.get(), Instant::now());
    py.detach(|| {
        while running.load(SeqCst) > 0 && started.elapsed() < LONGEST_WAIT {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
