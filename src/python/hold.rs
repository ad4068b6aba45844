//! The context manager of `Lock.hold()`. In Rust, so that no signal handler can raise between the
//! moment the lock is held and the moment its release is guaranteed.

use super::acquire::{enter, leave};
use super::errors::exception;
use super::events::Listeners;
use super::handle::Handle;
use super::options::Entering;
use super::owner;
use crate::engine::{Caller, Entered, HoldId, LevelId};
use crate::service::Locks;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A level from its two numbers.
pub fn entered((hold, level): (u64, u64)) -> Entered {
    Entered {
        hold: HoldId::from_number(hold),
        level: LevelId::from_number(level),
    }
}

/// The blocks that a context manager has open; touched with the GIL only.
///
/// A block that can no longer be left is no longer extended; its end is reported as a loss.
pub struct Blocks {
    locks: Arc<Locks>,
    levels: Mutex<Vec<Entered>>,
}

impl Blocks {
    pub fn new(locks: Arc<Locks>) -> Blocks {
        Blocks {
            locks,
            levels: Mutex::default(),
        }
    }

    fn levels(&self) -> MutexGuard<'_, Vec<Entered>> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, level: Entered) {
        self.levels().push(level);
    }

    /// Removes the block that the caller opened last.
    pub fn remove(&self, caller: &Caller) -> Option<Entered> {
        let mut levels = self.levels();
        let own = owner::pick(caller, &levels);
        (!levels.is_empty()).then(|| levels.remove(own))
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for level in self.levels().iter() {
            self.locks.stop_extending(*level);
        }
    }
}

/// The context manager that :meth:`Lock.hold` returns: acquires a lock with options. It can be used
/// again.
#[pyclass(module = "score.distlock", frozen)]
pub struct Hold {
    /// The Lock that a block gets, and its handle.
    lock: Py<PyAny>,
    handle: Handle,
    entering: Entering,
    listeners: Listeners,
    blocks: Blocks,
}

impl Hold {
    pub fn new(lock: Py<PyAny>, handle: Handle, entering: Entering, listeners: Listeners) -> Hold {
        let blocks = Blocks::new(handle.locks().clone());
        Hold {
            lock,
            handle,
            entering,
            listeners,
            blocks,
        }
    }
}

#[pymethods]
impl Hold {
    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let listeners = Some(&self.listeners);
        let (level, _) = enter(py, &self.handle, self.entering.clone(), listeners)?
            .map_err(|error| exception(py, error))?;
        self.blocks.push(level);
        Ok(self.lock.clone_ref(py))
    }

    #[pyo3(signature = (exc_type=None, exc=None, traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        // Python itself makes the body's exception the context of ours.
        let _ = (exc_type, exc, traceback);
        let (caller, known) = owner::current_or_stranger(py);
        let level = self.blocks.remove(&caller);
        leave(py, &self.handle, level).and(known)
    }
}
