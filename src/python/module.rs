//! `ConfiguredDistlockModule` and `init`.

use super::acquire::acquire;
use super::aio::{Acquisition, Inbox, Value, in_time, job};
use super::all;
use super::arguments;
use super::call::call;
use super::database::Database;
use super::engine::Engine;
use super::errors::exception;
use super::finalizing::ours;
use super::handle::{Configured, Shared};
use super::insight;
use super::levels::Levels;
use super::lock::Lock;
use super::objects::LockObjects;
use super::options::{ConfiguredTimeout, Timeout};
use super::owner;
use crate::engine::Lease;
use crate::error::Error;
use crate::service::{self, Callbacks, Locks, Request, Wait};
use crate::store::{Settings, Store};
use crate::zone;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A configuration: the locks of one database.
///
/// :param engine: a SQLAlchemy Engine, or the URL of a PostgreSQL database: a :class:`str`,
///     SQLAlchemy's ``URL`` or one of pydantic's DSN objects. The locks have connections of
///     their own, made as the Engine makes its own; see :doc:`configuration`.
/// :param maxtime: how long a hold lasts unless it is extended: seconds as a number, a score
///     interval such as ``'1m'`` or ``'500ms'``, or a :class:`~datetime.timedelta`.
/// :param reentrant: whether the owner of a Lock may acquire it again.
/// :param timeout: how long a call without a `timeout` waits for a lock that is held elsewhere; see
///     :meth:`Lock.acquire`.
/// :param autoextend: whether the holds of Lock objects and of :meth:`acquire_all` are extended in
///     the background.
/// :param pool_size: connections that stay open, as in SQLAlchemy.
/// :param max_overflow: connections beyond these while all are in use.
/// :param pool_timeout: how many seconds one call may take in total.
/// :param pool_recycle: after how many seconds a connection is replaced.
/// :param pool_pre_ping: whether to ask the server for a sign of life before each use.
/// :param echo: for :attr:`engine` only, as is ``isolation_level``.
/// :param connect_args: libpq options, which override those of the URL; see
///     :doc:`configuration`.
/// :param table_owner: a role whose table is trusted, even if it is neither ours, nor one that
///     we are a member of, nor the owner of the database, nor a superuser.
/// :raises score.init.ConfigurationError: if a value cannot be used.
///
/// No connection is opened before the first use, except through an Engine with a ``creator`` or a
/// ``do_connect`` listener.
#[pyclass(module = "score.distlock", subclass, dict, weakref, frozen)]
pub struct ConfiguredDistlockModule {
    shared: Arc<Shared>,
    maxtime: f64,
    engine: Engine,
    aio: Mutex<Option<Py<PyAny>>>,
    objects: LockObjects,
}

impl ConfiguredDistlockModule {
    /// The state that its Lock objects share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The core.
    fn locks(&self) -> &Arc<Locks> {
        &self.shared.locks
    }

    /// How long one call may take.
    fn timeout(&self) -> Duration {
        self.shared.limit()
    }

    /// Checks that the Engine's connections see the table of the locks: they must see a hold.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let name = format!("distlock.engine.{:032x}", rand::random::<u128>());
        let bound = name.as_str().into_pyobject(py)?.into_any();
        let name = arguments::name(&bound)?;
        let request = Request::default();
        let acquired = acquire(py, self.locks(), &name, &request, None, Callbacks::default)?;
        let (_, token) = acquired.map_err(|error| exception(py, error))?;
        let seen = ours(py, "_engine", "verify", (self.engine(py)?, bound));
        let (lock, caller) = (service::Lock::new(name.clone()), owner::current(py)?);
        let ending = self.locks().begin_release(&lock, &caller, Some(&token));
        call(py, self.timeout(), |budget| {
            self.locks().finish(&name, ending, budget)
        })?;
        seen.map(drop)
    }

    /// Acquires a hold without an owner.
    fn token(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        timeout: Timeout,
    ) -> PyResult<Result<String, Error>> {
        let name = arguments::name(name)?;
        let request = Request::default();
        let timeout = timeout.or(self.shared.timeout);
        let acquired = acquire(
            py,
            self.locks(),
            &name,
            &request,
            timeout,
            Callbacks::default,
        )?;
        Ok(acquired.map(|(_, token)| token.as_str().to_owned()))
    }
}

#[pymethods]
impl ConfiguredDistlockModule {
    /// Set by score.init.
    #[classattr]
    fn _finalized() -> bool {
        false
    }

