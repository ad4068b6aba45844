//! Turns an Engine, a URL or a DSN object into the core's `Url`.

use super::errors::exception;
use super::finalizing::ours;
use crate::store::{self, Request, Url};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// The given database, and how the core reads it.
pub struct Database {
    pub url: Url,
    /// The Engine that was passed in, if any.
    pub engine: Option<Py<PyAny>>,
    /// Whether the Engine's connections may lead to a different database.
    pub verify: bool,
}

impl Database {
    /// Reads the constructor's argument; starts an embedded server if asked to.
    pub fn read(
        py: Python<'_>,
        given: &Bound<'_, PyAny>,
        arguments: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let source = ours(py, "_engine", "source", (given, arguments))?;
        let text: String = source.getattr("text")?.extract()?;
        let label: String = source.getattr("label")?.extract()?;
        let options: Vec<(String, String)> = source.getattr("arguments")?.extract()?;
        let request = Request {
            text: &text,
            label: &label,
            arguments: &options,
        };
        let url = Url::parse(&request).map_err(|error| exception(py, error))?;
        store::unsupported(&url).map_err(|error| exception(py, error))?;
        Ok(Database {
            url,
            engine: source.getattr("engine")?.extract()?,
            verify: source.getattr("verify")?.extract()?,
        })
    }
}

/// How we parse a URL and its options, for the tests that compare it with libpq.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // PyO3 extracts no slices of tuples
#[pyo3(signature = (text, arguments=Vec::new()))]
pub fn _understood<'py>(
    py: Python<'py>,
    text: &str,
    arguments: Vec<(String, String)>,
) -> PyResult<Bound<'py, PyDict>> {
    let request = Request {
        text,
        label: "sqlalchemy.url",
        arguments: &arguments,
    };
    let url = Url::parse(&request).map_err(|error| exception(py, error))?;
    let found = PyDict::new(py);
    for (name, value) in url.explain() {
        found.set_item(name, value)?;
    }
    let passwords = url.passwords().into_iter();
    let passwords: Vec<_> = passwords
        .map(|one| one.map(|one| PyBytes::new(py, one)))
        .collect();
    found.set_item("passwords", passwords)?;
    let refused = store::unsupported(&url)
        .err()
        .map(|error| error.to_string());
    found.set_item("refused", refused)?;
    Ok(found)
}
