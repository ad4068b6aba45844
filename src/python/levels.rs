//! The levels of `acquire_all`.

use super::call::call;
use super::ending::{Endings, Exit, Unfinished, finish_all};
use super::errors::exception;
use super::hold::entered;
use super::lock::Lock;
use crate::engine::Entered;
use crate::service::{self, Locks};
use crate::sync::process_id;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Several levels that are left together. Dropping it also leaves them, in the background, unless
/// somebody has seen a token.
#[pyclass(name = "_Levels", module = "score.distlock", frozen)]
pub struct Levels {
    locks: Arc<Locks>,
    open: Mutex<Vec<(Arc<service::Lock>, Entered)>>,
    /// Levels that were left, and whose release has failed: the library repeats it in the background,
    /// and the caller may repeat it too.
    unfinished: Unfinished,
    process: u32,
    kept: AtomicBool,
}

impl Levels {
    pub fn new(locks: Arc<Locks>) -> Levels {
        Levels {
            locks,
            open: Mutex::default(),
            unfinished: Unfinished::default(),
            process: process_id(),
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
        let left = levels.map(|(lock, level)| {
            let ending = self.locks.begin_exit(&lock, Some(level));
            (lock, ending)
        });
        let mut unfinished = self
            .unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut again = std::mem::take(&mut *unfinished);
        if process_id() != self.process {
            again.clear(); // they are the parent's
        }
        let again = again.into_iter().map(|(lock, token)| {
            let ending = self.locks.begin_repeated_release(&lock, &token);
            (lock, ending)
        });
        left.chain(again).collect()
    }

    /// Leaves all of them, even if one fails; raises the first failure.
    pub fn release(&self, py: Python<'_>) -> PyResult<()> {
        let endings = self.endings();
        call(py, self.locks.store().timeout(), |budget| {
            finish_all(&self.locks, endings, &self.unfinished, budget)
        })
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
    /// Adds a level that a coroutine has entered.
    fn add(&self, lock: &Bound<'_, Lock>, level: (u64, u64)) {
        self.push(lock.get().handle().core.clone(), entered(level));
    }

    /// Raises `LockExpired` if one of the holds is lost.
    pub fn check(&self, py: Python<'_>) -> PyResult<()> {
        let checked = {
            let levels = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            levels
                .iter()
                .try_for_each(|(lock, level)| lock.check(*level))
        };
        checked.map_err(|error| exception(py, error))
    }

    /// Somebody has seen a token: from now on dropping this does not leave the levels.
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

    /// Stops extending them automatically.
    fn stop_extending(&self) {
        let levels = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, level) in levels.iter() {
            self.locks.stop_extending(*level);
        }
    }

    /// Begins to leave all of them, for a coroutine.
    pub fn begin_exit(&self) -> Exit {
        let unfinished = self.unfinished.clone();
        Exit::begin(&self.locks, self.endings(), unfinished, Ok(()))
    }
}
