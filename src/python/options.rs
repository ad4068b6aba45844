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
    /// As the module is configured: `'default'`.
    Configured,
    /// So long; `None` is for ever.
    Given(Option<Duration>),
}

impl Timeout {
    /// Not to wait.
    pub const ZERO: Timeout = Timeout::Given(Some(Duration::ZERO));

    /// The time, where `configured` is the default.
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
        // `_config.py` lets nothing through that is no time.
        let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(Timeout::Given(timeout.map(duration)))
    }
}

/// The same where it is configured: a bad one is an error of the configuration.
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

/// How a lock is to be entered.
#[derive(Clone, Debug)]
pub struct Entering {
    /// For how long to wait; `None` is for ever.
    pub timeout: Option<Duration>,
    /// Whether the hold is extended automatically.
    pub extended: bool,
    /// Whether it is the beginning of a block.
    pub block: bool,
    /// Another lease than `maxtime`.
    pub lease: Option<Lease>,
    /// What the hold is for.
    pub note: Option<Arc<str>>,
}
