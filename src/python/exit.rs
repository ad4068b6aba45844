//! `__aexit__`, which ends the blocks of coroutines.

use super::ending::{Exit, Unfinished};
use super::finalizing::ours;
use super::handle::Handle;
use super::hold::{Blocks, entered};
use super::levels::Levels;
use super::lock::Lock;
use super::owner;
use crate::engine::Caller;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// The open blocks of one `aio.AsyncHold`.
#[pyclass(name = "_Opened", module = "score.distlock", frozen)]
pub struct Opened {
    handle: Handle,
    blocks: Blocks,
}

#[pymethods]
impl Opened {
    #[new]
    fn new(lock: &Bound<'_, Lock>) -> Opened {
        let handle = lock.get().handle().clone();
        let blocks = Blocks::new(handle.locks().clone());
        Opened { handle, blocks }
    }

    /// Adds a block that was just entered.
    fn push(&self, level: (u64, u64)) {
        self.blocks.push(entered(level));
    }
}

/// `__aexit__` of the classes in `aio.py`: a method whose object knows the caller that entered.
#[pyclass(name = "_AsyncExit", module = "score.distlock", frozen)]
pub struct AsyncExit;

#[pymethods]
impl AsyncExit {
    #[new]
    fn new() -> AsyncExit {
        AsyncExit
    }

    fn __get__<'py>(
        slf: Bound<'py, Self>,
        manager: Bound<'py, PyAny>,
        _class: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if manager.is_none() {
            return Ok(slf.into_any());
        }
        let leaving = Leaving::new(manager);
        Ok(Bound::new(slf.py(), leaving)?.into_any())
    }

    /// Called with the object, as `contextlib.AsyncExitStack` does.
    #[pyo3(signature = (manager, *exception))]
    #[allow(clippy::unused_self)]
    fn __call__<'py>(
        &self,
        manager: Bound<'py, PyAny>,
        exception: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = manager.py();
        Leaving::new(manager).__call__(py, exception)
    }
}

/// `__aexit__` of one block, if looked up on entry, as `async with` does.
#[pyclass(name = "_Leaving", module = "score.distlock", frozen)]
pub struct Leaving {
    manager: Py<PyAny>,
    caller: Caller,
}

impl Leaving {
    fn new(manager: Bound<'_, PyAny>) -> Leaving {
        let (caller, _) = owner::current_or_stranger(manager.py());
        let manager = manager.unbind();
        Leaving { manager, caller }
    }

    fn begin(&self, ender: &Bound<'_, PyAny>) -> PyResult<Exit> {
        if let Ok(levels) = ender.cast::<Levels>() {
            let exit = levels.get().begin_exit();
            // If entered again, it acquires again.
            let manager = self.manager.bind(ender.py());
            manager.setattr(intern!(ender.py(), "_levels"), ender.py().None())?;
            manager.setattr(intern!(ender.py(), "_in_block"), false)?;
            return Ok(exit);
        }
        let (current, known) = owner::current_or_stranger(ender.py());
        let (lock, level) = if let Ok(opened) = ender.cast::<Opened>() {
            let opened = opened.get();
            (&opened.handle, opened.blocks.remove(&current))
        } else {
            let lock = ender.cast::<Lock>()?.get().handle();
            // Look for the enterer's block first: any task may close the coroutine.
            (lock, lock.core.block_of(&self.caller, &current))
        };
        let ending = lock.locks().begin_exit(&lock.core, level);
        let endings = vec![(lock.core.clone(), ending)];
        Ok(Exit::begin(
            lock.locks(),
            endings,
            Unfinished::default(),
            known,
        ))
    }
}

#[pymethods]
impl Leaving {
    #[pyo3(signature = (*exception))]
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        exception: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let manager = self.manager.bind(py);
        let exit = self.begin(&manager.getattr(intern!(py, "_ender"))?)?;
        let arguments = (exit, manager).into_pyobject(py)?;
        // Python itself makes the body's exception the context of ours.
        let arguments = arguments.as_sequence().concat(exception.as_sequence())?;
        ours(py, "aio", "_leave", arguments.to_tuple()?)
    }
}
