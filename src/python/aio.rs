//! What coroutines need: answers that arrive at an event loop instead of a
//! thread that waits for them.

use super::errors::exception;
use crate::acquisition::{self, Step};
use crate::error::Result;
use crate::store::Patience;
use crate::waiting::Bell;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// An answer.
pub enum Value {
    /// It is done.
    None,
    /// A token.
    Text(String),
    /// Not yet: again in so many seconds, or when the bell rings.
    Later(f64),
}

/// What lies in an inbox, with the number it was asked under.
enum Mail {
    Answer(u64, Result<Value>),
    Rang(u64),
}

struct Core {
    mail: Mutex<Vec<Mail>>,
    bell: UnixStream,
}

impl Core {
    fn put(&self, mail: Mail) {
        let mut box_ = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        box_.push(mail);
        if box_.len() == 1 {
            // If there is no room, the loop has not read what came before.
            let _ = (&self.bell).write(&[0]);
        }
    }
}

/// Where answers wait for an event loop, with a file descriptor that becomes
/// readable when there are some.
#[pyclass(name = "_Inbox", module = "score.distlock", frozen)]
pub struct Inbox {
    core: Arc<Core>,
    end: UnixStream,
}

impl Inbox {
    /// The bell of one who waits.
    pub fn bell(&self, number: u64) -> Bell {
        let core = self.core.clone();
        Bell::Call(Box::new(move || core.put(Mail::Rang(number))))
    }

    /// Where an answer goes to.
    pub fn answer(&self, number: u64) -> impl FnOnce(Result<Value>) + Send + 'static {
        let core = self.core.clone();
        move |answer| core.put(Mail::Answer(number, answer))
    }
}

#[pymethods]
impl Inbox {
    #[new]
    fn new() -> PyResult<Inbox> {
        let (end, bell) = UnixStream::pair()?;
        end.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let mail = Mutex::default();
        Ok(Inbox {
            core: Arc::new(Core { mail, bell }),
            end,
        })
    }

    fn fileno(&self) -> i32 {
        self.end.as_raw_fd()
    }

    /// What has arrived: numbers, and for an answer the exception or the value.
    fn empty<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mail = {
            let mut waiting = self
                .core
                .mail
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // Under the mutex: whoever puts something in afterwards rings again.
            let _ = (&self.end).read(&mut [0; 64]);
            std::mem::take(&mut *waiting)
        };
        let list = PyList::empty(py);
        for mail in mail {
            let none = || py.None();
            let entry = match mail {
                Mail::Rang(number) => (number, false, none(), none()),
                Mail::Answer(number, Err(error)) => {
                    let raised = exception(py, error).into_value(py).into_any();
                    (number, true, raised, none())
                }
                Mail::Answer(number, Ok(value)) => {
                    let value = match value {
                        Value::None => none(),
                        Value::Text(text) => text.into_py_any(py)?,
                        Value::Later(seconds) => seconds.into_py_any(py)?,
                    };
                    (number, true, none(), value)
                }
            };
            list.append(entry)?;
        }
        Ok(list)
    }
}

/// A coroutine's attempt to acquire.
#[pyclass(name = "_Acquisition", module = "score.distlock", frozen)]
pub struct Acquisition(Arc<acquisition::Acquisition>);

impl Acquisition {
    /// Nothing happens before the first step.
    pub fn new(acquisition: acquisition::Acquisition) -> Acquisition {
        Acquisition(Arc::new(acquisition))
    }
}

#[pymethods]
impl Acquisition {
    /// Goes on; the answer is the token, or after how many seconds to go on again.
    fn step(&self, inbox: &Inbox, number: u64) {
        let (this, answer) = (self.0.clone(), inbox.answer(number));
        self.0.locks().submit(Box::new(move || {
            let timeout = this.locks().store().timeout();
            let step = this.step(Patience::new(timeout, &|| Ok(())));
            answer(step.map(|step| match step {
                Step::Acquired(token) => Value::Text(token.as_str().to_owned()),
                Step::Sleep(until) => {
                    let pause = until.saturating_duration_since(Instant::now());
                    Value::Later(pause.as_secs_f64())
                }
            }));
        }));
    }

    /// The coroutine was cancelled.
    fn give_up(&self) {
        self.0.give_up();
    }
}
