//! Acquiring several locks: all of them, or none.

use super::acquire::enter;
use super::errors::{chained, exception, is_of_a_signal_handler, is_ours};
use super::finalizing::{ours, python_code};
use super::handle::Shared;
use super::levels::Levels;
use super::lock::Lock;
use super::options::{Entering, Timeout};
use crate::sync::process_id;
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;
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

/// A function as a method of a Python class: the two calls of a `with` statement have to be in Rust, so
/// that no signal handler can raise at their beginning, when nothing has been done yet.
#[pyclass(name = "_Method", module = "score.distlock", frozen)]
pub struct Method(Py<PyAny>);

#[pymethods]
impl Method {
    #[new]
    fn new(function: Py<PyAny>) -> Method {
        Method(function)
    }

    fn __get__<'py>(
        slf: Bound<'py, Self>,
        holds: &Bound<'py, PyAny>,
        _class: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static METHOD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        if holds.is_none() {
            return Ok(slf.into_any());
        }
        let method = METHOD.import(slf.py(), "types", "MethodType")?;
        method.call1((&slf.get().0, holds))
    }

    /// Called with the object, as `contextlib.ExitStack` does.
    #[pyo3(signature = (*arguments))]
    fn __call__<'py>(&self, arguments: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        self.0.bind(arguments.py()).call1(arguments)
    }
}

fn levels_of<'py>(holds: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Levels>> {
    let levels = holds.getattr(intern!(holds.py(), "_levels"))?;
    Ok(levels.cast_into::<Levels>()?)
}

/// `Holds.__enter__`.
#[pyfunction]
pub fn _enter_all(holds: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let (py, levels) = (holds.py(), levels_of(&holds)?);
    let in_block = holds.getattr(intern!(py, "_in_block"))?.is_truthy()?;
    let over = holds.getattr(intern!(py, "_locks"))?.is_none();
    let process: u32 = holds.getattr(intern!(py, "_process"))?.extract()?;
    if in_block || over || process != process_id() {
        let _running = python_code(py);
        return holds.call_method1(intern!(py, "_begin_block"), (false, &holds));
    }
    holds.setattr(intern!(py, "_in_block"), true)?;
    match levels.get().check(py) {
        Ok(()) => Ok(holds),
        Err(lost) => Err(give_back(py, levels.get(), lost)),
    }
}

/// `Holds.__exit__`, and `Holds.release`.
#[pyfunction]
#[pyo3(signature = (holds, *_exception))]
pub fn _release_all(holds: &Bound<'_, PyAny>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
    let (py, levels) = (holds.py(), levels_of(holds)?);
    // They are over, so `conf.get` need not return these Lock objects any more.
    let forgotten = holds.setattr(intern!(py, "_locks"), py.None());
    levels.get().release(py).and(forgotten)
}

/// Gives back what was taken before the error. Returns the error, or what a signal handler raised
/// meanwhile.
fn give_back(py: Python<'_>, levels: &Levels, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyException>(py) {
        levels.abandon(); // an interrupted caller does not wait
        return error;
    }
    match levels.release(py) {
        Err(raised) if !is_ours(py, &raised) => chained(py, raised, &error),
        Err(raised) => match is_of_a_signal_handler(py, &raised) {
            Ok(true) => chained(py, raised, &error),
            // A failed release is repeated in the background.
            Ok(false) => error,
            Err(interruption) => chained(py, interruption, &error),
        },
        Ok(()) => error,
    }
}
