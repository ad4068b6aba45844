//! `Lock`.

use super::acquire::{about, enter, leave};
use super::aio::{Acquisition, Inbox, Value, in_time, job};
use super::arguments;
use super::call::call;
use super::errors::exception;
use super::events::Listeners;
use super::finalizing::ours;
use super::handle::{Configured, Handle, Shared};
use super::hold::Hold;
use super::lost::Lost;
use super::options::{Entering, Timeout};
use super::owner;
use super::transfer::Transfer;
use crate::engine::{Caller, Lease, Loss, Name, Token};
use crate::error::Error;
use crate::service::{self, Locks, Request, Wait};
use crate::store::Budget;
use crate::zone;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyString, PyTuple};
use std::sync::Arc;

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
/// :param conf: the configuration.
/// :param name: any :class:`str` without NUL.
#[pyclass(module = "score.distlock", weakref, frozen)]
pub struct Lock {
    conf: Py<PyAny>,
    handle: Handle,
}

impl Lock {
    /// A new Lock object of a configuration.
    pub fn create(conf: Py<PyAny>, shared: Arc<Shared>, name: Name) -> Lock {
        let handle = Handle::new(shared, name);
        Lock { conf, handle }
    }

    /// Its handle on the core.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    fn core(&self) -> &Arc<service::Lock> {
        &self.handle.core
    }

    fn locks(&self) -> &Arc<Locks> {
        self.handle.locks()
    }

    fn token_argument(&self, token: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Token>> {
        arguments::token(self.core().name(), token)
    }

    fn entering(&self, timeout: Timeout) -> Entering {
        Entering {
            timeout: timeout.or(self.handle.shared.timeout),
            extended: self.handle.shared.autoextend,
            block: false,
            lease: None,
            note: None,
        }
    }
}

impl Lock {
    /// Gives the hold a new token.
    pub fn transferred(
        &self,
        py: Python<'_>,
        token: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<service::Confirmed> {
        let token = self.token_argument(token)?;
        let caller = owner::current(py)?;
        let transfer = self
            .locks()
            .begin_transfer(self.core(), &caller, token)
            .map_err(|error| exception(py, error))?;
        call(py, self.handle.shared.limit(), |budget| {
            self.locks().transfer(self.core(), &transfer, budget)
        })
    }

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
            .core()
            .token_or(&owner::current(py)?, token)
            .map_err(|error| exception(py, error))?;
        let timeout = this.handle.shared.limit();
        let (token, sql) = call(py, timeout, |budget| {
            let token = this.locks().current_token(this.core(), &token, budget)?;
            Ok((token, this.locks().guard(budget)?))
        })?;
        let parameters = (
            hex::encode(this.name()),
            token.as_str(),
            this.locks().lease().seconds(),
            zone::offset(),
        );
        let (core, proof, locks) = (this.core().clone(), token.clone(), this.locks().clone());
        let seen = PyCFunction::new_closure(py, None, None, move |arguments, _| {
            let fence: Option<i64> = arguments.get_item(1)?.extract()?;
            locks.seen(&core, &proof, fence);
            PyResult::Ok(())
        })?;
        // Do not trust the caller's connection that the hold is lost: ask the database.
        let (core, proof, locks) = (this.core().clone(), token.clone(), this.locks().clone());
        let lost = PyCFunction::new_closure(py, None, None, move |arguments, _| {
            let lost = call(arguments.py(), timeout, |budget| {
                locks.is_lost(&core, &proof, budget)
            })?;
            PyResult::Ok(lost.map(Loss::as_str))
        })?;
        let arguments = (
            lock,
            connection,
            token.as_str(),
            sql,
            parameters,
            seen,
            lost,
        );
        ours(py, "_guard", class, arguments)
    }

    /// Finishes an ending that has begun, for a coroutine.
    fn submit_ending(&self, inbox: &Inbox, number: u64, ending: service::End) {
        let core = self.core().clone();
        let job = job(self.locks(), inbox, number, move |locks, budget| {
            let finished = locks.finish(core.name(), ending, budget);
            finished.map(|()| Value::None)
        });
        self.locks().submit_ending(job);
    }

