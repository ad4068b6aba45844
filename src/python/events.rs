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
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What happened to a hold that has a callback for it.
enum Notice {
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
    /// Starts the threads that call the listeners, if there are any, and log why.
    pub fn attend(&self, py: Python<'_>) -> PyResult<()> {
        if self.lost.is_some() || self.expiring.is_some() {
            start(py, Topic::Notices)??;
            attend(py)?;
        }
        Ok(())
    }

    /// The callbacks as the core calls them.
    pub fn callbacks(&self, py: Python<'_>) -> Callbacks {
        let lost = self.lost.as_ref().map(|callback| {
            let (callback, lock) = (callback.clone_ref(py), self.lock.clone_ref(py));
            let put = move || EVENTS.get().notices.put(Notice::Lost { callback, lock });
            Box::new(put) as Box<_>
        });
        let expiring = self.expiring.as_ref().map(|(before, callback)| {
            let parts = Arc::new((callback.clone_ref(py), self.lock.clone_ref(py)));
            let put = move |level| {
                let notice = Notice::Expiring(parts.clone(), level);
                EVENTS.get().notices.put(notice);
            };
            (*before, Arc::new(put) as Arc<_>)
        });
        Callbacks { lost, expiring }
    }
}

/// Each topic has a thread of its own: a log handler may block, and a loss must be told all the same.
#[derive(Clone, Copy)]
enum Topic {
    /// Log records and measurements.
    Records,
    /// Calls of `on_lost` and `on_expiring`.
    Notices,
}

/// The events of one topic, and whether a thread takes them.
struct Queue<T> {
    events: Mutex<VecDeque<T>>,
    arrived: Condvar,
    attended: AtomicBool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue {
            events: Mutex::default(),
            arrived: Condvar::default(),
            attended: AtomicBool::default(),
        }
    }
}

impl<T> Queue<T> {
    fn events(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, event: T) {
        self.events().push_back(event);
        self.arrived.notify_one();
    }

    /// Takes no more events than are queued now: a handler may use locks itself.
    fn queued(&self) -> impl Iterator<Item = T> {
        let waiting = self.events().len();
        (0..waiting).map_while(|_| self.events().pop_front())
    }

    /// Waits for an event, for at most a second.
    fn wait(&self) -> Option<T> {
        let mut events = self.events();
        if events.is_empty() {
            let waited = self.arrived.wait_timeout(events, Duration::from_secs(1));
            events = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        events.pop_front()
    }
}

/// A log record.
struct Queued {
    level: Level,
    message: String,
    /// A signal handler has raised while it was delivered.
    again: bool,
}

#[derive(Default)]
struct Events {
    records: Queue<Queued>,
    notices: Queue<Notice>,
}

/// Whether log records are queued, for a check that costs nothing.
static RECORDS: AtomicBool = AtomicBool::new(false);

/// A log record that an operator should see was queued while no thread delivered records.
static NEWS: AtomicBool = AtomicBool::new(false);

/// Something is measured while no thread delivers measurements.
static MEASURED: AtomicBool = AtomicBool::new(false);

static EVENTS: LazyLock<ProcessLocal<Events>> = LazyLock::new(ProcessLocal::default);

impl Events {
    /// So many log records are no longer left to the main thread.
    const MANY: usize = 1_000;
    /// Debug records beyond this are dropped, and any beyond twice as many: some thread logs in a loop
    /// and nobody reads it, or a log handler is stuck.
    const MOST: usize = 10_000;

    fn log(&self, level: Level, message: String) {
        let urgent = level <= Level::Info;
        let queued = self.records.events().len();
        if queued < Events::MOST || urgent && queued < 2 * Events::MOST {
            let again = false;
            self.records.put(Queued {
                level,
                message,
                again,
            });
            RECORDS.store(true, SeqCst);
        }
        if (urgent || queued >= Events::MANY) && !self.attended(Topic::Records) {
            NEWS.store(true, SeqCst);
        }
    }

    fn attended(&self, topic: Topic) -> bool {
        self.thread(topic).load(SeqCst)
    }

    fn thread(&self, topic: Topic) -> &AtomicBool {
        match topic {
            Topic::Records => &self.records.attended,
            Topic::Notices => &self.notices.attended,
        }
    }
}

struct Bridge;

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("_distlock")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = record.args().to_string();
            EVENTS.get().log(record.level(), message);
        }
    }

    fn flush(&self) {}
}

/// Makes the thread look for measurements.
pub fn wake() {
    EVENTS.get().records.arrived.notify_one();
}

/// Something is being measured: the current or next call starts the thread that delivers it.
pub fn expect_measurements() {
    if !EVENTS.get().attended(Topic::Records) {
        MEASURED.store(true, SeqCst);
    }
}

