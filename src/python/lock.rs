//! `Lock`.

use super::aio::{Acquisition, Inbox, Value};
use super::arguments;
use super::call::{call, call_patiently};
use super::errors::exception;
use super::module::ConfiguredDistlockModule;
use super::owner;
use crate::acquisition::{self, Wait, thread_bell};
use crate::engine::{Lease, Name, Owner, Token};
use crate::error::Error;
use crate::extending::OnLost;
use crate::locks::{self, Entering};
use crate::store::{Patience, sql};
use crate::zone;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict};
use std::sync::Arc;
use std::time::Duration;

/// A named mutex. :meth:`ConfiguredDistlockModule.get` gives you one.
///
/// As a context manager it acquires on entering and releases on leaving:
///
/// .. code-block:: python
///
///     with conf.get('mylock') as lock:
///         do_part_of_something()
///         lock.extend()
///         do_more_things()
///
/// :param conf: the configured module.
/// :param name: any :class:`str` without NUL.
#[pyclass(module = "score.distlock", weakref, frozen)]
pub struct Lock {
    conf: Py<ConfiguredDistlockModule>,
    core: Arc<locks::Lock>,
}

impl Lock {
    /// A new Lock object.
    pub fn create(conf: Py<ConfiguredDistlockModule>, name: Name) -> Lock {
        Lock {
            conf,
            core: Arc::new(locks::Lock::new(name)),
        }
    }

    fn locks(&self) -> &Arc<locks::Locks> {
        self.conf.get().locks()
    }

    fn token_argument(&self, token: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Token>> {
        arguments::token(self.core.name(), token)
    }

    fn entering(&self, py: Python<'_>, block: bool, maxtime: Option<f64>) -> PyResult<Entering> {
        Ok(Entering {
            owner: owner::current(py)?,
            block,
            lease: maxtime.and_then(Lease::from_seconds),
        })
    }

    /// Acquires, and waits for it if `timeout` is not zero; `None` is for ever.
    fn enter(
        &self,
        py: Python<'_>,
        block: bool,
        timeout: Option<Duration>,
        maxtime: Option<f64>,
    ) -> PyResult<Result<Token, Error>> {
        let entering = self.entering(py, block, maxtime)?;
        let wait = Wait::new(timeout);
        let limit = self.conf.get().timeout();
        let refused = |result| match result {
            Ok(token) => Ok(Ok(token)),
            Err(error @ Error::Held(_)) => Ok(Err(error)),
            Err(error) => Err(error),
        };
        if wait == Wait::No {
            return call(py, limit, |patience| {
                refused(self.locks().acquire(&self.core, entering, patience))
            });
        }
        call_patiently(py, limit, |patience| {
            let acquisition = acquisition::Acquisition::new(
                self.locks().clone(),
                self.core.clone(),
                entering,
                wait,
                thread_bell(),
            );
            refused(Arc::new(acquisition).run(patience))
        })
    }

    fn leave(&self, py: Python<'_>, token: Option<&Token>, block: bool) -> PyResult<()> {
        let owner = owner::current(py)?;
        call(py, self.conf.get().timeout(), |patience| {
            self.locks()
                .release(&self.core, owner, token, block, patience)
        })
    }
}

impl Lock {
    fn make_guard<'py>(
        slf: &Bound<'py, Self>,
        class: &str,
        lock: &Bound<'py, PyAny>,
        connection: &Bound<'py, PyAny>,
        token: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let token = this.token_argument(token)?;
        let token = this
            .core
            .token_or(owner::current(py)?, token)
            .map_err(|error| exception(py, error))?;
        let parameters = (
            this.name(),
            token.as_str(),
            this.locks().lease().seconds(),
            zone::offset(),
        );
        let (core, proof) = (this.core.clone(), token.clone());
        let seen = PyCFunction::new_closure(py, None, None, move |arguments, _| {
            let fence: Option<i64> = arguments.get_item(1)?.extract()?;
            core.seen(&proof, fence);
            PyResult::Ok(())
        })?;
        let (core, proof, locks) = (this.core.clone(), token.clone(), this.locks().clone());
        let (owner, timeout) = (owner::current(py)?, this.conf.get().timeout());
        let lost = PyCFunction::new_closure(py, None, None, move |arguments, _| {
            call(arguments.py(), timeout, |patience| {
                match locks.extend(&core, owner, Some(proof.clone()), patience) {
                    Ok(()) => Ok(false),
                    Err(Error::Expired(..)) => Ok(true),
                    Err(error) => Err(error),
                }
            })
        })?;
        py.import("score.distlock._guard")?.getattr(class)?.call1((
            lock,
            connection,
            token.as_str(),
            &sql::GUARD.text,
            parameters,
            seen,
            lost,
        ))
    }

