//! Delivers the core's answers to an event loop, so that no thread has to wait for them.

use super::errors::exception;
use super::events::{self, Listeners};
use super::finalizing::python_code;
use super::insight;
use super::owner;
use crate::engine::{Entered, Name};
use crate::error::{Error, Result};
use crate::service::{self, Callbacks, Locks, Request, Step, Wait, Wakeup};
use crate::store::{Budget, Record};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// An answer from the core.
pub enum Value {
    /// Done.
    None,
    /// A hold that the database has confirmed.
    Confirmed(service::Confirmed),
    /// Not yet: step again after this many seconds, or when woken.
    Later(f64),
    /// The lock was granted and can be accepted.
    Granted,
    /// Records of holds.
    Records(Vec<Record>),
}

/// An item in an inbox, with its request number.
enum Mail {
    Answer(u64, Result<Value>),
    /// And whether it is still here: one is enough.
    Rang(u64, Arc<AtomicBool>),
}

struct Core {
    mail: Mutex<Vec<Mail>>,
    waker: UnixStream,
}

impl Core {
    fn mail(&self) -> MutexGuard<'_, Vec<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, mail: Mail) {
        let mut box_ = self.mail();
        box_.push(mail);
        if box_.len() == 1 {
            self.ring();
        }
    }

    /// Makes the file descriptor readable.
    fn ring(&self) {
        // If the socket is full, the loop has not yet read the earlier bytes.
        let _ = (&self.waker).write(&[0]);
    }
}

/// Queues answers for an event loop; its file descriptor becomes readable when there are any.
#[pyclass(name = "_Inbox", module = "score.distlock", frozen)]
pub struct Inbox {
    core: Arc<Core>,
    end: UnixStream,
    opened: Mutex<VecDeque<Py<PyTuple>>>,
}

impl Inbox {
    /// A wakeup for a waiting coroutine.
    pub fn wakeup(&self, number: u64) -> Wakeup {
        let (core, here) = (self.core.clone(), Arc::new(AtomicBool::new(false)));
        Wakeup::Call(Box::new(move || {
            if !here.swap(true, SeqCst) {
                core.put(Mail::Rang(number, here.clone()));
            }
        }))
    }

    /// Puts the answer to a request into the inbox.
    pub fn answer(&self, number: u64) -> impl FnOnce(Result<Value>) + Send + 'static {
        let core = self.core.clone();
        move |answer| core.put(Mail::Answer(number, answer))
    }
}

#[pymethods]
impl Inbox {
    #[new]
    fn new() -> PyResult<Inbox> {
        let (end, waker) = UnixStream::pair()?;
        end.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let mail = Mutex::default();
        Ok(Inbox {
            core: Arc::new(Core { mail, waker }),
            end,
            opened: Mutex::default(),
        })
    }

    fn fileno(&self) -> i32 {
        self.end.as_raw_fd()
    }

    /// Calls `deliver` for each item that has arrived, with `expected`, the number, whether it is
    /// an answer, and its exception or value. If `deliver` raises, as a signal handler inside it
    /// may, the same item is delivered again: the file descriptor stays readable.
    fn deliver(
        &self,
        py: Python<'_>,
        deliver: &Bound<'_, PyAny>,
        expected: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let _running = python_code(py);
        events::attend_news(py)?;
        self.fetch(py)?;
        let first = || self.opened().front().map(|mail| mail.clone_ref(py));
        while let Some(mail) = first() {
            let mut arguments = vec![expected.clone()];
            arguments.extend(mail.bind(py));
            let delivered = deliver.call1(PyTuple::new(py, arguments)?);
            if let Err(error) = delivered {
                self.core.ring();
                return Err(error);
            }
            self.opened().pop_front();
        }
        Ok(())
    }
}

impl Inbox {
    /// Items not yet delivered to Python; touched with the GIL only.
    fn opened(&self) -> MutexGuard<'_, VecDeque<Py<PyTuple>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves newly arrived items to the undelivered ones.
    fn fetch(&self, py: Python<'_>) -> PyResult<()> {
        let arrived = {
            let mut mail = self.core.mail();
            // Under the mutex: any later `put` rings again.
            let _ = (&self.end).read(&mut [0; 64]);
            std::mem::take(&mut *mail)
        };
        for mail in arrived {
            let none = || py.None();
            let entry = match mail {
                Mail::Rang(number, here) => {
                    here.store(false, SeqCst);
                    (number, false, none(), none())
                }
                Mail::Answer(number, Err(error)) => {
                    let raised = exception(py, error).into_value(py).into_any();
                    (number, true, raised, none())
                }
                Mail::Answer(number, Ok(value)) => (number, true, none(), value.open(py)?),
            };
            let entry = entry.into_pyobject(py)?.unbind();
            self.opened().push_back(entry);
        }
        Ok(())
    }
}

