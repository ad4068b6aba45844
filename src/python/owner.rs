//! Identifies the caller: the running asyncio or trio task, the current greenlet, and the holds
//! that the context remembers.

use super::finalizing::python_code;
use crate::engine::{Caller, Entered, HoldId, Place};
use crate::service::registry;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Numbers for tasks and greenlets; never reused, unlike `id()`.
static NUMBERS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(1);
/// The numbers of the holds taken in this context or in one it was copied from.
static REMEMBERED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

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
    let _running = python_code(py);
    // If two threads number the same object at once, both get the first number.
    numbers
        .call_method1(
            intern!(py, "setdefault"),
            (object, NEXT.fetch_add(1, Relaxed)),
        )?
        .extract()
}

/// A module, if it is already imported: code that has not imported it does not use it.
fn imported<'py>(
    modules: &Bound<'py, PyDict>,
    name: &Bound<'py, pyo3::types::PyString>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    Ok(modules.get_item(name)?.filter(|module| !module.is_none()))
}

/// `sys.modules`, which is never replaced: Python's documentation advises against it.
static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();

fn modules(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    let modules = MODULES.get_or_try_init(py, || {
        let modules = py.import("sys")?.getattr("modules")?;
        PyResult::Ok(modules.cast_into::<PyDict>()?.unbind())
    });
    modules.map(|modules| modules.bind(py))
}

/// The asyncio or trio task that runs on this thread.
fn task(modules: &Bound<'_, PyDict>) -> PyResult<Option<u64>> {
    let py = modules.py();
    if let Some(events) = imported(modules, intern!(py, "asyncio.events"))? {
        let running = events.call_method0(intern!(py, "_get_running_loop"))?;
        if !running.is_none() {
            let asyncio = py.import(intern!(py, "asyncio"))?;
            let current = asyncio.call_method1(intern!(py, "current_task"), (running,))?;
            if !current.is_none() {
                return number(&current).map(Some);
            }
        }
    }
    if let Some(trio) = imported(modules, intern!(py, "trio.lowlevel"))? {
        let _running = python_code(py);
        // An error means that no trio task runs here.
        if let Ok(current) = trio.call_method0(intern!(py, "current_task")) {
            return number(&current).map(Some);
        }
    }
    Ok(None)
}

/// The greenlet that runs on this thread, unless it is the thread's first, which is the thread
/// itself.
fn greenlet(modules: &Bound<'_, PyDict>) -> PyResult<Option<u64>> {
    let py = modules.py();
    let Some(module) = imported(modules, intern!(py, "greenlet"))? else {
        return Ok(None);
    };
    let current = module.call_method0(intern!(py, "getcurrent"))?;
    if current.getattr(intern!(py, "parent"))?.is_none() {
        return Ok(None);
    }
    if let Some(threadpool) = imported(modules, intern!(py, "gevent.threadpool"))? {
        // It runs functions for different greenlets one after the other, in one context, so we
        // cannot tell whose call this is: treat it as a new caller.
        let worker = threadpool.getattr(intern!(py, "_WorkerGreenlet"));
        if worker.is_ok_and(|worker| current.is_instance(&worker).unwrap_or(false)) {
            return Ok(Some(NEXT.fetch_add(1, Relaxed)));
        }
    }
    number(&current).map(Some)
}

fn variable(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    let variable = REMEMBERED.get_or_try_init(py, || {
        py.import("contextvars")?
            .getattr("ContextVar")?
            .call1(("score.distlock.holds",))
            .map(Bound::unbind)
    });
    variable.map(|variable| variable.bind(py))
}

fn remembered(py: Python<'_>) -> PyResult<Vec<HoldId>> {
    let known = variable(py)?.call_method1(intern!(py, "get"), (py.None(),))?;
    if known.is_none() {
        return Ok(Vec::new());
    }
    let numbers: Vec<u64> = known.extract()?;
    Ok(numbers.into_iter().map(HoldId::from_number).collect())
}

/// The caller.
pub fn current(py: Python<'_>) -> PyResult<Caller> {
    let modules = modules(py)?;
    let place = Place::current(task(modules)?, greenlet(modules)?);
    let remembered = Arc::from(remembered(py)?);
    Ok(Caller { place, remembered })
}

/// The caller; if we cannot tell, for instance because a signal handler raised, a stranger who has
/// opened nothing, and the exception. A block ends in any case.
pub fn current_or_stranger(py: Python<'_>) -> (Caller, PyResult<()>) {
    match current(py) {
        Ok(caller) => (caller, Ok(())),
        Err(error) => {
            let stranger = Caller {
                place: Place::current(None, None),
                remembered: Arc::from([]),
            };
            (stranger, Err(error))
        }
    }
}

/// The index of the level that the caller opened last, or else of the oldest.
pub fn pick(caller: &Caller, levels: &[Entered]) -> usize {
    let own = levels
        .iter()
        .rposition(|level| caller.remembered.contains(&level.hold));
    own.unwrap_or(0)
}

/// Whether Python's signal handlers run on this thread. Asks the operating system: Python could end
/// a daemon thread that runs Python code beneath a Rust frame.
pub fn is_main_thread() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let main = rustix::thread::gettid() == rustix::process::getpid();
    // Elsewhere every thread checks for signals.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let main = true;
    main
}

/// Adds a hold to the context, and forgets those that have ended.
pub fn remember(py: Python<'_>, hold: HoldId) -> PyResult<()> {
    let known = remembered(py)?;
    if known.contains(&hold) {
        return Ok(());
    }
    let mut living = Vec::new();
    if !known.is_empty() {
        living = registry(std::process::id()).with(|holds| holds.living(&known));
    }
    living.push(hold);
    let numbers = living.into_iter().map(HoldId::number);
    let numbers = PyTuple::new(py, numbers.collect::<Vec<_>>())?;
    variable(py)?
        .call_method1(intern!(py, "set"), (numbers,))
        .map(drop)
}