    fn autoextend(&self, token: &Token, on_lost: Option<OnLost>) {
        self.locks().autoextend(&self.core, token, on_lost);
    }

    /// Has a worker do something on behalf of the calling owner.
    fn submit(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        number: u64,
        work: impl FnOnce(&Arc<locks::Locks>, &locks::Lock, Owner, Patience<'_>) -> Result<Value, Error>
        + Send
        + 'static,
    ) -> PyResult<()> {
        let owner = owner::current(py)?;
        let (locks, core, timeout) = (
            self.locks().clone(),
            self.core.clone(),
            self.conf.get().timeout(),
        );
        let answer = inbox.answer(number);
        self.locks().submit(Box::new(move || {
            let patience = Patience::new(timeout, &|| Ok(()));
            answer(work(&locks, &core, owner, patience));
        }));
        Ok(())
    }
}

/// A timeout as a Python argument.
#[derive(Clone, Copy)]
pub struct Timeout(Option<Duration>);

impl Timeout {
    /// Not to wait.
    pub const ZERO: Timeout = Timeout(Some(Duration::ZERO));

    /// As Python counts it.
    pub fn seconds(self) -> Option<f64> {
        self.0.map(|timeout| timeout.as_secs_f64())
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Timeout {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Timeout> {
        let timeout: Option<f64> = value
            .py()
            .import("score.distlock._config")?
            .call_method1("timeout", (value,))?
            .extract()?;
        Ok(Timeout(timeout.map(seconds)))
    }
}

/// `_config.py` lets nothing through that is no time.
fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX)
}

/// Calls `on_lost(lock)` in a thread of its own, from one that Python does not know.
fn caller(lock: &Bound<'_, PyAny>, on_lost: Py<PyAny>) -> OnLost {
    let lock = lock.clone().unbind();
    Box::new(move || {
        let started = Python::try_attach(|py| {
            let arguments = PyDict::new(py);
            arguments.set_item("target", on_lost)?;
            arguments.set_item("args", (lock,))?;
            arguments.set_item("name", "distlock-on-lost")?;
            arguments.set_item("daemon", true)?;
            py.import("threading")?
                .call_method("Thread", (), Some(&arguments))?
                .call_method0("start")
                .map(drop)
        });
        if let Some(Err(error)) = started {
            log::warn!("on_lost could not be called: {error}");
        }
    })
}

#[pymethods]
impl Lock {
    #[new]
    fn new(conf: Py<ConfiguredDistlockModule>, name: &Bound<'_, PyAny>) -> PyResult<Lock> {
        Ok(Lock::create(conf, arguments::name(name)?))
    }

    /// The configured module.
    #[getter]
    fn conf(&self, py: Python<'_>) -> Py<ConfiguredDistlockModule> {
        self.conf.clone_ref(py)
    }

    /// The name of the lock.
    #[getter]
    fn name(&self) -> &str {
        self.core.name().as_str()
    }

    /// The token of the hold that was acquired through this object, or ``None``.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let owner = owner::current(py)?;
        Ok(self
            .core
            .token(owner)
            .map(|token| token.as_str().to_owned()))
    }

    /// The fencing number of the hold: larger at every later acquisition of the same name.
    ///
    /// ``None`` if nothing was acquired, or by score.distlock 0.2.5, which has no such numbers.
    /// After :meth:`extend`, :meth:`transfer` or :meth:`guard` with a token that somebody else
    /// acquired it is the number of that hold.
    #[getter]
    fn fence(&self, py: Python<'_>) -> PyResult<Option<i64>> {
        Ok(self.core.fence(owner::current(py)?))
    }

