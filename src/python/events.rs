//! Events from threads unknown to Python: log records, and the fate of holds.
//!
//! These threads never call Python themselves: during finalization that would abort the process,
//! and a destructor may run while an exception is in flight. A Python thread takes the events from
//! here, see `_events.py`; so does each call when it returns.

use super::finalizing::{ours, python_code};
use super::owner::is_main_thread;
use crate::engine::Entered;
use crate::process::ProcessLocal;
use crate::service::Callbacks;
use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

enum Event {
    Log(Level, String),
    Lost {
        callback: Py<PyAny>,
        lock: Py<PyAny>,
    },
    Expiring(Arc<(Py<PyAny>, Py<PyAny>)>, Entered),
}

/// Listeners to the events of a hold.
pub struct Listeners {
    /// The Lock that is passed to the callbacks.
    pub lock: Py<PyAny>,
    /// `on_lost`.
    pub lost: Option<Py<PyAny>>,
    /// `on_expiring`: how many seconds before the end of a term, and the callback for the level.
    pub expiring: Option<(f64, Py<PyAny>)>,
}

impl Listeners {
    /// Starts the thread that calls the listeners, if there are any.
    pub fn attend(&self, py: Python<'_>) -> PyResult<()> {
        if self.lost.is_some() || self.expiring.is_some() {
            attend(py)?;
        }
        Ok(())
    }

    /// The callbacks as the core calls them.
    pub fn callbacks(&self, py: Python<'_>) -> Callbacks {
        let lost = self.lost.as_ref().map(|callback| {
            let (callback, lock) = (callback.clone_ref(py), self.lock.clone_ref(py));
            let put = move || EVENTS.get().put(Event::Lost { callback, lock });
            Box::new(put) as Box<_>
        });
        let expiring = self.expiring.as_ref().map(|(before, callback)| {
            let parts = Arc::new((callback.clone_ref(py), self.lock.clone_ref(py)));
            let put = move |level| EVENTS.get().put(Event::Expiring(parts.clone(), level));
            (*before, Arc::new(put) as Arc<_>)
        });
        Callbacks { lost, expiring }
    }
}

#[derive(Default)]
struct Events {
    queue: Mutex<VecDeque<Event>>,
    arrived: Condvar,
    attended: AtomicBool,
}

/// How many events are queued, for a check that costs nothing. A forked child may inherit a count
/// that is too high; its first look into its own queue corrects it.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A log record that an operator should see was queued while no thread delivered events.
static NEWS: AtomicBool = AtomicBool::new(false);

static EVENTS: LazyLock<ProcessLocal<Events>> = LazyLock::new(ProcessLocal::default);

impl Events {
    /// Events beyond this are dropped: some thread logs in a loop and nobody reads it.
    const MOST: usize = 10_000;

    fn queue(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, event: Event) {
        let news = matches!(
            event,
            Event::Log(Level::Error | Level::Warn | Level::Info, _)
        );
        let mut queue = self.queue();
        if queue.len() < Events::MOST || !matches!(event, Event::Log(..)) {
            queue.push_back(event);
            WAITING.store(queue.len(), SeqCst);
        }
        drop(queue);
        if news && !self.attended.load(SeqCst) {
            NEWS.store(true, SeqCst);
        }
        self.arrived.notify_one();
    }

    /// Takes the first log record, or (`lost`) the first event of any kind.
    fn take(&self, lost: bool) -> Option<Event> {
        let mut queue = self.queue();
        let first = queue
            .iter()
            .position(|event| lost || matches!(event, Event::Log(..)));
        let event = first.and_then(|position| queue.remove(position));
        WAITING.store(queue.len(), SeqCst);
        event
    }