    /// Has a worker run a job on behalf of the calling owner.
    fn submit(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        number: u64,
        work: impl FnOnce(&Arc<Locks>, &service::Lock, &Caller, Budget<'_>) -> Result<Value, Error>
        + Send
        + 'static,
    ) -> PyResult<()> {
        let (core, caller) = (self.core().clone(), owner::current(py)?);
        let job = job(self.locks(), inbox, number, move |locks, budget| {
            work(locks, &core, &caller, budget)
        });
        self.locks().submit(job);
        Ok(())
    }
}

#[pymethods]
impl Lock {
    #[new]
    fn new(conf: &Bound<'_, PyAny>, name: &Bound<'_, PyAny>) -> PyResult<Lock> {
        let shared = Configured::of(conf)?;
        Ok(Lock::create(
            conf.clone().unbind(),
            shared,
            arguments::name(name)?,
        ))
    }

    /// The configuration.
    #[getter]
    fn conf(&self, py: Python<'_>) -> Py<PyAny> {
        self.conf.clone_ref(py)
    }

    /// The name of the lock.
    #[getter]
    fn name(&self) -> &str {
        self.core().name().as_str()
    }

    /// The token of the hold acquired through this object, or ``None``.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let caller = owner::current(py)?;
        Ok(self
            .core()
            .token(&caller)
            .map(|token| token.as_str().to_owned()))
    }

    /// The fencing number of the hold: larger at every later acquisition of the same name.
    ///
    /// ``None`` if nothing was acquired, or the holder is score.distlock 0.2.5, which has no such
    /// numbers. After :meth:`extend`, :meth:`transfer` or :meth:`guard` with the token of another
    /// hold, it is the number of that hold.
    #[getter]
    fn fence(&self, py: Python<'_>) -> PyResult<Option<i64>> {
        Ok(self.core().fence(&owner::current(py)?))
    }

