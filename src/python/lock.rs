//! `Lock`.

use super::arguments;
use super::call::call;
use super::errors::exception;
use super::module::ConfiguredDistlockModule;
use super::owner;
use crate::engine::{Name, Token};
use crate::error::Error;
use crate::locks;
use crate::store::sql;
use crate::zone;
use pyo3::prelude::*;
use pyo3::types::PyCFunction;
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

    fn enter(&self, py: Python<'_>, block: bool) -> PyResult<Result<String, Error>> {
        let owner = owner::current(py)?;
        call(py, self.conf.get().timeout(), |patience| {
            match self.locks().acquire(&self.core, owner, block, patience) {
                Ok(token) => Ok(Ok(token.as_str().to_owned())),
                Err(error @ Error::Held(_)) => Ok(Err(error)),
                Err(error) => Err(error),
            }
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
    /// :returns: the token of the hold, 256 hexadecimal digits.
    /// :raises CouldNotAcquireLock: if somebody else holds the lock, at once.
    /// :raises LockExpired: if the caller believed to hold it but has lost it.
    /// :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``.
    pub fn acquire(&self, py: Python<'_>) -> PyResult<String> {
        self.enter(py, false)?.map_err(|error| exception(py, error))
    }

    /// As :meth:`acquire`, but returns ``None`` if somebody else holds the lock.
    ///
    /// :returns: the token of the hold, or ``None``.
    pub fn try_acquiring(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.enter(py, false)?.ok())
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
        let (core, proof) = (this.core.clone(), token.clone());
        let lost = PyCFunction::new_closure(py, None, None, move |_, _| {
            core.lost(&proof);
            PyResult::Ok(())
        })?;
        py.import("score.distlock._guard")?
            .getattr("Guard")?
            .call1((
                slf,
                connection,
                token.as_str(),
                &sql::GUARD.text,
                parameters,
                seen,
                lost,
            ))
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let py = slf.py();
        slf.get()
            .enter(py, true)?
            .map_err(|error| exception(py, error))?;
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