    /// Waits for an event, for at most a second.
    fn wait(&self) -> Option<Event> {
        let mut queue = self.queue();
        if queue.is_empty() {
            let waited = self.arrived.wait_timeout(queue, Duration::from_secs(1));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let event = queue.pop_front();
        WAITING.store(queue.len(), SeqCst);
        event
    }
}

struct Bridge;

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("_distlock")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            EVENTS
                .get()
                .put(Event::Log(record.level(), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Makes the thread look for work other than events.
pub fn wake() {
    EVENTS.get().arrived.notify_one();
}

/// Queues the core's log records for Python's `logging`.
pub fn install() {
    if log::set_logger(&Bridge).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// Starts the thread that delivers the events, unless it runs.
pub fn attend(py: Python<'_>) -> PyResult<()> {
    start(py)?
}

/// As [`attend`]. The outer error comes from a signal handler that ran meanwhile, the inner one says
/// that no thread can be started: `start_new_thread` is not Python code, so no handler runs in it.
///
/// The thread itself says that it runs (`_claim_events`): an interrupted caller does not know.
fn start(py: Python<'_>) -> PyResult<PyResult<()>> {
    if EVENTS.get().attended.load(SeqCst) {
        return Ok(Ok(()));
    }
    let (start_new_thread, work): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        ours(py, "_events", "thread", ())?.extract()?;
    let _running = python_code(py);
    Ok(start_new_thread.call1((work, PyTuple::empty(py))).map(drop))
}

/// Makes the calling thread the one that delivers the events; `False` if there is one.
#[pyfunction]
pub fn _claim_events() -> bool {
    !EVENTS.get().attended.swap(true, SeqCst)
}

/// Starts that thread if there is something to tell that the main thread may not deliver soon: it
/// is waiting, or does something else.
///
/// An error is one of a signal handler. If the thread cannot be started, the main thread delivers
/// later.
pub fn attend_news(py: Python<'_>) -> PyResult<()> {
    if !NEWS.load(SeqCst) || !NEWS.swap(false, SeqCst) || WAITING.load(SeqCst) == 0 {
        return Ok(());
    }
    start(py)
        .map(drop)
        .inspect_err(|_| NEWS.store(true, SeqCst))
}

/// Whether [`attend_news`] has something to do.
pub fn has_news() -> bool {
    NEWS.load(SeqCst)
}

/// A function of `_events.py` and its arguments.
type Parts = (&'static str, Py<PyAny>, Py<PyAny>);

/// The function of `_events.py` that delivers an event, and its arguments.
fn parts(py: Python<'_>, event: Event) -> PyResult<Parts> {
    Ok(match event {
        Event::Log(level, message) => {
            let level = match level {
                Level::Error => 40,
                Level::Warn => 30,
                Level::Info => 20,
                Level::Debug | Level::Trace => 10,
            };
            ("log", level.into_py_any(py)?, message.into_py_any(py)?)
        }
        Event::Lost { callback, lock } => ("lost", callback, (lock,).into_py_any(py)?),
        Event::Expiring(parts, level) => {
            let (callback, lock) = (parts.0.clone_ref(py), parts.1.clone_ref(py));
            let level = (level.hold.number(), level.level.number());
            ("expiring", callback, (lock, level).into_py_any(py)?)
        }
    })
}

fn deliver(py: Python<'_>, event: Event) -> PyResult<()> {
    let (function, first, second) = parts(py, event)?;
    ours(py, "_events", function, (first, second)).map(drop)
}

/// Delivers queued events on the main thread; elsewhere starts the thread that does, if a record is
/// urgent. Swallows a log handler's errors, as `logging` does, but propagates interrupts such as
/// Ctrl-C to the caller.
///
/// Leaves losses to their own thread, except during finalization (`lost`): an interrupt could come
/// before that thread has started.
pub fn deliver_all(py: Python<'_>, lost: bool) -> PyResult<()> {
    let waiting = WAITING.load(SeqCst);
    if waiting == 0 {
        return Ok(());
    }
    if !is_main_thread() {
        return attend_news(py);
    }
    let events = EVENTS.get();
    // No more than were queued: a handler may use locks itself.
    for _ in 0..waiting {
        let Some(event) = events.take(lost) else {
            return Ok(());
        };
        match deliver(py, event) {
            Err(error) if error.is_instance_of::<PyException>(py) => {
                error.write_unraisable(py, None);
            }
            delivered => delivered?,
        }
    }
    Ok(())
}

/// Waits for an event, for at most a second; returns the function that delivers it and its
/// arguments. The calling thread calls that function itself: during finalization Python ends a
/// daemon thread wherever it waits for the GIL, which must not happen beneath a Rust frame.
#[pyfunction]
pub fn _next_event(py: Python<'_>) -> PyResult<Option<Parts>> {
    let event = py.detach(|| EVENTS.get().wait());
    event.map(|event| parts(py, event)).transpose()
}

/// Delivers queued events.
#[pyfunction]
pub fn _deliver_all(py: Python<'_>) -> PyResult<()> {
    deliver_all(py, true)
}
