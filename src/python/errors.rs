//! Maps errors of the core to exceptions.

use super::finalizing::{ours, python_code};
use crate::error::{Error, Obstacle};
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Exceptions that are the context of one another.
const LONGEST_CHAIN: usize = 1000;

/// The exception for an error. The classes live in `_errors.py`.
pub fn exception(py: Python<'_>, error: Error) -> PyErr {
    let _running = python_code(py);
    let raised = try_exception(py, error).unwrap_or_else(|failure| failure);
    chain(py, &raised).map_or_else(|failure| failure, |()| raised)
}

/// Whether an exception is one of the library's own.
pub fn is_ours(py: Python<'_>, raised: &PyErr) -> bool {
    let base = py
        .import("score.distlock._errors")
        .and_then(|errors| errors.getattr("DistlockError"));
    base.is_ok_and(|base| raised.is_instance(py, &base))
}

/// Whether a signal handler raised an exception, which may be of any class. An error is one of a
/// signal handler that ran meanwhile.
pub fn is_of_a_signal_handler(py: Python<'_>, raised: &PyErr) -> PyResult<bool> {
    let value = raised.value(py);
    if let Some(traceback) = raised.traceback(py) {
        // PyO3 keeps it apart before Python 3.12.
        value.setattr(intern!(py, "__traceback__"), traceback)?;
    }
    ours(py, "_interruption", "is_of_a_signal_handler", (value,))?.extract()
}

/// Python's `raise` sets the exception being handled as the context; from Rust we have to.
fn chain(py: Python<'_>, raised: &PyErr) -> PyResult<()> {
    let handled = py.import("sys")?.call_method0("exc_info")?.get_item(1)?;
    raised.value(py).setattr("__context__", handled)
}

/// An exception that was raised while another one was dealt with, with that one as the context of its
/// first one.
pub fn chained(py: Python<'_>, raised: PyErr, handled: &PyErr) -> PyErr {
    let context = intern!(py, "__context__");
    let mut last = raised.value(py).clone().into_any();
    // Not for ever, as an application may have made a circle.
    for _ in 0..LONGEST_CHAIN {
        let next = match last.getattr(context) {
            Ok(next) if next.is(handled.value(py)) => break,
            Ok(next) => next,
            Err(failure) => return failure,
        };
        if next.is_none() {
            let linked = last.setattr(context, handled.value(py));
            return linked.map_or_else(|failure| failure, |()| raised);
        }
        last = next;
    }
    raised
}

fn try_exception(py: Python<'_>, error: Error) -> PyResult<PyErr> {
    let class = |name: &str| py.import("score.distlock._errors")?.getattr(name);
    let text = error.to_string();
    let value = match error {
        Error::NotAcquired(name, obstacle) => {
            let options = PyDict::new(py);
            if let Obstacle::Busy(pids) = obstacle {
                options.set_item("busy", pids)?;
            }
            class("CouldNotAcquireLock")?.call((name.as_str(),), Some(&options))?
        }
        Error::Expired(name, token, reason) => {
            let options = PyDict::new(py);
            options.set_item("reason", reason.as_str())?;
            class("LockExpired")?.call((name.as_str(), token.as_str()), Some(&options))?
        }
        Error::NotAToken(name, token) => class("LockExpired")?.call1((name.as_str(), token))?,
        Error::TokenRequired(_) | Error::Name(_) => return Ok(PyValueError::new_err(text)),
        Error::Unavailable(_) | Error::Forked => class("DatabaseUnavailable")?.call1((text,))?,
        Error::Sql {
            sqlstate, message, ..
        } => class("DatabaseError")?.call1((message, sqlstate))?,
        Error::Configuration(message) => py
            .import("score.init")?
            .getattr("ConfigurationError")?
            .call1(("score.distlock", message))?,
        // The signal handler's own exception takes precedence, see `call`.
        Error::Interrupted => return Ok(PyKeyboardInterrupt::new_err(())),
    };
    Ok(PyErr::from_value(value))
}
