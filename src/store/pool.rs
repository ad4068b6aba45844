//! Connections kept for the next call, as SQLAlchemy's `QueuePool` keeps them:
//! `pool_size` stay open, `max_overflow` more may be open while they are needed, and
//! who finds all of them in use waits for `pool_timeout`.
//!
//! There is no thread: the call that needs a connection opens it. After a fork
//! the child leaves its parent's pool alone and has one of its own.

use super::connect::connect;
use super::failure::Failure;
use super::patience::Patience;
use super::session::Session;
use super::url::Url;
use crate::error::{Error, Result};
use crate::process::ProcessLocal;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// The options `sqlalchemy.pool_*`, with SQLAlchemy's meaning and defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections that stay open; 0 is no limit.
    pub size: usize,
    /// Connections beyond `size` while all are in use; `None` is no limit.
    pub overflow: Option<usize>,
    /// How long one call may take in all: waiting for a connection, connecting,
    /// executing and repeating.
    pub timeout: Duration,
    /// Connections older than this are replaced.
    pub recycle: Option<Duration>,
    /// Ask the server for a sign of life before each use.
    pub pre_ping: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            size: 5,
            overflow: Some(10),
            timeout: Duration::from_secs(30),
            recycle: None,
            pre_ping: false,
        }
    }
}

#[derive(Default)]
struct Shelf {
    /// Open and unused, the latest used last.
    idle: Vec<Idle>,
    /// How many are open or being opened.
    open: usize,
    /// How many wait for one.
    waiting: usize,
    /// When more than `pool_size` were last in use at once.
    exceeded: Option<Instant>,
}

struct Idle {
    connection: Box<Session>,
    /// Who used it last: a thread and a server process that talk to each other
    /// again and again are kept close together by the operating system.
    user: ThreadId,
    since: Instant,
}

/// How long connections beyond `pool_size` stay open after one of them was needed. To open
/// and close one costs as much as ten calls, and callers who are a few more than `pool_size`
/// would do so all the time.
const OVERFLOW_STAYS: Duration = Duration::from_secs(1);

impl Shelf {
    /// Takes out what is beyond `keep` and not needed any more: the connections that were
    /// used the longest ago.
    fn surplus(&mut self, keep: usize) -> Vec<Idle> {
        let beyond = self.idle.len().saturating_sub(keep);
        let needed = |at: Instant| at.elapsed() < OVERFLOW_STAYS;
        if beyond == 0 || self.exceeded.is_some_and(needed) {
            return Vec::new();
        }
        self.open -= beyond;
        self.idle.drain(..beyond).collect()
    }

    /// Notes that one more is in use.
    fn note_use(&mut self, keep: usize) {
        if self.open - self.idle.len() > keep {
            self.exceeded = Some(Instant::now());
        }
    }

    fn take(&mut self) -> Option<Idle> {
        let me = thread::current().id();
        match self.idle.iter().rposition(|idle| idle.user == me) {
            Some(position) => Some(self.idle.remove(position)),
            None => self.idle.pop(),
        }
    }
}

/// What was used so short a time ago is not asked whether it is alive.
const FRESH: Duration = Duration::from_millis(20);

/// The connections of one process.
#[derive(Default)]
struct Shared {
    shelf: Mutex<Shelf>,
    returned: Condvar,
}

/// The pool of one configuration.
pub struct Pool {
    url: Url,
    /// Its options.
    pub settings: Settings,
    shared: ProcessLocal<Shared>,
    /// A connection could be opened once: the address is right.
    reached: AtomicBool,
}

/// A connection in use. It goes back to its pool when dropped.
pub struct Pooled {
    shared: Arc<Shared>,
    /// Whose the pool is.
    process: u32,
    keep: usize,
    connection: Option<Box<Session>>,
}

impl std::ops::Deref for Pooled {
    type Target = Session;

    fn deref(&self) -> &Session {
        // Only `drop` takes it out.
        self.connection.as_ref().unwrap()
    }
}

impl std::ops::DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Session {
        // Only `drop` takes it out.
        self.connection.as_mut().unwrap()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let connection = self
            .connection
            .take()
            .filter(|connection| !connection.is_broken());
        if connection.is_none() && std::process::id() != self.process {
            // In a child forked meanwhile: the shelf may be locked for ever.
            return;
        }
        let mut shelf = lock(&self.shared);
        match connection {
            Some(connection) => shelf.idle.push(Idle {
                connection,
                user: thread::current().id(),
                since: Instant::now(),
            }),
            None => shelf.open -= 1,
        }
        // Closed when this returns, after the mutex is free.
        let _surplus = shelf.surplus(self.keep);
        let waiting = shelf.waiting > 0;
        drop(shelf);
        if waiting {
            self.shared.returned.notify_one();
        }
    }
}

