//! Options for entering a lock, extracted from Python arguments.

use super::errors::exception;
use super::finalizing::ours;
use crate::engine::Lease;
use crate::error::Error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::sync::Arc;
use std::time::Duration;

/// A timeout as a Python argument.
#[derive(Clone, Copy, Debug)]
pub enum Timeout {
    /// The configured timeout: `'default'`.
    Configured,
    /// This long; `None` means for ever.
    Given(Option<Duration>),
}

impl Timeout {
    /// Do not wait.
    pub const ZERO: Timeout = Timeout::Given(Some(Duration::ZERO));

    /// The timeout, with `configured` as the default.
    pub fn or(self, configured: Option<Duration>) -> Option<Duration> {
        match self {
            Timeout::Configured => configured,
            Timeout::Given(timeout) => timeout,
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Timeout {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Timeout> {
        if let Ok(text) = value.cast::<PyString>() {
            if text.to_string_lossy() == "default" {
                return Ok(Timeout::Configured);
            }
        }
        let timeout: Option<f64> = ours(value.py(), "_config", "timeout", (value,))?.extract()?;
        // `_config.py` only lets valid times through.
        let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(Timeout::Given(timeout.map(duration)))
    }
}

/// A timeout in a configuration: a bad one is a configuration error.
#[derive(Clone, Copy, Debug)]
pub struct ConfiguredTimeout(pub Timeout);

impl<'a, 'py> FromPyObject<'a, 'py> for ConfiguredTimeout {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<ConfiguredTimeout> {
        let py = value.py();
        value
            .extract()
            .map(ConfiguredTimeout)
            .map_err(|error: PyErr| {
                if error.get_type(py).is(py.get_type::<PyValueError>()) {
                    exception(py, Error::Configuration(error.value(py).to_string()))
                } else {
                    error
                }
            })
    }
}

/// How to enter a lock.
#[derive(Clone, Debug)]
pub struct Entering {
    /// How long to wait; `None` means for ever.
    pub timeout: Option<Duration>,
    /// Whether the hold is extended automatically.
    pub extended: bool,
    /// Whether a block begins.
    pub block: bool,
    /// A lease other than `maxtime`.
    pub lease: Option<Lease>,
    /// What the hold is for.
    pub note: Option<Arc<str>>,
}
