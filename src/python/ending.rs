//! Ends coroutines' blocks. An ending begins in Rust, within the call of `__aexit__`: no signal
//! handler can raise before that, and the ending goes on even if nobody waits for it, for instance
//! because the event loop is gone.

use super::aio::{Inbox, Value};
use crate::engine::Token;
use crate::error::{Error, Result};
use crate::service::{self, Locks};
use crate::store::Budget;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// What remains to be done in the database at the end of a block, for each of its locks.
pub type Endings = Vec<(Arc<service::Lock>, service::End)>;

/// Holds whose release has failed, for a caller that repeats it.
pub type Unfinished = Arc<Mutex<Vec<(Arc<service::Lock>, Token)>>>;

/// Finishes all of them, even if one fails; returns the first error.
pub fn finish_all(
    locks: &Arc<Locks>,
    endings: Endings,
    unfinished: &Unfinished,
    budget: Budget<'_>,
) -> Result<()> {
    let mut first = Ok(());
    let mut hopeless = false;
    let failed = |lock, token: Option<Token>| {
        let mut unfinished = unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.extend(token.map(|token| (lock, token)));
    };
    for (lock, ending) in endings {
        let token = ending.token();
        if hopeless {
            locks.finish_later(lock.name(), ending);
            failed(lock, token);
            continue;
        }
        let ended = locks.finish(lock.name(), ending, budget);
        if !matches!(ended, Ok(()) | Err(Error::Expired(..))) {
            failed(lock, token);
        }
        // Once interrupted, wait for no more; wait out an outage only once.
        hopeless = matches!(
            ended,
            Err(Error::Interrupted | Error::Forked | Error::Unavailable(_))
        );
        first = first.and(ended);
    }
    first
}

type Reader = Box<dyn FnOnce(Result<Value>) + Send>;

/// The outcome of an ending, or the reader that waits for it.
#[derive(Default)]
enum State {
    #[default]
    UnderWay,
    Awaited(Reader),
    Done(Result<Value>),
    Told,
}

/// An ending in progress; it goes on whether or not anybody waits for it.
#[pyclass(name = "_Exit", module = "score.distlock", frozen)]
pub struct Exit {
    state: Arc<Mutex<State>>,
    problem: Mutex<Option<PyErr>>,
}

impl Exit {
    /// `known` is an error if the caller could not be identified.
    pub fn begin(
        locks: &Arc<Locks>,
        endings: Endings,
        unfinished: Unfinished,
        known: PyResult<()>,
    ) -> Exit {
        let state = Arc::new(Mutex::new(State::default()));
        let (ended, ending) = (state.clone(), locks.clone());
        locks.submit_ending(Box::new(move || {
            let budget = Budget::new(ending.store().timeout(), &|| Ok(()));
            let outcome = finish_all(&ending, endings, &unfinished, budget).map(|()| Value::None);
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
    /// Has the outcome put into the inbox.
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