/// A panic elsewhere leaves the shelf consistent: no step on it can fail half-way.
fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Shelf> {
    shared.shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool without connections.
    pub fn new(url: Url, settings: Settings) -> Pool {
        Pool {
            url,
            settings,
            shared: ProcessLocal::default(),
            reached: AtomicBool::new(false),
        }
    }

    /// Where the pool connects to.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Opens a connection that never enters the pool.
    pub fn connect(&self, patience: Patience) -> std::result::Result<Session, Failure> {
        let connection = connect(&self.url, patience)?;
        self.reached.store(true, Relaxed);
        Ok(connection)
    }

    /// Whether a connection was ever opened, here or in a parent process.
    pub fn was_reached(&self) -> bool {
        self.reached.load(Relaxed)
    }

    /// A connection that looks alive; opens one if need be.
    pub fn take(&self, patience: Patience) -> std::result::Result<Pooled, Failure> {
        // Also before each repetition: nothing is done twice in a forked child.
        if std::process::id() != patience.process {
            return Err(Failure::Stopped(Error::Forked));
        }
        let shared = self.shared.of(patience.process);
        let keep = if self.settings.size == 0 {
            usize::MAX
        } else {
            self.settings.size
        };
        let limit = self
            .settings
            .overflow
            .map_or(usize::MAX, |overflow| keep.saturating_add(overflow));
        let mut shelf = lock(&shared);
        loop {
            if let Some(idle) = shelf.take() {
                shelf.note_use(keep);
                drop(shelf);
                let mut pooled = Pooled {
                    shared: shared.clone(),
                    process: patience.process,
                    keep,
                    connection: Some(idle.connection),
                };
                let recycle = self.settings.recycle;
                let fresh = recycle.is_none_or(|age| pooled.opened.elapsed() < age);
                let alive = idle.since.elapsed() < FRESH || pooled.is_alive();
                if fresh && alive && self.ping(&mut pooled, patience)? {
                    return Ok(pooled);
                }
                // Out with it, and look again.
                pooled.retire();
                drop(pooled);
                shelf = lock(&shared);
                continue;
            }
            if shelf.open < limit {
                shelf.open += 1;
                shelf.note_use(keep);
                break;
            }
            let slice = patience
                .slice()
                .ok_or(Failure::Stopped(Error::Unavailable(format!(
                    "all {limit} connections of the pool to {} were in use for {} s: \
                     raise sqlalchemy.pool_size or max_overflow, or sqlalchemy.pool_timeout",
                    self.url,
                    self.settings.timeout.as_secs_f64(),
                ))))?;
            shelf.waiting += 1;
            let (mut woken, _) = shared
                .returned
                .wait_timeout(shelf, slice)
                .unwrap_or_else(PoisonError::into_inner);
            woken.waiting -= 1;
            drop(woken);
            // Not under the mutex: asking may have to wait for the GIL.
            if let Err(error) = patience.check() {
                // The wake-up may have been meant for us: pass it on.
                shared.returned.notify_one();
                return Err(Failure::Stopped(error));
            }
            shelf = lock(&shared);
        }
        drop(shelf);
        // From here on `Drop` counts down, whatever happens.
        let mut pooled = Pooled {
            shared,
            process: patience.process,
            keep,
            connection: None,
        };
        pooled.connection = Some(Box::new(self.connect(patience)?));
        Ok(pooled)
    }

    /// Whether the connection is alive, if that is to be asked.
    fn ping(
        &self,
        connection: &mut Session,
        patience: Patience,
    ) -> std::result::Result<bool, Failure> {
        if !self.settings.pre_ping {
            return Ok(true);
        }
        match connection.batch("", patience) {
            // The connection is not to blame.
            Err(Failure::Stopped(error)) => Err(Failure::Stopped(error)),
            answer => Ok(answer.is_ok()),
        }
    }
}

/// An error that `Result` of the core can carry.
pub fn result<T>(outcome: std::result::Result<T, Failure>, pool: &Pool) -> Result<T> {
    outcome.map_err(|failure| {
        super::connect::explain(&pool.url, failure, pool.settings.timeout.as_secs_f64())
    })
}
