//! Calls the core without the GIL, and checks for signals while it waits.

use super::errors::exception;
use super::events;
use super::owner::is_main_thread;
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::process_id;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Runs `work` with the GIL released. Whenever it waits, Python's signal handlers get to run; an
/// exception from one ends the wait and is raised here.
pub fn call<T: Send>(
    py: Python<'_>,
    timeout: Duration,
    work: impl FnOnce(Budget<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    run(py, timeout, false, work)
}

/// The same for work that may wait a long time. Only the main thread runs signal handlers, so other
/// threads are not disturbed.
pub fn call_patiently<T: Send>(
    py: Python<'_>,
    timeout: Duration,
    work: impl FnOnce(Budget<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    run(py, timeout, !is_main_thread(), work)
}

fn run<T: Send>(
    py: Python<'_>,
    timeout: Duration,
    undisturbed: bool,
    work: impl FnOnce(Budget<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let raised: Mutex<Option<PyErr>> = Mutex::new(None);
    let forked = AtomicBool::new(false);
    // A thread that returns after the interpreter has begun to finalize never gets the GIL again
    // and stays here (PyO3 sees to that where Python does not).
    let result = py.detach(|| {
        // The method itself is not general enough about its lifetime.
        #[allow(clippy::redundant_closure_for_method_calls)]
        let check = || {
            if undisturbed && !events::has_news() {
                return Ok(());
            }
            let checked = noticing_forks(&forked, || {
                let checked = Python::try_attach(|py| {
                    py.check_signals()?;
                    events::attend_news(py)
                });
                // Without an interpreter the process is about to exit.
                checked.unwrap_or(Ok(()))
            });
            checked.map_err(|error| {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Error::Interrupted
            })
        };
        let budget = Budget::new(timeout, &check);
        work(if undisturbed {
            budget.undisturbed()
        } else {
            budget
        })
    });
    let delivered = if events::are_waiting() {
        noticing_forks(&forked, || events::deliver_all(py))
    } else {
        Ok(())
    };
    // In a child that a signal handler forked, discard the result of the call.
    let result = if forked.load(Relaxed) {
        Err(Error::Forked)
    } else {
        result
    };
    match raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => delivered.and(result.map_err(|error| exception(py, error))),
    }
}

/// Runs Python code and sets `forked` in a child that a signal handler has forked meanwhile. Calls that
/// run none do without: asking for the process is a system call.
fn noticing_forks(forked: &AtomicBool, code: impl FnOnce() -> PyResult<()>) -> PyResult<()> {
    let process = process_id();
    let done = code();
    forked.fetch_or(process_id() != process, Relaxed);
    done
}