impl Value {
    fn open(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Value::None => Ok(py.None()),
            Value::Confirmed(confirmed) => {
                Confirmation(Mutex::new(Some(confirmed))).into_py_any(py)
            }
            Value::Later(seconds) => seconds.into_py_any(py),
            Value::Granted => true.into_py_any(py),
            Value::Records(records) => Ok(insight::all_fields(py, records)?.into_any().unbind()),
        }
    }
}

/// The token of a confirmed hold, if its deadline has not passed for Python code that goes on now.
pub fn in_time(py: Python<'_>, confirmed: service::Confirmed) -> PyResult<Bound<'_, PyString>> {
    let token = match confirmed.in_time() {
        Ok(token) => PyString::new(py, token.as_str()),
        Err(error) => return Err(exception(py, error)),
    };
    // Let a pending signal interrupt the caller before it reads the token, hardly ever after.
    py.check_signals()?;
    let read = confirmed.read();
    read.map(|()| token).map_err(|error| exception(py, error))
}

/// A confirmed hold, for a coroutine that may resume much later.
#[pyclass(name = "_Confirmation", module = "score.distlock", frozen)]
pub struct Confirmation(Mutex<Option<service::Confirmed>>);

#[pymethods]
impl Confirmation {
    /// The token, once.
    fn in_time<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyString>>> {
        let mut confirmed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed
            .take()
            .map(|confirmed| in_time(py, confirmed))
            .transpose()
    }
}

/// Runs a job of the core and puts its outcome into an inbox.
pub fn job(
    locks: &Arc<Locks>,
    inbox: &Inbox,
    number: u64,
    work: impl FnOnce(&Arc<Locks>, Budget<'_>) -> Result<Value> + Send + 'static,
) -> Box<dyn FnOnce() + Send> {
    let (locks, answer) = (locks.clone(), inbox.answer(number));
    Box::new(move || {
        let budget = Budget::new(locks.store().timeout(), &|| Ok(()));
        answer(work(&locks, budget));
    })
}

/// A coroutine's attempt to acquire.
#[pyclass(name = "_Acquisition", module = "score.distlock", frozen)]
pub struct Acquisition {
    core: Arc<service::Acquisition>,
    lock: Option<Arc<service::Lock>>,
    request: Request,
    listeners: Option<Listeners>,
    accepted: Mutex<Option<Entered>>,
}

impl Acquisition {
    /// Nothing happens before the first step. `lock` is `None` for a hold without an owner.
    pub fn new(
        locks: Arc<Locks>,
        lock: Option<Arc<service::Lock>>,
        name: Name,
        request: Request,
        wait: Wait,
        wakeup: Wakeup,
        listeners: Option<Listeners>,
    ) -> PyResult<Acquisition> {
        if request.extended {
            Python::attach(events::attend)?;
        }
        if let Some(listeners) = &listeners {
            Python::attach(|py| listeners.attend(py))?;
        }
        let core = service::Acquisition::new(locks, name, request.clone(), wait, wakeup);
        Ok(Acquisition {
            core: Arc::new(core),
            lock,
            request,
            listeners,
            accepted: Mutex::default(),
        })
    }
}

#[pymethods]
impl Acquisition {
    /// Takes the next step. Returns the seconds to sleep, if known at once; otherwise the answer
    /// carries them, or is `True` if the lock was granted.
    fn step(&self, inbox: &Inbox, number: u64) -> Option<f64> {
        let seconds = |until: Instant| {
            until
                .saturating_duration_since(Instant::now())
                .as_secs_f64()
        };
        if let Some(until) = self.core.sleeps() {
            return Some(seconds(until));
        }
        let (core, answer) = (self.core.clone(), inbox.answer(number));
        self.core.locks().submit(Box::new(move || {
            let check = || {
                if core.is_given_up() {
                    return Err(Error::Interrupted);
                }
                Ok(())
            };
            let budget = Budget::new(core.locks().store().timeout(), &check);
            let step = core.step(budget);
            answer(step.map(|step| match step {
                Step::Granted => Value::Granted,
                Step::Sleep(until) => Value::Later(seconds(until)),
            }));
        }));
        None
    }

    /// Takes the granted lock for the coroutine: the token and the level. `None` if the answer came
    /// too late and the wait goes on.
    fn accept(&self, py: Python<'_>) -> PyResult<Option<(String, (u64, u64))>> {
        let caller = self.request.owner.as_ref().map(|(_, caller)| caller);
        let listeners = self.listeners.as_ref();
        let callbacks = listeners.map_or_else(Callbacks::default, |all| all.callbacks(py));
        let accepted = self.core.accept(caller, callbacks);
        let Some((entered, token)) = accepted.map_err(|error| exception(py, error))? else {
            return Ok(None);
        };
        if self.lock.is_some() {
            *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(entered);
            owner::remember(py, entered.hold)?;
        }
        let level = (entered.hold.number(), entered.level.number());
        Ok(Some((token.as_str().to_owned(), level)))
    }

    /// The coroutine was cancelled, at any point.
    fn give_up(&self) {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        match (*accepted, &self.lock) {
            (Some(entered), Some(lock)) => self.core.locks().abandon(lock, entered),
            _ => self.core.give_up(),
        }
    }
}
