//! Records of holds as plain tuples, which `_insight.py` turns into objects.

use super::finalizing::ours;
use crate::store::Record;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyList};

/// The fields of a record, in the order of `HoldInfo`'s. No Python code runs here, so no signal can
/// interrupt it.
fn fields(py: Python<'_>, record: Record) -> PyResult<Py<PyAny>> {
    (
        record.name,
        record.fence,
        record.host,
        record.process,
        record.thread,
        record.note,
        record.acquired,
        record.expires,
        record.waiters,
    )
        .into_py_any(py)
}

/// The fields of many records.
pub fn all_fields(py: Python<'_>, records: Vec<Record>) -> PyResult<Bound<'_, PyList>> {
    let fields = records.into_iter().map(|record| fields(py, record));
    PyList::new(py, fields.collect::<PyResult<Vec<_>>>()?)
}

/// Has a function of `_insight.py` turn records into objects.
pub fn objects<'py>(
    py: Python<'py>,
    function: &str,
    records: Vec<Record>,
) -> PyResult<Bound<'py, PyAny>> {
    ours(py, "_insight", function, (all_fields(py, records)?,))
}

/// A fencing number passed as an argument.
pub fn fence(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<i64>> {
    let Some(value) = value else {
        return Ok(None);
    };
    if !value.is_instance_of::<PyInt>() || value.is_instance_of::<PyBool>() {
        let kind = value.get_type().name()?;
        let message = format!("fence must be an int or None, not {kind}");
        return Err(PyTypeError::new_err(message));
    }
    value.extract().map(Some).map_err(|_| {
        PyValueError::new_err("fence is not a hold's number: it has more than 64 bits")
    })
}