    /// For how many seconds the lock is certainly still held; 0 if it is not.
    ///
    /// Counted on this machine's monotonic clock, from before the request was sent: it ends
    /// before the lease in the database does.
    #[getter]
    fn remaining(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.core.remaining(owner::current(py)?))
    }

    /// Whether there was a hold that is lost, or may be: :attr:`remaining` has come to 0.
    #[getter]
    fn expired(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.core.expired(owner::current(py)?))
    }

    /// Acquires the lock, or enters it once more if the caller is its owner.
    ///
    /// :param timeout: how long to wait if somebody else holds the lock: seconds as a number, a
    ///     score interval such as ``'10s'``, a :class:`~datetime.timedelta`, or ``None`` for ever.
    ///     0 does not wait.
    /// :returns: the token of the hold, 256 hexadecimal digits.
    /// :raises CouldNotAcquireLock: if somebody else holds the lock, after `timeout`.
    /// :raises LockExpired: if the caller believed to hold it but has lost it.
    /// :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``.
    #[pyo3(signature = (*, timeout=Timeout::ZERO), text_signature = "($self, *, timeout=0)")]
    pub fn acquire(&self, py: Python<'_>, timeout: Timeout) -> PyResult<String> {
        match self.enter(py, false, timeout.0, None)? {
            Ok(token) => Ok(token.as_str().to_owned()),
            Err(error) => Err(exception(py, error)),
        }
    }

    /// As :meth:`acquire`, but returns ``None`` if somebody else holds the lock.
    ///
    /// :returns: the token of the hold, or ``None``.
    pub fn try_acquiring(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let acquired = self.enter(py, false, Some(Duration::ZERO), None)?;
        Ok(acquired.ok().map(|token| token.as_str().to_owned()))
    }

    /// Gives the hold another ``maxtime`` from now.
    ///
    /// :param token: the token of a hold that was not acquired through this object.
    /// :raises LockExpired: if the token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    #[pyo3(signature = (token=None))]
    pub fn extend(&self, py: Python<'_>, token: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let token = self.token_argument(token)?;
        let owner = owner::current(py)?;
        call(py, self.conf.get().timeout(), |patience| {
            self.locks().extend(&self.core, owner, token, patience)
        })
    }

    /// Leaves the hold once, or ends it if the owner entered it only once.
    ///
    /// :param token: the token of a hold that was not acquired through this object: that hold
    ///     ends, however often its owner has entered it.
    /// :param ignore_expired: do not mind if the hold was lost before.
    /// :raises LockExpired: if the token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    /// :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``;
    ///     call it again then.
    #[pyo3(signature = (token=None, ignore_expired=false))]
    pub fn release(
        &self,
        py: Python<'_>,
        token: Option<&Bound<'_, PyAny>>,
        ignore_expired: bool,
    ) -> PyResult<()> {
        let result = self
            .token_argument(token)
            .and_then(|token| self.leave(py, token.as_ref(), false));
        match result {
            Err(error) if ignore_expired => {
                let expired = py
                    .import("score.distlock._errors")?
                    .getattr("LockExpired")?;
                if error.is_instance(py, &expired) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            result => result,
        }
    }

    /// Gives the hold a new token and voids the old one, in one step.
    ///
    /// This is how to hand a hold on for good: whoever receives a token calls this and is from
    /// then on the only one who can extend or release. If this object holds the old token, it
    /// holds the new one afterwards. Lease and fencing number stay.
    ///
    /// :param token: the token of a hold that was not acquired through this object.
    /// :returns: the new token.
    /// :raises LockExpired: if the old token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    #[pyo3(signature = (token=None))]
    pub fn transfer(&self, py: Python<'_>, token: Option<&Bound<'_, PyAny>>) -> PyResult<String> {
        let token = self.token_argument(token)?;
        let owner = owner::current(py)?;
        call(py, self.conf.get().timeout(), |patience| {
            self.locks()
                .transfer(&self.core, owner, token, patience)
                .map(|token| token.as_str().to_owned())
        })
    }

    /// Guards a transaction of the caller's own on the same database.
    ///
    /// Entering the ``with`` block confirms the hold inside the transaction that is open on
    /// `connection`. From then until that transaction ends nobody can take the lock over, even
    /// past the lease. If the hold is lost already, the transaction is made to fail: it cannot
    /// be committed any more.
    ///
    /// :param connection: an open connection of psycopg 2, psycopg 3 or Django, or a SQLAlchemy
    ///     Connection or Session, on the database the locks are in, within a transaction.
    /// :param token: the token of a hold that was not acquired through this object.
    /// :returns: a context manager that returns this Lock.
    /// :raises LockExpired: on entering, if the hold is lost.
    /// :raises RuntimeError: on entering, if the connection is in autocommit mode.
    /// :raises TypeError: if `connection` is something else.
    #[pyo3(signature = (connection, *, token=None))]
    fn guard<'py>(
        slf: &Bound<'py, Self>,
        connection: &Bound<'py, PyAny>,
        token: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Lock::make_guard(slf, "Guard", slf.as_any(), connection, token)
    }

    /// The same for coroutines; `lock` is what the guard returns.
    fn _async_guard<'py>(
        slf: &Bound<'py, Self>,
        lock: &Bound<'py, PyAny>,
        connection: &Bound<'py, PyAny>,
        token: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Lock::make_guard(slf, "AsyncGuard", lock, connection, token)
    }

    /// The innermost block of the owner's hold extends it no longer.
    fn _stop_extending(&self, py: Python<'_>) -> PyResult<()> {
        let owner = owner::current(py)?;
        self.core.stop_extending(owner);
        Ok(())
    }

    /// Acquires for a ``with`` block, with options.
    ///
    /// .. code-block:: python
    ///
    ///     with conf.get('mylock').hold(timeout=10, autoextend=True) as lock:
    ///         do_something_that_takes_long()
    ///
    /// :param timeout: how long to wait if somebody else holds the lock; see :meth:`acquire`.
    /// :param autoextend: whether to extend the hold, in the background, for as long as the block
    ///     runs: after every third of the lease.
    /// :param maxtime: a lease other than the module's ``maxtime``, for this hold.
    /// :param on_lost: called with the Lock, once and in a thread of its own, if ``autoextend``
    ///     could not keep the hold. The end of the block raises :class:`LockExpired` then.
    /// :returns: a context manager that returns this Lock.
    #[pyo3(signature = (timeout=Timeout::ZERO, autoextend=false, maxtime=None, on_lost=None), text_signature = "($self, timeout=0, autoextend=False, maxtime=None, on_lost=None)")]
    fn hold<'py>(
        slf: &Bound<'py, Self>,
        timeout: Timeout,
        autoextend: bool,
        maxtime: Option<Bound<'py, PyAny>>,
        on_lost: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.py()
            .import("score.distlock._hold")?
            .getattr("Hold")?
            .call1((slf, timeout.seconds(), autoextend, maxtime, on_lost))
    }

    /// The beginning of a block; all is checked already.
    fn _enter(
        slf: &Bound<'_, Self>,
        timeout: Option<f64>,
        autoextend: bool,
        maxtime: Option<f64>,
        on_lost: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let token = this
            .enter(py, true, timeout.map(seconds), maxtime)?
            .map_err(|error| exception(py, error))?;
        if autoextend {
            this.autoextend(&token, on_lost.map(|on_lost| caller(slf.as_any(), on_lost)));
        }
        Ok(())
    }

    /// The end of a block.
    fn _leave(&self, py: Python<'_>) -> PyResult<()> {
        self.leave(py, None, true)
    }

    /// The same for a coroutine; `lock` is what `on_lost` is called with.
    fn _autoextend(&self, token: &str, lock: &Bound<'_, PyAny>, on_lost: Option<Py<PyAny>>) {
        if let Some(token) = Token::parse(token) {
            self.autoextend(&token, on_lost.map(|on_lost| caller(lock, on_lost)));
        }
    }

    /// Begins to acquire for a coroutine; `bell` is put into the inbox when it is to go on.
    fn _begin(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        bell: u64,
        timeout: Option<f64>,
        block: bool,
        maxtime: Option<f64>,
    ) -> PyResult<Acquisition> {
        Ok(Acquisition::new(acquisition::Acquisition::new(
            self.locks().clone(),
            self.core.clone(),
            self.entering(py, block, maxtime)?,
            Wait::new(timeout.map(seconds)),
            inbox.bell(bell),
        )))
    }

    /// Extends for a coroutine: the answer goes into the inbox.
    fn _extend(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        number: u64,
        token: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let token = self.token_argument(token)?;
        self.submit(py, inbox, number, move |locks, lock, owner, patience| {
            locks
                .extend(lock, owner, token, patience)
                .map(|()| Value::None)
        })
    }

    /// Releases for a coroutine.
    fn _release(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        number: u64,
        token: Option<&Bound<'_, PyAny>>,
        block: bool,
    ) -> PyResult<()> {
        let token = self.token_argument(token)?;
        self.submit(py, inbox, number, move |locks, lock, owner, patience| {
            locks
                .release(lock, owner, token.as_ref(), block, patience)
                .map(|()| Value::None)
        })
    }

    /// Transfers for a coroutine.
    fn _transfer(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        number: u64,
        token: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let token = self.token_argument(token)?;
        self.submit(py, inbox, number, move |locks, lock, owner, patience| {
            locks
                .transfer(lock, owner, token, patience)
                .map(|token| Value::Text(token.as_str().to_owned()))
        })
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let (timeout, autoextend) = slf.get().conf.get().block_defaults();
        Lock::_enter(slf, timeout, autoextend, None, None)?;
        Ok(slf.clone())
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
        self.leave(py, None, true)
    }

    fn __repr__(&self) -> String {
        let state = if self.core.is_held() { "held" } else { "free" };
        format!("<score.distlock.Lock {:?} {state}>", self.name())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        Python::attach(|py| {
            self.conf.get().buried(py, self.core.name());
            if self.core.is_held() {
                // Nothing is released: the token may be out. Nobody can be told
                // if even logging fails, for instance at the interpreter's end.
                let _ = py.import("logging").and_then(|logging| {
                    logging
                        .call_method1("getLogger", ("score.distlock",))?
                        .call_method1(
                            "debug",
                            (
                                "the Lock object of %r is gone; its hold lasts until \
                                 somebody releases it with its token, or it expires",
                                self.name(),
                            ),
                        )
                });
            }
        });
    }
}
