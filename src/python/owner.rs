//! Who calls: the running asyncio task and the current greenlet, if any.

use crate::engine::Owner;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Numbers for tasks and greenlets that are never used again, unlike `id()`.
static NUMBERS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(1);

fn number(object: &Bound<'_, PyAny>) -> PyResult<u64> {
    let py = object.py();
    let numbers = NUMBERS
        .get_or_try_init(py, || {
            py.import("weakref")?
                .getattr("WeakKeyDictionary")?
                .call0()
                .map(Bound::unbind)
        })?
        .bind(py);
    // Of two that ask at once for the same object, both get the first answer.
    numbers
        .call_method1(
            intern!(py, "setdefault"),
            (object, NEXT.fetch_add(1, Relaxed)),
        )?
        .extract()
}

/// A module that is imported already: who has not imported it does not use it.
fn imported<'py>(
    modules: &Bound<'py, PyDict>,
    name: &Bound<'py, pyo3::types::PyString>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    Ok(modules.get_item(name)?.filter(|module| !module.is_none()))
}

/// `sys.modules`, which nobody replaces: Python's documentation advises against it.
static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();

fn modules(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    let modules = MODULES.get_or_try_init(py, || {
        let modules = py.import("sys")?.getattr("modules")?;
        PyResult::Ok(modules.cast_into::<PyDict>()?.unbind())
    });
    modules.map(|modules| modules.bind(py))
}

/// The execution context that calls.
pub fn current(py: Python<'_>) -> PyResult<Owner> {
    let modules = modules(py)?;
    let mut task = None;
    if let Some(events) = imported(modules, intern!(py, "asyncio.events"))? {
        let running = events.call_method0(intern!(py, "_get_running_loop"))?;
        if !running.is_none() {
            let asyncio = py.import(intern!(py, "asyncio"))?;
            let current = asyncio.call_method1(intern!(py, "current_task"), (running,))?;
            if !current.is_none() {
                task = Some(number(&current)?);
            }
        }
    }
    let mut greenlet = None;
    if let Some(module) = imported(modules, intern!(py, "greenlet"))? {
        let current = module.call_method0(intern!(py, "getcurrent"))?;
        // The first greenlet of a thread is the thread itself.
        if !current.getattr(intern!(py, "parent"))?.is_none() {
            greenlet = Some(number(&current)?);
        }
    }
    Ok(Owner::current(task, greenlet))
}
