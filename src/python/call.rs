//! Calling the core: without the GIL, and with an ear for signals.

use super::errors::exception;
use crate::error::{Error, Result};
use crate::store::Patience;
use pyo3::prelude::*;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Runs `work` with the GIL released. Whenever it waits, Python's signal
/// handlers get their chance; what they raise ends the wait and is raised here.
pub fn call<T: Send>(
    py: Python<'_>,
    timeout: Duration,
    work: impl FnOnce(Patience<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let raised: Mutex<Option<PyErr>> = Mutex::new(None);
    let result = py.detach(|| {
        // The method itself is not general enough about its lifetime.
        #[allow(clippy::redundant_closure_for_method_calls)]
        let check = || {
            Python::attach(|py| py.check_signals()).map_err(|error| {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Error::Interrupted
            })
        };
        work(Patience::new(timeout, &check))
    });
    match raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => result.map_err(|error| exception(py, error)),
    }
}
