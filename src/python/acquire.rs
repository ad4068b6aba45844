//! Acquires and leaves locks on the calling thread.

use super::call::{call, call_patiently};
use super::errors::exception;
use super::events::{self, Listeners};
use super::handle::Handle;
use super::options::Entering;
use super::owner;
use crate::engine::{Entered, Name, Token};
use crate::error::Error;
use crate::service::{Acquisition, Callbacks, Locks, Request, Wait, Wakeup};
use crate::store::About;
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// Acquires the named lock. `Err` inside `Ok` means it was refused.
pub fn acquire(
    py: Python<'_>,
    locks: &Arc<Locks>,
    name: &Name,
    request: &Request,
    timeout: Option<Duration>,
    callbacks: impl Fn() -> Callbacks,
) -> PyResult<Result<(Entered, Token), Error>> {
    let limit = locks.store().timeout();
    let acquisition = Acquisition::new(
        locks.clone(),
        name.clone(),
        request.clone(),
        Wait::new(timeout),
        Wakeup::thread(),
    );
    loop {
        let wait = |budget: crate::store::Budget<'_>| match acquisition.wait_for(budget) {
            Ok(()) => Ok(None),
            Err(error @ Error::NotAcquired(..)) => Ok(Some(error)),
            Err(error) => Err(error),
        };
        let refused = if timeout == Some(Duration::ZERO) {
            call(py, limit, wait)?
        } else {
            call_patiently(py, limit, wait)?
        };
        if let Some(error) = refused {
            return Ok(Err(error));
        }
        // Takes the GIL at the last moment: no Python code runs between here and the caller getting
        // its answer.
        let caller = request.owner.as_ref().map(|(_, caller)| caller);
        match acquisition.accept(caller, callbacks()) {
            Ok(Some(accepted)) => return Ok(Ok(accepted)),
            Ok(None) => {}
            Err(error) => return Err(exception(py, error)),
        }
    }
}

/// Describes the calling thread as a holder.
pub fn about(note: Option<Arc<str>>) -> About {
    #[cfg(target_os = "linux")]
    let thread = Some(i64::from(rustix::thread::gettid().as_raw_nonzero().get()));
    #[cfg(not(target_os = "linux"))]
    let thread = None;
    About { thread, note }
}

/// Enters a lock on the calling thread.
pub fn enter(
    py: Python<'_>,
    lock: &Handle,
    entering: Entering,
    listeners: Option<&Listeners>,
) -> PyResult<Result<(Entered, Token), Error>> {
    let request = Request {
        owner: Some((lock.core.id(), owner::current(py)?)),
        block: entering.block,
        extended: entering.extended,
        lease: entering.lease,
        about: about(entering.note),
    };
    if entering.extended {
        events::attend(py)?;
    }
    if let Some(listeners) = listeners {
        listeners.attend(py)?;
    }
    let callbacks = || listeners.map_or_else(Callbacks::default, |all| all.callbacks(py));
    let name = lock.core.name();
    let entered = acquire(
        py,
        lock.locks(),
        name,
        &request,
        entering.timeout,
        callbacks,
    )?;
    if let Ok((entered, _)) = &entered {
        remember(py, lock, *entered)?;
    }
    Ok(entered)
}

/// Records the hold in the caller's context; if that fails, abandons the hold.
pub fn remember(py: Python<'_>, lock: &Handle, entered: Entered) -> PyResult<()> {
    owner::remember(py, entered.hold).inspect_err(|_| {
        lock.locks().abandon(&lock.core, entered);
    })
}

/// Leaves a level on the calling thread.
pub fn leave(py: Python<'_>, lock: &Handle, level: Option<Entered>) -> PyResult<()> {
    let ending = lock.locks().begin_exit(&lock.core, level);
    call(py, lock.shared.limit(), |budget| {
        lock.locks().finish(lock.core.name(), ending, budget)
    })
}
