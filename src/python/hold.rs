//! Context managers of holds: `Lock.hold()`, and the levels of `acquire_all`.
//!
//! They are written in Rust so that no signal handler can raise between the moment at
//! which a hold is there and the moment at which its end is armed.

use super::acquire::{Entering, enter, leave};
use super::call::call;
use super::errors::exception;
use super::events::Listeners;
use super::exit::{Endings, Exit};
use super::lock::Lock;
use super::owner;
use crate::engine::{Caller, Entered, HoldId, LevelId};
use crate::error::Error;
use crate::service::{self, Locks};
use crate::store::Budget;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
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
/// One that nobody can leave any more is extended no longer; its end is told as a loss.
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

    /// The one that the caller opened last is left.
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

/// What :meth:`Lock.hold` returns: a context manager that acquires a lock with options. It
/// can be used again.
#[pyclass(module = "score.distlock", frozen)]
pub struct Hold {
    lock: Py<Lock>,
    entering: Entering,
    listeners: Listeners,
    blocks: Blocks,
}

impl Hold {
    pub fn new(lock: Py<Lock>, entering: Entering, listeners: Listeners) -> Hold {
        let blocks = Blocks::new(lock.get().locks().clone());
        Hold {
            lock,
            entering,
            listeners,
            blocks,
        }
    }
}

#[pymethods]
impl Hold {
    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<Lock>> {
        let listeners = Some(&self.listeners);
        let (level, _) = enter(py, self.lock.get(), self.entering.clone(), listeners)?
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
        leave(py, self.lock.get(), level).and(known)
    }
}

/// Several levels that are left together. Whoever drops it leaves them too, in the
/// background, unless somebody has seen a token.
#[pyclass(name = "_Levels", module = "score.distlock", frozen)]
pub struct Levels {
    locks: Arc<Locks>,
    open: Mutex<Vec<(Arc<service::Lock>, Entered)>>,
    kept: AtomicBool,
}

impl Levels {
    pub fn new(locks: Arc<Locks>) -> Levels {
        Levels {
            locks,
            open: Mutex::default(),
            kept: AtomicBool::new(false),
        }
    }

    pub fn push(&self, lock: Arc<service::Lock>, level: Entered) {
        let mut levels = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        levels.push((lock, level));
    }

    fn endings(&self) -> Endings {
        let mut levels = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let levels = std::mem::take(&mut *levels).into_iter().rev();
        levels
            .map(|(lock, level)| {
                let ending = self.locks.begin_exit(&lock, Some(level));
                (lock, ending)
            })
            .collect()
    }

    /// Also if one fails; the error that came first.
    pub fn finish(locks: &Arc<Locks>, endings: Endings, budget: Budget<'_>) -> Result<(), Error> {
        let mut first = Ok(());
        let mut hopeless = false;
        for (lock, ending) in endings {
            if hopeless {
                locks.finish_later(lock.name(), ending);
                continue;
            }
            let ended = locks.finish(lock.name(), ending, budget);
            // Who is interrupted waits for no more, and an outage is waited for once.
            hopeless = matches!(
                ended,
                Err(Error::Interrupted | Error::Forked | Error::Unavailable(_))
            );
            first = first.and(ended);
        }
        first
    }
}

impl Drop for Levels {
    fn drop(&mut self) {
        if !*self.kept.get_mut() {
            self.abandon();
        }
    }
}

#[pymethods]
impl Levels {
    /// Adds one that a coroutine has entered.
    fn add(&self, lock: &Bound<'_, Lock>, level: (u64, u64)) {
        self.push(lock.get().core().clone(), entered(level));
    }

    /// Somebody has seen a token: dropping this leaves nothing any more.
    fn keep(&self) {
        self.kept.store(true, Relaxed);
    }

    /// Leaves all of them in the background.
    pub fn abandon(&self) {
        let mut levels = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (lock, level) in levels.drain(..) {
            self.locks.abandon(&lock, level);
        }
    }

    /// None of them is extended automatically any longer.
    fn stop_extending(&self) {
        let levels = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, level) in levels.iter() {
            self.locks.stop_extending(*level);
        }
    }

    /// Leaves all of them, also if one fails; raises what failed first.
    pub fn release(&self, py: Python<'_>) -> PyResult<()> {
        let endings = self.endings();
        call(py, self.locks.store().timeout(), |budget| {
            Levels::finish(&self.locks, endings, budget)
        })
    }

    /// Begins to leave all of them, for a coroutine.
    pub fn begin_exit(&self) -> Exit {
        Exit::begin(&self.locks, self.endings(), Ok(()))
    }
}
