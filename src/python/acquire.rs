//! Acquiring and leaving on the calling thread, and how long to wait for that.

use super::call::{call, call_patiently};
use super::errors::exception;
use super::events::{self, Listeners};
use super::lock::Lock;
use super::owner;
use crate::engine::{Entered, Lease, Name, Token};
use crate::error::Error;
use crate::service::{Acquisition, Callbacks, Locks, Request, Wait, Wakeup};
use crate::store::About;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::sync::Arc;
use std::time::Duration;

/// A timeout as a Python argument.
#[derive(Clone, Copy, Debug)]
pub enum Timeout {
    /// As the module is configured: `'default'`.
    Configured,
    /// So long; `None` is for ever.
    Given(Option<Duration>),
}

impl Timeout {
    /// Not to wait.
    pub const ZERO: Timeout = Timeout::Given(Some(Duration::ZERO));

    /// The time, where `configured` is the default.
    pub fn or(self, configured: Option<Duration>) -> Option<Duration> {
        match self {
            Timeout::Configured => configured,
            Timeout::Given(timeout) => timeout,
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Timeout {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Timeout> {
        if let Ok(text) = value.cast::<PyString>() {
            if text.to_string_lossy() == "default" {
                return Ok(Timeout::Configured);
            }
        }
        let timeout: Option<f64> = value
            .py()
            .import("score.distlock._config")?
            .call_method1("timeout", (value,))?
            .extract()?;
        // `_config.py` lets nothing through that is no time.
        let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(Timeout::Given(timeout.map(duration)))
    }
}

/// The same where it is configured: a bad one is an error of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct ConfiguredTimeout(pub Timeout);

impl<'a, 'py> FromPyObject<'a, 'py> for ConfiguredTimeout {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<ConfiguredTimeout> {
        let py = value.py();
        value
            .extract()
            .map(ConfiguredTimeout)
            .map_err(|error: PyErr| {
                if error.get_type(py).is(py.get_type::<PyValueError>()) {
                    exception(py, Error::Configuration(error.value(py).to_string()))
                } else {
                    error
                }
            })
    }
}

/// How a lock is to be entered.
#[derive(Clone, Debug)]
pub struct Entering {
    /// For how long to wait; `None` is for ever.
    pub timeout: Option<Duration>,
    /// Whether the hold is extended automatically.
    pub extended: bool,
    /// Whether it is the beginning of a block.
    pub block: bool,
    /// Another lease than `maxtime`.
    pub lease: Option<Lease>,
    /// What the hold is for.
    pub note: Option<Arc<str>>,
}

/// Acquires the lock of a name. `Err` within `Ok` is a refusal.
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
        // With the GIL, at the last moment: from here on no Python code runs before the
        // caller has its answer.
        let caller = request.owner.as_ref().map(|(_, caller)| caller);
        match acquisition.accept(caller, callbacks()) {
            Ok(Some(accepted)) => return Ok(Ok(accepted)),
            Ok(None) => {}
            Err(error) => return Err(exception(py, error)),
        }
    }
}

/// What is to be known about a holder that is the calling thread.
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
    lock: &Lock,
    entering: Entering,
    listeners: Option<&Listeners>,
) -> PyResult<Result<(Entered, Token), Error>> {
    let request = Request {
        owner: Some((lock.core().id(), owner::current(py)?)),
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
    let name = lock.core().name();
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

/// The context remembers what was entered; if it cannot, nothing was.
pub fn remember(py: Python<'_>, lock: &Lock, entered: Entered) -> PyResult<()> {
    owner::remember(py, entered.hold).inspect_err(|_| {
        lock.locks().abandon(lock.core(), entered);
    })
}

/// Leaves a level on the calling thread.
pub fn leave(py: Python<'_>, lock: &Lock, level: Option<Entered>) -> PyResult<()> {
    let ending = lock.locks().begin_exit(lock.core(), level);
    call(py, lock.module().timeout(), |budget| {
        lock.locks().finish(lock.core().name(), ending, budget)
    })
}
