//! Acquiring several locks: all of them, or none.

use super::acquire::enter;
use super::errors::{exception, is_ours};
use super::finalizing::ours;
use super::handle::Shared;
use super::levels::Levels;
use super::lock::Lock;
use super::options::{Entering, Timeout};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::Instant;

/// Enters a level of each lock, in an order independent of the caller's, and returns the `Holds`.
pub fn acquire<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    names: &Bound<'py, PyAny>,
    timeout: Timeout,
    autoextend: Option<bool>,
    get: impl Fn(&Bound<'py, PyAny>) -> PyResult<Bound<'py, Lock>>,
) -> PyResult<Bound<'py, PyAny>> {
    let names: Vec<Bound<'py, PyAny>> = ours(py, "_all", "ordered", (names,))?.extract()?;
    let autoextend = autoextend.unwrap_or(shared.autoextend);
    let until = timeout
        .or(shared.timeout)
        .map(|timeout| (Instant::now(), timeout));
    let levels = Levels::new(shared.locks.clone());
    let mut locks = Vec::new();
    for name in names {
        let lock = get(&name)?;
        let entering = Entering {
            timeout: until.map(|(begun, timeout)| timeout.saturating_sub(begun.elapsed())),
            // Extended, so that the locks taken first stay held while we wait for the rest.
            extended: true,
            block: true,
            lease: None,
            note: None,
        };
        let entered = enter(py, lock.get().handle(), entering, None)
            .and_then(|entered| entered.map_err(|error| exception(py, error)));
        let (level, token) = entered.map_err(|error| give_back(py, &levels, error))?;
        levels.push(lock.get().handle().core.clone(), level);
        locks.push((lock, token.as_str().to_owned()));
    }
    let levels = Bound::new(py, levels)?;
    let holds = ours(py, "_all", "Holds", (&levels, locks, autoextend));
    // The exception's traceback keeps them alive, so release them explicitly.
    holds.map_err(|error| give_back(py, levels.get(), error))
}

/// Gives back what was taken before the error. Returns the error, or what a signal handler raised
/// meanwhile.
fn give_back(py: Python<'_>, levels: &Levels, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyException>(py) {
        levels.abandon(); // an interrupted caller does not wait
        return error;
    }
    match levels.release(py) {
        Err(raised) if !is_ours(py, &raised) => {
            let chained = raised.value(py).setattr("__context__", error.value(py));
            chained.map_or_else(|failure| failure, |()| raised)
        }
        // A failed release is repeated in the background.
        _ => error,
    }
}