    /// For how many seconds the hold of this object is certainly still valid; 0 without one, even if
    /// a token of another hold was extended through this object.
    ///
    /// Measured on this machine's monotonic clock, from before the request was sent: it ends before
    /// the lease in the database does.
    #[getter]
    fn remaining(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.core().remaining(&owner::current(py)?))
    }

    /// Whether there was a hold that is or may be lost: :attr:`remaining` has reached 0.
    #[getter]
    fn expired(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.core().expired(&owner::current(py)?))
    }

    /// A :class:`Lost`, set while the hold is lost; workers can sleep on it.
    ///
    /// .. code-block:: python
    ///
    ///     with lock.hold(autoextend=True):
    ///         while not lock.lost.wait(1):        # once a second
    ///             do_something()
    #[getter]
    fn lost(&self) -> Lost {
        Lost::new(self.core().clone())
    }

    /// Acquires the lock, or enters it once more if the caller is its owner.
    ///
    /// :param timeout: how long to wait if the lock is held elsewhere: seconds as a number, a
    ///     score interval such as ``'10s'``, a :class:`~datetime.timedelta`, or ``None`` for ever.
    ///     0 does not wait. By default (``'default'``) the configured ``timeout``.
    /// :returns: the token of the hold, 256 hexadecimal digits.
    /// :raises CouldNotAcquireLock: if the lock is still held elsewhere after `timeout`.
    /// :raises LockExpired: if the caller held the lock and has lost it.
    /// :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``.
    #[pyo3(signature = (*rest, timeout=Timeout::Configured), text_signature = "($self, *, timeout='default')")]
    pub fn acquire(
        &self,
        py: Python<'_>,
        rest: &Bound<'_, PyTuple>,
        timeout: Timeout,
    ) -> PyResult<String> {
        arguments::named(rest, "acquire(", "timeout")?;
        match enter(py, &self.handle, self.entering(timeout), None)? {
            Ok((_, token)) => Ok(token.as_str().to_owned()),
            Err(error) => Err(exception(py, error)),
        }
    }

    /// Like :meth:`acquire`, but does not wait, and returns ``None`` if the lock is held elsewhere.
    ///
    /// :returns: the token of the hold, or ``None``.
    pub fn try_acquiring(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let acquired = enter(py, &self.handle, self.entering(Timeout::ZERO), None)?;
        Ok(acquired.ok().map(|(_, token)| token.as_str().to_owned()))
    }

    /// Gives the hold the ``maxtime`` of the configuration from now, or that of its own
    /// ``hold(maxtime=…)``. Never makes it end earlier.
    ///
    /// :param token: the token of a hold that was not acquired through this object.
    /// :raises LockExpired: if the token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    #[pyo3(signature = (token=None))]
    pub fn extend(&self, py: Python<'_>, token: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let token = self.token_argument(token)?;
        let caller = owner::current(py)?;
        let confirmed = call(py, self.handle.shared.limit(), |budget| {
            self.locks().extend(self.core(), &caller, token, budget)
        })?;
        in_time(py, confirmed).map(drop)
    }

    /// Leaves the hold once; ends it if the owner entered it only once.
    ///
    /// :param token: the token of a hold that was not acquired through this object: that hold
    ///     ends, however often its owner has entered it.
    /// :param ignore_expired: do not raise if the hold is already lost.
    /// :raises LockExpired: if the token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    /// :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``;
    ///     then call it again.
    #[pyo3(signature = (token=None, ignore_expired=false))]
    pub fn release(
        &self,
        py: Python<'_>,
        token: Option<&Bound<'_, PyAny>>,
        ignore_expired: bool,
    ) -> PyResult<()> {
        let result = self.token_argument(token).and_then(|token| {
            let caller = owner::current(py)?;
            let ending = self
                .locks()
                .begin_release(self.core(), &caller, token.as_ref());
            call(py, self.handle.shared.limit(), |budget| {
                self.locks().finish(self.core().name(), ending, budget)
            })
        });
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
    /// Use it to hand a hold over for good: the receiver of a token calls this, and from then on is
    /// the only one who can extend or release. If this object holds the old token, it holds the new
    /// one afterwards. Lease and fencing number stay the same. If this raises, or its task is
    /// cancelled, the old token stays valid in this process.
    ///
    /// :param token: the token of a hold that was not acquired through this object.
    /// :returns: the new token.
    /// :raises LockExpired: if the old token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    #[pyo3(signature = (token=None))]
    fn transfer<'py>(
        &self,
        py: Python<'py>,
        token: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyString>> {
        in_time(py, self.transferred(py, token)?)
    }

    /// Guards one of the caller's own transactions on the same database.
    ///
    /// Entering the ``with`` block confirms the hold inside the transaction that is open on
    /// `connection`. From then until that transaction ends nobody else can take the lock, even past
    /// the lease. If the hold is already lost, the transaction is made to fail: it can no longer be
    /// committed.
    ///
    /// :param connection: an open connection of psycopg 2, psycopg 3 or Django, or a SQLAlchemy
    ///     Connection or Session, on the database the locks are in, within a transaction.
    /// :param token: the token of a hold that was not acquired through this object.
    /// :returns: a context manager that returns this Lock.
    /// :raises LockExpired: on entering, if the hold is lost.
    /// :raises RuntimeError: on entering, if the connection is in autocommit mode, or does not see
    ///     a live hold: it is to another database, or its snapshot is older.
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

    /// Acquires for a ``with`` block, with options.
    ///
    /// .. code-block:: python
    ///
    ///     with conf.get('mylock').hold(timeout=10, autoextend=True) as lock:
    ///         do_something_that_takes_long()
    ///
    /// Options left out default to the configuration.
    ///
    /// :param timeout: how long to wait if the lock is held elsewhere; see :meth:`acquire`.
    /// :param autoextend: whether to extend the hold, in the background, for as long as the block
    ///     runs: after every third of the lease.
    /// :param maxtime: a lease other than the module's ``maxtime``, for this hold.
    /// :param on_lost: called with the Lock, once and in a thread of its own, if the hold is lost
    ///     before the block ends: it could not be extended in time, its lease ended, or somebody
    ///     released it, even the owner inside the block. The end of the block raises
    ///     :class:`LockExpired` then.
    /// :param on_expiring: called with the Lock and the number of seconds that are left, likewise,
    ///     once for each term of the lease: if the hold was not extended and its end is near. With
    ///     `autoextend` that means that the database cannot be reached.
    /// :param warn_before: how near: seconds, a score interval or a :class:`~datetime.timedelta`.
    ///     By default a third of the lease; with `autoextend` less than half of it.
    /// :param note: what the hold is for: a line of at most 200 characters, shown with the
    ///     holder, see :class:`HoldInfo`.
    /// :returns: a context manager that returns this Lock.
    #[pyo3(signature = (timeout=Timeout::Configured, autoextend=None, maxtime=None, on_lost=None, *, note=None, on_expiring=None, warn_before=None), text_signature = "($self, timeout='default', autoextend=None, maxtime=None, on_lost=None, *, note=None, on_expiring=None, warn_before=None)")]
    #[allow(clippy::too_many_arguments)] // they are the caller's options
    fn hold(
        slf: &Bound<'_, Self>,
        timeout: Timeout,
        autoextend: Option<&Bound<'_, PyAny>>,
        maxtime: Option<&Bound<'_, PyAny>>,
        on_lost: Option<&Bound<'_, PyAny>>,
        note: Option<&Bound<'_, PyAny>>,
        on_expiring: Option<&Bound<'_, PyAny>>,
        warn_before: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Hold> {
        let autoextend = arguments::choice(autoextend, "autoextend")?;
        let py = slf.py();
        let lease: Option<f64> = ours(py, "_hold", "lease", (maxtime,))?.extract()?;
        ours(py, "_hold", "callbacks", (on_lost, on_expiring))?;
        let note: Option<String> = ours(py, "_hold", "note", (note,))?.extract()?;
        let defaults = &slf.get().handle.shared;
        let entering = Entering {
            timeout: timeout.or(defaults.timeout),
            extended: autoextend.unwrap_or(defaults.autoextend),
            block: true,
            lease: lease.and_then(Lease::from_seconds),
            note: note.map(Arc::from),
        };
        let seconds = lease.unwrap_or_else(|| slf.get().locks().lease().seconds());
        let warning = (on_expiring, warn_before, seconds, entering.extended);
        let listeners = Listeners {
            lock: slf.clone().into_any().unbind(),
            lost: on_lost.map(|on_lost| on_lost.clone().unbind()),
            expiring: ours(py, "_hold", "warning", warning)?.extract()?,
        };
        let handle = slf.get().handle.clone();
        let lock = slf.clone().into_any().unbind();
        Ok(Hold::new(lock, handle, entering, listeners))
    }

    /// Begins to acquire for a coroutine; puts `wakeup` into the inbox when it should step again.
    /// Calls `on_lost` and `expiring` with `lock`.
    #[pyo3(signature = (inbox, wakeup, timeout, block, autoextend, maxtime, on_lost, expiring, lock, note))]
    #[allow(clippy::too_many_arguments)] // one caller
    fn _begin(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        wakeup: u64,
        timeout: Timeout,
        block: bool,
        autoextend: Option<bool>,
        maxtime: Option<f64>,
        on_lost: Option<Py<PyAny>>,
        expiring: Option<(f64, Py<PyAny>)>,
        lock: Py<PyAny>,
        note: Option<String>,
    ) -> PyResult<Acquisition> {
        let defaults = &self.handle.shared;
        let listeners = Listeners {
            lock,
            lost: on_lost,
            expiring,
        };
        let request = Request {
            owner: Some((self.core().id(), owner::current(py)?)),
            block,
            extended: autoextend.unwrap_or(defaults.autoextend),
            lease: maxtime.and_then(Lease::from_seconds),
            about: about(note.map(Arc::from)),
        };
        Acquisition::new(
            self.locks().clone(),
            Some(self.core().clone()),
            self.core().name().clone(),
            request,
            Wait::new(timeout.or(defaults.timeout)),
            inbox.wakeup(wakeup),
            Some(listeners),
        )
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
        self.submit(py, inbox, number, move |locks, lock, caller, budget| {
            locks
                .extend(lock, caller, token, budget)
                .map(Value::Confirmed)
        })
    }

    /// Releases for a coroutine. It begins at once, and goes on even if nobody waits for it.
    fn _release(
        &self,
        py: Python<'_>,
        inbox: &Inbox,
        number: u64,
        token: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let token = self.token_argument(token)?;
        let caller = owner::current(py)?;
        let ending = self
            .locks()
            .begin_release(self.core(), &caller, token.as_ref());
        self.submit_ending(inbox, number, ending);
        Ok(())
    }

    /// Begins to transfer for a coroutine.
    fn _transfer(&self, py: Python<'_>, token: Option<&Bound<'_, PyAny>>) -> PyResult<Transfer> {
        let token = self.token_argument(token)?;
        let caller = owner::current(py)?;
        Transfer::begin(&self.handle, &caller, token).map_err(|error| exception(py, error))
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let py = slf.py();
        let this = slf.get();
        let entering = Entering {
            block: true,
            ..this.entering(Timeout::Configured)
        };
        enter(py, &this.handle, entering, None)?.map_err(|error| exception(py, error))?;
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
        let (caller, known) = owner::current_or_stranger(py);
        leave(py, &self.handle, self.core().block(&caller)).and(known)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (core, caller) = (self.core(), owner::current(py)?);
        let (name, state) = (core.name(), core.state(&caller));
        Ok(format!("<score.distlock.Lock {name} {state}>"))
    }
}