/// Queues the core's log records for Python's `logging`.
pub fn install() {
    if log::set_logger(&Bridge).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// Starts the thread that delivers log records and measurements, unless it runs.
pub fn attend(py: Python<'_>) -> PyResult<()> {
    start(py, Topic::Records)?
}

/// Starts the thread of a topic, unless it runs. The outer error comes from a signal handler that ran
/// meanwhile, the inner one says that no thread can be started: `start_new_thread` is not Python
/// code, so no handler runs in it.
///
/// The thread itself says that it runs (`_claim_events`): an interrupted caller does not know.
fn start(py: Python<'_>, topic: Topic) -> PyResult<PyResult<()>> {
    if EVENTS.get().attended(topic) {
        return Ok(Ok(()));
    }
    let notices = matches!(topic, Topic::Notices);
    let (start_new_thread, work): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        ours(py, "_events", "thread", (notices,))?.extract()?;
    let _running = python_code(py);
    Ok(start_new_thread.call1((work, PyTuple::empty(py))).map(drop))
}

/// Starts the thread if there is something to tell that the main thread may not deliver soon: it is
/// waiting, or does something else. The main thread does not deliver measurements at all.
///
/// An error is one of a signal handler. If the thread cannot be started, the main thread delivers
/// later.
pub fn attend_news(py: Python<'_>) -> PyResult<()> {
    if !has_news() {
        return Ok(());
    }
    let measured = MEASURED.swap(false, SeqCst);
    let news = NEWS.swap(false, SeqCst) && RECORDS.load(SeqCst);
    if !measured && !news {
        return Ok(());
    }
    start(py, Topic::Records).map(drop).inspect_err(|_| {
        MEASURED.fetch_or(measured, SeqCst);
        NEWS.fetch_or(news, SeqCst);
    })
}

/// Whether [`attend_news`] has something to do.
pub fn has_news() -> bool {
    NEWS.load(SeqCst) || MEASURED.load(SeqCst)
}

/// A function of `_events.py` and its arguments.
type Parts = (&'static str, Py<PyAny>, Py<PyAny>);

fn record(py: Python<'_>, queued: &Queued) -> PyResult<Parts> {
    let level = match queued.level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug | Level::Trace => 10,
    };
    Ok((
        "log",
        level.into_py_any(py)?,
        queued.message.as_str().into_py_any(py)?,
    ))
}

fn notice(py: Python<'_>, notice: Notice) -> PyResult<Parts> {
    Ok(match notice {
        Notice::Lost { callback, lock } => ("lost", callback, (lock,).into_py_any(py)?),
        Notice::Expiring(parts, level) => {
            let (callback, lock) = (parts.0.clone_ref(py), parts.1.clone_ref(py));
            let level = (level.hold.number(), level.level.number());
            ("expiring", callback, (lock, level).into_py_any(py)?)
        }
    })
}

fn deliver(py: Python<'_>, (function, first, second): Parts) -> PyResult<()> {
    ours(py, "_events", function, (first, second)).map(drop)
}

/// Whether [`deliver_all`] may have something to do.
pub fn are_waiting() -> bool {
    RECORDS.load(SeqCst) || MEASURED.load(SeqCst)
}

/// Delivers queued log records on the main thread; elsewhere starts the thread that does, if a record
/// is urgent. Propagates what a signal handler raises meanwhile, but not a log handler's errors
/// (`_events.log`).
///
/// Leaves losses to their own thread, except during finalization (`_deliver_all`).
pub fn deliver_all(py: Python<'_>) -> PyResult<()> {
    let main = is_main_thread();
    if !main || MEASURED.load(SeqCst) {
        attend_news(py)?;
    }
    // Before looking: a record is queued first, then announced.
    if !main || !RECORDS.swap(false, SeqCst) {
        return Ok(());
    }
    let records = &EVENTS.get().records;
    for next in records.queued() {
        if let Err(error) = record(py, &next).and_then(|parts| deliver(py, parts)) {
            if !next.again {
                // Perhaps not every log handler has had it.
                let again = true;
                records.events().push_front(Queued { again, ..next });
            }
            RECORDS.store(true, SeqCst);
            return Err(error);
        }
    }
    Ok(())
}

/// Makes the calling thread the one that delivers log records, or notices; `False` if there is one.
#[pyfunction]
pub fn _claim_events(notices: bool) -> bool {
    let topic = if notices {
        Topic::Notices
    } else {
        Topic::Records
    };
    !EVENTS.get().thread(topic).swap(true, SeqCst)
}

/// Waits for an event, for at most a second; returns the function that delivers it and its
/// arguments. The calling thread calls that function itself: during finalization Python ends a
/// daemon thread wherever it waits for the GIL, which must not happen beneath a Rust frame.
#[pyfunction]
pub fn _next_event(py: Python<'_>, notices: bool) -> PyResult<Option<Parts>> {
    let events = EVENTS.get();
    if notices {
        let next = py.detach(|| events.notices.wait());
        next.map(|next| notice(py, next)).transpose()
    } else {
        let next = py.detach(|| events.records.wait());
        next.map(|next| record(py, &next)).transpose()
    }
}

/// Delivers queued log records, and notices: an interrupt could come before their thread has started.
#[pyfunction]
pub fn _deliver_all(py: Python<'_>) -> PyResult<()> {
    deliver_all(py)?;
    for next in EVENTS.get().notices.queued() {
        deliver(py, notice(py, next)?)?;
    }
    Ok(())
}
