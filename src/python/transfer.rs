//! A transfer by a coroutine.

use super::aio::{Inbox, Value, job};
use super::handle::Handle;
use crate::engine::{Caller, Token};
use crate::error::Result;
use crate::service;
use pyo3::prelude::*;

/// A transfer in progress.
#[pyclass(name = "_Transfer", module = "score.distlock", frozen)]
pub struct Transfer {
    handle: Handle,
    begun: service::Transfer,
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
        let handle = handle.clone();
        Ok(Transfer { handle, begun })
    }
}

#[pymethods]
impl Transfer {
    /// Has a worker perform the transfer.
    fn start(&self, inbox: &Inbox, number: u64) {
        let (handle, begun) = (self.handle.clone(), self.begun.clone());
        let locks = &self.handle.shared.locks;
        locks.submit(job(locks, inbox, number, move |locks, budget| {
            let confirmed = locks.transfer(&handle.core, &begun, budget);
            confirmed.map(Value::Confirmed)
        }));
    }

    /// The coroutine will not read the new token.
    fn failed(&self) {
        self.handle.shared.locks.transfer_failed(&self.begun);
    }
}
