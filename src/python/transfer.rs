//! A transfer by a coroutine.

use super::aio::{Inbox, Value, job};
use super::errors::exception;
use super::handle::Handle;
use crate::engine::{Caller, Token};
use crate::error::{Error, Result};
use crate::service::{self, Wakeup};
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A transfer in progress.
#[pyclass(name = "_Transfer", module = "score.distlock", frozen)]
pub struct Transfer {
    handle: Handle,
    begun: service::Transfer,
    /// When it has waited long enough.
    until: Instant,
    /// Wakes the coroutine while it waits.
    wakeup: Mutex<Option<Arc<Wakeup>>>,
}

impl Drop for Transfer {
    /// An interrupted caller may never report it. No effect once the new token has been read.
    fn drop(&mut self) {
        self.failed();
    }
}

impl Transfer {
    pub fn begin(handle: &Handle, caller: &Caller, token: Option<Token>) -> Result<Transfer> {
        let locks = &handle.shared.locks;
        let begun = locks.begin_transfer(&handle.core, caller, token)?;
        Ok(Transfer {
            until: Instant::now() + locks.store().timeout(),
            handle: handle.clone(),
            begun,
            wakeup: Mutex::default(),
        })
    }
}

#[pymethods]
impl Transfer {
    /// For how many seconds to wait at most, for another transfer or a release of the same token;
    /// the number is put into the inbox when something has changed. `None`: start it.
    fn waits(&self, py: Python<'_>, inbox: &Inbox, number: u64) -> PyResult<Option<f64>> {
        let (locks, lock) = (&self.handle.shared.locks, &self.handle.core);
        let wakeup = Arc::new(inbox.wakeup(number));
        let waits = locks.transfer_waits(lock, &self.begun, &wakeup);
        let mut kept = self.wakeup.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = waits.then_some(wakeup);
        if !waits {
            return Ok(None);
        }
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(exception(py, Error::in_transfer(lock.name())));
        }
        Ok(Some(left.as_secs_f64()))
    }

    /// Has a worker perform the transfer.
    fn start(&self, inbox: &Inbox, number: u64) {
        let (handle, begun) = (self.handle.clone(), self.begun.clone());
        let locks = &self.handle.shared.locks;
        // It may have waited.
        let left = self.until.saturating_duration_since(Instant::now());
        locks.submit(job(locks, inbox, number, move |locks, budget| {
            let budget = budget.at_most(left);
            let confirmed = locks.transfer(&handle.core, &begun, budget);
            confirmed.map(Value::Confirmed)
        }));
    }

    /// The coroutine will not read the new token.
    fn failed(&self) {
        let mut wakeup = self.wakeup.lock().unwrap_or_else(PoisonError::into_inner);
        *wakeup = None;
        drop(wakeup);
        self.handle.shared.locks.transfer_failed(&self.begun);
    }
}
