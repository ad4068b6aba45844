//! The ends of coroutines' blocks. An end begins in Rust, within the call of `__aexit__`: no
//! signal handler can raise before that, and it goes on if nobody waits for it, because the
//! event loop is gone for instance.

use super::aio::{Inbox, Value};
use crate::engine::Ending;
use crate::error::{Error, Result};
use crate::service::{self, Locks};
use crate::store::Budget;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// What is to be done in the database at the end of a block, for each of its locks.
pub type Endings = Vec<(Arc<service::Lock>, Ending)>;

/// Ends all of them, also if one fails; the error that came first.
pub fn finish_all(locks: &Arc<Locks>, endings: Endings, budget: Budget<'_>) -> Result<()> {
    let mut first = Ok(());
    let mut hopeless = false;
    for (lock, ending) in endings {
        if hopeless {
            locks.finish_later(lock.name(), ending);
            continue;
        }
        let ended = locks.finish(lock.name(), ending, budget);
        // Who is interrupted waits for no more, and an outage is waited for once.
        hopeless = matches!(
            ended,
            Err(Error::Interrupted | Error::Forked | Error::Unavailable(_))
        );
        first = first.and(ended);
    }
    first
}

type Reader = Box<dyn FnOnce(Result<Value>) + Send>;

/// What came of an end, or who is to hear it.
#[derive(Default)]
enum State {
    #[default]
    UnderWay,
    Awaited(Reader),
    Done(Result<Value>),
    Told,
}

/// An end that has begun, and goes on whether anybody waits for it or not.
#[pyclass(name = "_Exit", module = "score.distlock", frozen)]
pub struct Exit {
    state: Arc<Mutex<State>>,
    problem: Mutex<Option<PyErr>>,
}

impl Exit {
    /// `known` is an error if it could not be told who leaves.
    pub fn begin(locks: &Arc<Locks>, endings: Endings, known: PyResult<()>) -> Exit {
        let state = Arc::new(Mutex::new(State::default()));
        let (ended, ending) = (state.clone(), locks.clone());
        locks.submit_ending(Box::new(move || {
            let budget = Budget::new(ending.store().timeout(), &|| Ok(()));
            let outcome = finish_all(&ending, endings, budget).map(|()| Value::None);
            let mut state = ended.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(&mut *state, State::Told) {
                State::Awaited(reader) => reader(outcome),
                _ => *state = State::Done(outcome),
            }
        }));
        Exit {
            state,
            problem: Mutex::new(known.err()),
        }
    }
}

#[pymethods]
impl Exit {
    /// What comes of it goes into the inbox.
    fn finish(&self, inbox: &Inbox, number: u64) -> PyResult<()> {
        let reader = inbox.answer(number);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Told) {
            State::Done(outcome) => reader(outcome),
            _ => *state = State::Awaited(Box::new(reader)),
        }
        drop(state);
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.take().map_or(Ok(()), Err)
    }
}