    /// The name under which score.init knows the module.
    #[classattr]
    fn _module_name() -> &'static str {
        "score.distlock"
    }

    #[new]
    #[pyo3(signature = (
        engine, maxtime, *, reentrant=None, timeout=ConfiguredTimeout(Timeout::ZERO), autoextend=None, pool_size=None,
        max_overflow=None, pool_timeout=None, pool_recycle=None, pool_pre_ping=None, echo=None,
        isolation_level=None, connect_args=None, table_owner=None
    ), text_signature = "(engine, maxtime, *, reentrant=True, timeout=0, autoextend=False, pool_size=None, max_overflow=None, pool_timeout=None, pool_recycle=None, pool_pre_ping=None, echo=None, isolation_level=None, connect_args=None, table_owner=None)")]
    #[allow(clippy::too_many_arguments)] // a constructor with options
    fn new(
        py: Python<'_>,
        engine: &Bound<'_, PyAny>,
        maxtime: &Bound<'_, PyAny>,
        reentrant: Option<&Bound<'_, PyAny>>,
        timeout: ConfiguredTimeout,
        autoextend: Option<&Bound<'_, PyAny>>,
        pool_size: Option<Bound<'_, PyAny>>,
        max_overflow: Option<Bound<'_, PyAny>>,
        pool_timeout: Option<Bound<'_, PyAny>>,
        pool_recycle: Option<Bound<'_, PyAny>>,
        pool_pre_ping: Option<Bound<'_, PyAny>>,
        echo: Option<Bound<'_, PyAny>>,
        isolation_level: Option<Bound<'_, PyAny>>,
        connect_args: Option<Bound<'_, PyAny>>,
        table_owner: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let maxtime: f64 = ours(py, "_config", "interval", (maxtime, "maxtime"))?.extract()?;
        let reentrant = arguments::flag_or(true, reentrant, "reentrant")?;
        let autoextend = arguments::flag_or(false, autoextend, "autoextend")?;
        let options = PyDict::new(py);
        for (key, value) in [
            ("pool_size", pool_size),
            ("max_overflow", max_overflow),
            ("pool_timeout", pool_timeout),
            ("pool_recycle", pool_recycle),
            ("pool_pre_ping", pool_pre_ping),
            ("echo", echo),
            ("isolation_level", isolation_level),
            ("table_owner", table_owner),
        ] {
            options.set_item(key, value)?;
        }
        let checked = ours(py, "_config", "constructor", (options,))?;
        let (pool, engine_options, table_owner): (_, Py<PyDict>, Option<String>) =
            checked.extract()?;
        let (size, overflow, limit, recycle, pre_ping): (usize, i64, f64, Option<f64>, bool) = pool;
        let settings = Settings {
            size,
            overflow: usize::try_from(overflow).ok(),
            timeout: Duration::from_secs_f64(limit),
            recycle: recycle.map(Duration::from_secs_f64),
            pre_ping,
        };
        let database = Database::read(py, engine, &connect_args.into_pyobject(py)?)?;
        let lease = lease(maxtime).map_err(|error| exception(py, error))?;
        let made = ConfiguredDistlockModule {
            shared: Arc::new(Shared {
                locks: Arc::new(Locks::new(
                    Store::new(database.url, settings, table_owner),
                    lease,
                    reentrant,
                )),
                timeout: timeout.0.or(Some(Duration::ZERO)),
                autoextend,
            }),
            maxtime,
            engine: Engine::new(database.engine, engine_options),
            aio: Mutex::new(None),
            objects: LockObjects::default(),
        };
        if database.verify {
            made.verify(py)?;
        }
        Ok(made)
    }

    /// How long a hold lasts unless it is extended, in seconds.
    #[getter]
    fn maxtime(&self) -> f64 {
        self.maxtime
    }

    /// A SQLAlchemy Engine on the same database, made on first use.
    ///
    /// :raises ImportError: if SQLAlchemy is not installed; the extra ``sqlalchemy`` installs it.
    #[getter]
    fn engine<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.engine.get(py, self.locks().store().url())
    }

    /// The logger of this module.
    #[getter]
    fn log<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("logging")?
            .call_method1("getLogger", ("score.distlock",))
    }

    #[getter]
    fn _module<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyModule>> {
        py.import("score.distlock")
    }

    /// Called by score.init when all modules are initialized.
    fn _finalize(&self) {}

    /// The Lock of this name: the same object for as long as it is referenced.
    ///
    /// :param name: any :class:`str` without NUL, even an empty one.
    /// :raises TypeError: if it is something else.
    /// :raises ValueError: if it contains NUL.
    fn get<'py>(slf: &Bound<'py, Self>, name: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Lock>> {
        let (name, this) = (arguments::name(name)?, slf.get());
        this.objects.get(slf.py(), name, |name| {
            let conf = slf.clone().into_any().unbind();
            Lock::create(conf, this.shared.clone(), name)
        })
    }

    /// Acquires the lock and returns the token of the hold, which may outlive this process.
    ///
    /// :param name: the name of the lock.
    /// :param timeout: how long to wait if the lock is held; see :meth:`Lock.acquire`.
    /// :returns: the token of the hold, 256 hexadecimal digits.
    /// :raises CouldNotAcquireLock: if the lock is still held after `timeout`.
    /// :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``.
    #[pyo3(signature = (name, *rest, timeout=Timeout::Configured), text_signature = "($self, name, *, timeout='default')")]
    fn acquire(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        rest: &Bound<'_, PyTuple>,
        timeout: Timeout,
    ) -> PyResult<String> {
        arguments::named(rest, "acquire(name, ", "timeout")?;
        self.token(py, name, timeout)?
            .map_err(|error| exception(py, error))
    }

    /// Acquires several locks: all of them, or none.
    ///
    /// The order of the names does not matter: every process acquires them in the same order, so two
    /// callers that want the same locks never deadlock. The locks acquired first are kept alive until the last one is acquired.
    ///
    /// .. code-block:: python
    ///
    ///     with conf.acquire_all(['from', 'to'], timeout=10) as tokens:
    ///         do_something_with_both()
    ///
    /// :param names: the names of the locks; a duplicate counts once.
    /// :param timeout: how long to wait for all of them in total; see :meth:`Lock.acquire`.
    /// :param autoextend: whether to extend them in the background until they are released.
    /// :returns: a :class:`dict` from name to token. As a context manager it releases all of
    ///     them at the end of the block; otherwise its ``release()`` does.
    /// :raises CouldNotAcquireLock: if one of them is still held after `timeout`.
    #[pyo3(signature = (names, *rest, timeout=Timeout::Configured, autoextend=None), text_signature = "($self, names, *, timeout='default', autoextend=None)")]
    fn acquire_all<'py>(
        slf: &Bound<'py, Self>,
        names: &Bound<'py, PyAny>,
        rest: &Bound<'py, PyTuple>,
        timeout: Timeout,
        autoextend: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        arguments::named(rest, "acquire_all(names, ", "timeout")?;
        let autoextend = arguments::choice(autoextend, "autoextend")?;
        let get = |name: &Bound<'py, PyAny>| ConfiguredDistlockModule::get(slf, name);
        all::acquire(slf.py(), &slf.get().shared, names, timeout, autoextend, get)
    }

    /// Decorates a function, method or coroutine function so that it runs under a lock.
    ///
    /// .. code-block:: python
    ///
    ///     @conf.locked('order-{order_id}', timeout=10)
    ///     def ship(order_id): ...
    ///
    /// :param name: the name of the lock. Fields in braces are filled in with the arguments of
    ///     the call, as ``str.format`` does.
    /// :param timeout: how long to wait; the module's ``timeout`` by default.
    /// :param autoextend: whether to extend the hold in the background; the module's
    ///     ``autoextend`` by default.
    /// :param maxtime: a lease other than the module's ``maxtime``.
    /// :param on_lost: see :meth:`Lock.hold`.
    /// :param on_expiring: see :meth:`Lock.hold`.
    /// :param warn_before: see :meth:`Lock.hold`.
    /// :returns: the decorator.
    /// :raises ValueError: if a field is not an argument of the function.
    /// :raises TypeError: if the decorated object is a generator function or not a function.
    #[pyo3(signature = (name, *, timeout=Timeout::Configured, autoextend=None, maxtime=None, on_lost=None, on_expiring=None, warn_before=None), text_signature = "($self, name, *, timeout='default', autoextend=None, maxtime=None, on_lost=None, on_expiring=None, warn_before=None)")]
    #[allow(clippy::too_many_arguments)] // they are the caller's options
    fn locked<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        timeout: Timeout,
        autoextend: Option<Bound<'py, PyAny>>,
        maxtime: Option<Bound<'py, PyAny>>,
        on_lost: Option<Bound<'py, PyAny>>,
        on_expiring: Option<Bound<'py, PyAny>>,
        warn_before: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let timeout = match timeout {
            Timeout::Configured => "default".into_py_any(py)?,
            Timeout::Given(timeout) => timeout.map(|time| time.as_secs_f64()).into_py_any(py)?,
        };
        let arguments = (
            slf,
            name,
            timeout,
            autoextend,
            maxtime,
            on_lost,
            on_expiring,
            warn_before,
        );
        ours(py, "_locked", "of", arguments)
    }

    /// The same locks for coroutines: an :class:`~score.distlock.aio.AsyncModule`.
    #[getter]
    fn aio<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let known = |slot: &Mutex<Option<Py<PyAny>>>| {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.as_ref().map(|aio| aio.bind(py).clone())
        };
        let this = slf.get();
        if let Some(aio) = known(&this.aio) {
            return Ok(aio);
        }
        // Not under the mutex: importing runs Python code.
        let made = ours(py, "aio", "AsyncModule", (slf,))?;
        let mut slot = this.aio.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(slot.get_or_insert_with(|| made.unbind()).bind(py).clone())
    }

    /// Like :meth:`acquire`, but does not wait, and returns ``None`` if the lock is held.
    ///
    /// :param name: the name of the lock.
    /// :returns: the token of the hold, or ``None``.
    fn try_acquiring(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
        Ok(self.token(py, name, Timeout::ZERO)?.ok())
    }

    /// Begins to acquire, for a coroutine, a hold without an owner.
    fn _begin(
        &self,
        name: &Bound<'_, PyAny>,
        inbox: &Inbox,
        wakeup: u64,
        timeout: Timeout,
    ) -> PyResult<Acquisition> {
        Acquisition::new(
            self.locks().clone(),
            None,
            arguments::name(name)?,
            Request::default(),
            Wait::new(timeout.or(self.shared.timeout)),
            inbox.wakeup(wakeup),
            None,
        )
    }

    /// For its Lock objects.
    #[getter]
    fn _shared(&self) -> Configured {
        Configured::new(&self.shared)
    }

    /// The configured ``autoextend``.
    #[getter]
    fn _autoextend(&self) -> bool {
        self.shared.autoextend
    }

    /// Levels for a coroutine to enter.
    fn _levels(&self) -> Levels {
        Levels::new(self.locks().clone())
    }

    /// Gives a hold the ``maxtime`` of this configuration from now, or that of its own
    /// ``hold(maxtime=…)``. Never makes it end earlier.
    ///
    /// :param name: the name of the lock.
    /// :param token: its token, unless it was acquired through a Lock object that still exists.
    /// :raises LockExpired: if the token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    #[pyo3(signature = (name, token=None))]
    fn extend<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        token: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        ConfiguredDistlockModule::get(slf, name)?
            .get()
            .extend(slf.py(), token)
    }

    /// Ends a hold.
    ///
    /// :param name: the name of the lock.
    /// :param token: its token, unless it was acquired through a Lock object that still exists.
    /// :raises LockExpired: if the token is wrong, was released or has expired.
    /// :raises ValueError: if there is no token.
    #[pyo3(signature = (name, token=None))]
    fn release<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        token: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        ConfiguredDistlockModule::get(slf, name)?
            .get()
            .release(slf.py(), token, false)
    }

    /// Gives a hold a new token and voids the old one, in one step.
    ///
    /// :param name: the name of the lock.
    /// :param token: the old token; see :meth:`extend`.
    /// :returns: the new token.
    /// :raises LockExpired: if the old token is wrong, was released or has expired.
    #[pyo3(signature = (name, token=None))]
    fn transfer<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        token: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyString>> {
        let confirmed = ConfiguredDistlockModule::get(slf, name)?
            .get()
            .transferred(slf.py(), token)?;
        in_time(slf.py(), confirmed)
    }

    /// All holds in the table.
    ///
    /// Reads the whole table, but no tokens.
    ///
    /// :returns: a :class:`list` of :class:`HoldInfo`, by name.
    fn holders<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let records = call(py, self.timeout(), |budget| self.locks().holders(budget))?;
        insight::objects(py, "records", records)
    }

    /// The current hold of a lock.
    ///
    /// :param name: the name of the lock.
    /// :returns: a :class:`HoldInfo`, or ``None`` if the lock is free.
    fn info<'py>(&self, py: Python<'py>, name: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let name = arguments::name(name)?;
        let record = call(py, self.timeout(), |budget| {
            self.locks().info(&name, budget)
        })?;
        insight::objects(py, "record", record.into_iter().collect())
    }

    /// Ends a hold by force, and wakes the next waiter as a release does.
    ///
    /// The holder is not asked. It finds out as with any loss: at its next extension or release, or
    /// when it guards a transaction. Until then it keeps running alongside the next holder.
    ///
    /// :param name: the name of the lock.
    /// :param fence: end the hold only if it has this ``fence``; ``None`` ends it
    ///     whatever its fence.
    /// :returns: a :class:`HoldInfo` describing the hold that was ended; ``None`` if the lock is
    ///     free, or held with another fence.
    #[pyo3(signature = (name, fence=None))]
    fn revoke<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'_, PyAny>,
        fence: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (name, fence) = (arguments::name(name)?, insight::fence(fence)?);
        let record = call(py, self.timeout(), |budget| {
            self.locks().revoke(&name, fence, budget)
        })?;
        insight::objects(py, "record", record.into_iter().collect())
    }

    /// Facts that affect how reliable the locks are here: names and values, for `doctor`.
    fn _facts(&self, py: Python<'_>) -> PyResult<Vec<(String, Option<String>)>> {
        call(py, self.timeout(), |budget| self.locks().facts(budget))
    }

    /// Pairs of locks, for `doctor`: the holder of the first waits for the second.
    fn _waits(&self, py: Python<'_>) -> PyResult<Vec<(String, String)>> {
        call(py, self.timeout(), |budget| self.locks().waits(budget))
    }

    /// Reads all holds for a coroutine.
    fn _holders(&self, inbox: &Inbox, number: u64) {
        self.locks()
            .submit(job(self.locks(), inbox, number, |locks, budget| {
                locks.holders(budget).map(Value::Records)
            }));
    }

    /// Reads a hold for a coroutine.
    fn _info(&self, inbox: &Inbox, number: u64, name: &Bound<'_, PyAny>) -> PyResult<()> {
        let name = arguments::name(name)?;
        self.locks()
            .submit(job(self.locks(), inbox, number, move |locks, budget| {
                let record = locks.info(&name, budget)?;
                Ok(Value::Records(record.into_iter().collect()))
            }));
        Ok(())
    }

    /// Revokes for a coroutine.
    fn _revoke(
        &self,
        inbox: &Inbox,
        number: u64,
        name: &Bound<'_, PyAny>,
        fence: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (name, fence) = (arguments::name(name)?, insight::fence(fence)?);
        self.locks()
            .submit_ending(job(self.locks(), inbox, number, move |locks, budget| {
                let record = locks.revoke(&name, fence, budget)?;
                Ok(Value::Records(record.into_iter().collect()))
            }));
        Ok(())
    }

    /// Deletes the rows of all holds that have expired or ended.
    ///
    /// The library does this in the background, a few rows at a time; nothing depends on it.
    ///
    /// :param session: a SQLAlchemy Session or Connection: the rows are then deleted in its
    ///     transaction, which is not committed.
    #[pyo3(signature = (session=None))]
    fn vacuum(&self, py: Python<'_>, session: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        match session {
            Some(session) => {
                let sql = call(py, self.timeout(), |budget| self.locks().vacuum_sql(budget))?;
                let arguments = (session, sql, self.maxtime, zone::offset());
                ours(py, "_sqlalchemy", "vacuum", arguments).map(drop)
            }
            None => call(py, self.timeout(), |budget| self.locks().vacuum(budget)),
        }
    }

    /// Stops the threads and closes the connections; the next call opens new ones, and expects the
    /// same table. After a restore or a change of server under the same address, use a new
    /// configuration instead.
    ///
    /// First completes pending releases, waiting no longer than ``pool_timeout``. Holds stay.
    /// Automatic extensions and waiters keep what they need. Also disposes of :attr:`engine`, if it
    /// was made here.
    ///
    /// ``with conf:`` and ``async with conf.aio:`` call it at the end.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.engine.dispose(py)?;
        call(py, self.timeout(), |budget| self.locks().close(budget))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!(
            "<ConfiguredDistlockModule {} maxtime={}>",
            self.locks().store().url(),
            self.maxtime
        )
    }
}

fn lease(maxtime: f64) -> Result<Lease, Error> {
    Lease::from_seconds(maxtime)
        .ok_or_else(|| Error::Configuration(format!("maxtime: {maxtime} is out of range")))
}
