//! Events for telemetry, see `telemetry.py`. No call on a lock runs Python code for it: events are
//! queued here until a Python thread takes them, or the exporter asks.

use super::events;
use super::handle::Configured;
use crate::engine::Name;
use crate::process::ProcessLocal;
use crate::service::{Attempted, Event, Observer, Report};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event, the callback that wants it, and its context.
struct Seen {
    callback: Arc<Py<PyAny>>,
    context: Option<Py<PyAny>>,
    name: Name,
    event: Event,
    /// When, in nanoseconds since 1970.
    at: u64,
}

type Queue = Mutex<VecDeque<Seen>>;

static SEEN: LazyLock<ProcessLocal<Queue>> = LazyLock::new(ProcessLocal::default);

/// At this many events, wake the thread that takes them.
const MANY: usize = 500;
/// Events beyond this are dropped.
const MOST: usize = 100_000;
/// Whether the overflow has been logged.
static DROPPED: AtomicBool = AtomicBool::new(false);

fn put(callback: Arc<Py<PyAny>>, context: Option<Py<PyAny>>, name: &Name, event: Event) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    });
    let name = name.clone();
    let queue = SEEN.get();
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    if queue.len() >= MOST {
        drop(queue);
        if !DROPPED.swap(true, Relaxed) {
            log::warn!("{MOST} events have not been measured yet, more of them are dropped");
        }
        return;
    }
    queue.push_back(Seen {
        callback,
        context,
        name,
        event,
        at,
    });
    if queue.len() % MANY == 0 {
        drop(queue);
        events::wake();
    }
}

/// A Python callable that takes measurements.
struct Callback(Arc<Py<PyAny>>);

impl Observer for Callback {
    fn attempt(&self) -> Report {
        let callback = self.0.clone();
        let context = Python::try_attach(|py| {
            let context = py
                .import(pyo3::intern!(py, "contextvars"))
                .and_then(|module| module.call_method0(pyo3::intern!(py, "copy_context")));
            context.map(Bound::unbind).ok()
        });
        let context = context.flatten();
        events::expect_measurements();
        Box::new(move |name, event| put(callback, context, name, event))
    }

    fn see(&self, name: &Name, event: Event) {
        put(self.0.clone(), None, name, event);
    }
}

/// From now on calls `callback` with the events of a module's locks; ``None`` ends that.
#[pyfunction]
#[pyo3(signature = (conf, callback))]
pub fn _observe(conf: &Bound<'_, PyAny>, callback: Option<Py<PyAny>>) -> PyResult<()> {
    let observer = callback.map(|callback| Arc::new(Callback(Arc::new(callback))) as Arc<_>);
    Configured::of(conf)?.locks.observe(observer);
    Ok(())
}

/// The names of the holds, the number of waiters per lock, and whether the listener is connected.
#[pyfunction]
#[allow(clippy::type_complexity)] // as Python sees it
pub fn _measured(
    conf: &Bound<'_, PyAny>,
) -> PyResult<(Vec<String>, Vec<(String, usize)>, Option<bool>)> {
    let text = |name: Name| name.as_str().to_owned();
    let (holds, waiting, listening) = Configured::of(conf)?.locks.measured();
    let waiting = waiting.into_iter().map(|(name, count)| (text(name), count));
    let holds = holds.into_iter().map(text).collect();
    Ok((holds, waiting.collect(), listening))
}

fn arguments(py: Python<'_>, seen: &Seen) -> PyResult<Py<PyTuple>> {
    let name = seen.name.as_str();
    let arguments = match &seen.event {
        Event::Attempt { how, took } => {
            let (outcome, fence, error) = match how {
                Attempted::Acquired(fence) => ("acquired", *fence, None),
                Attempted::Reentered => ("reentered", None, None),
                Attempted::Refused => ("refused", None, None),
                Attempted::Lost(_) => ("lost", None, Some("score.distlock.LockExpired")),
                Attempted::Cancelled => ("cancelled", None, None),
                Attempted::Failed(error) => ("error", None, Some(*error)),
            };
            let took = took.as_secs_f64();
            ("attempt", name, outcome, took, fence, error, seen.at).into_pyobject(py)?
        }
        Event::Extended { margin } => ("extended", name, *margin).into_pyobject(py)?,
        Event::Ended { held, margin, lost } => {
            let lost = lost.map(crate::engine::Loss::as_str);
            ("ended", name, held.as_secs_f64(), *margin, lost).into_pyobject(py)?
        }
    };
    Ok(arguments.unbind())
}

/// How many events are queued.
#[pyfunction]
pub fn _count_seen() -> usize {
    let queue = SEEN.get();
    queue.lock().unwrap_or_else(PoisonError::into_inner).len()
}

/// Takes the oldest event: the context, the callback, and its arguments.
#[pyfunction]
#[allow(clippy::type_complexity)] // as Python sees it
pub fn _next_seen(py: Python<'_>) -> PyResult<Option<(Py<PyAny>, Py<PyAny>, Py<PyTuple>)>> {
    let seen = SEEN
        .get()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_front();
    let Some(seen) = seen else {
        return Ok(None);
    };
    let context = seen
        .context
        .as_ref()
        .map(|context| context.clone_ref(py))
        .into_py_any(py)?;
    let arguments = arguments(py, &seen)?;
    Ok(Some((context, seen.callback.clone_ref(py), arguments)))
}
