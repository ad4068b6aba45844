//! `Lock.lost`, on which a worker sleeps until its hold is lost.

use super::aio::Inbox;
use super::call::call_patiently;
use super::finalizing::ours;
use super::owner;
use crate::service::{Lock, Wakeup, registry};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// Whether the hold of a Lock is lost, as an event to sleep on: :attr:`Lock.lost`.
///
/// It has the read-only methods of a :class:`threading.Event`. It is set when the hold is lost, and
/// stays set after the block is left, until the lock is acquired again through the same Lock. The
/// hold is the caller's own, or, for a helper thread without one, the latest.
#[pyclass(module = "score.distlock", frozen)]
pub struct Lost(Arc<Lock>);

impl Lost {
    pub fn new(lock: Arc<Lock>) -> Lost {
        Lost(lock)
    }
}

#[pymethods]
impl Lost {
    /// Whether the hold is lost.
    fn is_set(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.0.is_lost(&owner::current(py)?))
    }

    /// Sleeps until the hold is lost. Returns at that moment, even if the lease simply runs out.
    ///
    /// :param timeout: for how long at most: seconds as a number, a score interval, a
    ///     :class:`~datetime.timedelta`, or ``None`` for ever.
    /// :returns: whether the hold is lost.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let seconds = ours(py, "_hold", "pause", (timeout,))?.extract()?;
        let limit = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let caller = owner::current(py)?;
        let lock = &self.0;
        call_patiently(py, limit, |budget| lock.await_loss(&caller, budget))
    }

    fn __bool__(&self) -> PyResult<bool> {
        Err(PyTypeError::new_err(
            "lost is neither true nor false; ask lost.is_set()",
        ))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let state = if self.is_set(py)? { "set" } else { "unset" };
        Ok(format!("<score.distlock.Lost {} {state}>", self.0.name()))
    }
}

/// Wakes a coroutine whenever a hold is lost, as long as this object is referenced.
#[pyclass(name = "_Watch", module = "score.distlock", frozen)]
pub struct Watch {
    _wakeup: Arc<Wakeup>,
}

#[pymethods]
impl Watch {
    /// Puts the number into the inbox then.
    #[new]
    fn new(inbox: &Inbox, number: u64) -> Watch {
        let wakeup = Arc::new(inbox.wakeup(number));
        registry(std::process::id()).wake_by_losses(&wakeup);
        Watch { _wakeup: wakeup }
    }
}
