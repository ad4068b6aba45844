//! Keeps sessions for the next call, like SQLAlchemy's `QueuePool`: `pool_size` stay open,
//! `max_overflow` more may be open while needed, and a caller that finds all in use waits for
//! `pool_timeout`.
//!
//! The caller opens the session in its place (`places.rs`), within its own limits, and gets the
//! error itself. After a fork the child does not touch its parent's pool and has its own.

use super::budget::Budget;
use super::connect::connect;
use super::failure::Failure;
use super::outage::Outage;
use super::places::{CANCELLING, Sessions, Taken};
use super::session::Session;
use super::settings::Settings;
use super::url::Url;
use crate::error::{Error, Result};
use crate::process::ProcessLocal;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A session used this recently is not checked.
const FRESH: Duration = Duration::from_millis(20);

/// The sessions of the process, made on first use, and again after they were closed.
#[derive(Default)]
struct Shared(Mutex<Option<Arc<Sessions>>>);

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Sessions>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool of one configuration.
pub struct Pool {
    url: Url,
    /// Its options.
    pub settings: Settings,
    shared: ProcessLocal<Shared>,
    /// A session was once opened, so the address is right.
    reached: AtomicBool,
    outage: Outage,
}

/// A session in use. It goes back to its pool when dropped.
pub struct Pooled {
    /// `None` only while it is being dropped.
    place: Option<Taken>,
    sessions: Arc<Sessions>,
    /// The session was opened for this use.
    opened: bool,
    /// The process that the pool belongs to.
    process: u32,
}

impl Pooled {
    fn session(&mut self) -> Option<&mut Session> {
        self.place.as_mut()?.session.as_deref_mut()
    }

    fn put(&mut self, session: Option<Session>) {
        if let Some(place) = &mut self.place {
            place.session = session.map(Box::new);
        }
    }

    /// Whether the session was opened for this use, and so is alive.
    pub fn is_fresh(&self) -> bool {
        self.opened
    }

    /// The session did not answer: others opened before may be dead, too.
    pub fn suspect(&self) {
        self.sessions.suspect();
    }

    /// Whether there is a session that looks alive.
    fn is_usable(&mut self, recycle: Option<Duration>) -> bool {
        let used = self.place.as_ref().and_then(|place| place.used);
        let sessions = self.sessions.clone();
        self.session().is_some_and(|session| {
            let young = recycle.is_none_or(|age| session.opened.elapsed() < age)
                && !sessions.is_doubted(session.opened);
            young && (used.is_some_and(|used| used.elapsed() < FRESH) || session.is_alive())
        })
    }
}

impl std::ops::Deref for Pooled {
    type Target = Session;

    fn deref(&self) -> &Session {
        let place = self.place.as_ref();
        // `Pool::take` hands out no place without one, and only `drop` takes it out.
        place.and_then(|place| place.session.as_ref()).unwrap()
    }
}

impl std::ops::DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Session {
        // As above.
        self.session().unwrap()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(mut place) = self.place.take() else {
            return;
        };
        if std::process::id() != self.process {
            // In a child forked in the meantime the pool may be locked for ever.
            place.session = None;
            std::mem::forget(place);
            return;
        }
        Sessions::give_back(&self.sessions, place);
    }
}

impl Pool {
    /// A pool without sessions.
    pub fn new(url: Url, settings: Settings) -> Pool {
        Pool {
            outage: Outage::new(settings.timeout),
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

    /// Opens a session that never enters the pool.
    pub fn connect(&self, budget: Budget) -> std::result::Result<Session, Failure> {
        let began = Instant::now();
        let connected = connect(&self.url, self.outage.admit(budget)?);
        let reason = match &connected {
            Ok(_) => {
                self.reached.store(true, Relaxed);
                self.answered();
                return connected;
            }
            Err(Failure::Broken(reason)) => reason,
            // A caller that had little time.
            Err(Failure::TimedOut) if !self.outage.is_shown_by(began.elapsed()) => {
                return connected;
            }
            Err(Failure::TimedOut) => "no answer in time",
            Err(_) => return connected,
        };
        if self.outage.failed(began, reason) && self.was_reached() {
            log::warn!("the database at {} cannot be reached: {reason}", self.url);
        }
        connected
    }

    /// The database has answered.
    pub fn answered(&self) {
        if let Some(duration) = self.outage.ended() {
            let seconds = duration.as_secs_f64();
            log::warn!("the database at {} is back after {seconds:.1} s", self.url);
        }
    }

    /// Whether it has been unreachable for so long that callers no longer wait.
    pub fn is_given_up(&self) -> bool {
        self.outage.is_given_up()
    }

    /// Whether a session was ever opened, here or in a parent process.
    pub fn was_reached(&self) -> bool {
        self.reached.load(Relaxed)
    }

    /// A session that looks alive; opens one if needed.
    pub fn take(&self, budget: Budget) -> std::result::Result<Pooled, Failure> {
        // Before each repetition, too: a forked child must not repeat anything.
        if std::process::id() != budget.process {
            return Err(Failure::Stopped(Error::Forked));
        }
        let shared = self.shared.of(budget.process);
        let mut slot = shared.slot();
        let sessions = match &*slot {
            Some(sessions) => sessions.clone(),
            None => {
                let made = Arc::new(Sessions::new(&self.url, &self.settings)?);
                slot.insert(made).clone()
            }
        };
        drop(slot);
        let Some(place) = sessions.take(budget)? else {
            let free = sessions.in_use() < self.settings.limit();
            return Err(if free {
                Failure::TimedOut
            } else {
                self.exhausted()
            });
        };
        // From here on `Drop` counts down, whatever happens.
        let mut pooled = Pooled {
            place: Some(place),
            sessions: sessions.clone(),
            opened: false,
            process: budget.process,
        };
        if !(pooled.is_usable(self.settings.recycle) && self.ping(&mut pooled, budget)?) {
            pooled.put(None);
            pooled.put(Some(self.connect(budget)?));
            sessions.note_opened();
            pooled.opened = true;
        }
        Ok(pooled)
    }

    /// Closes the sessions; those in use when they come back, for which it waits a while.
    pub fn close(&self, budget: Budget) -> Result<()> {
        let sessions = self.shared.of(budget.process).slot().take();
        let Some(sessions) = sessions else {
            return Ok(());
        };
        let pause = budget.at_most(CANCELLING);
        while sessions.in_use_elsewhere() > 0 && !pause.over() {
            pause.pause(Duration::from_millis(5))?;
        }
        Ok(())
    }

    fn exhausted(&self) -> Failure {
        Failure::Stopped(Error::Unavailable(format!(
            "all {} connections of the pool to {} were in use until the time was over: raise \
             sqlalchemy.pool_size or max_overflow, or sqlalchemy.pool_timeout ({} s), or the \
             timeout of the call",
            self.settings.limit(),
            self.url,
            self.settings.timeout.as_secs_f64(),
        )))
    }

    /// Whether the session is alive, if pings are configured.
    fn ping(&self, session: &mut Session, budget: Budget) -> std::result::Result<bool, Failure> {
        if !self.settings.pre_ping {
            return Ok(true);
        }
        match session.ping(budget) {
            // The session is not to blame.
            Err(Failure::Stopped(error)) => Err(Failure::Stopped(error)),
            answer => Ok(answer.is_ok()),
        }
    }
}

/// Converts a failure to an error of the core.
pub fn result<T>(outcome: std::result::Result<T, Failure>, pool: &Pool) -> Result<T> {
    outcome.map_err(|failure| {
        super::connect::explain(&pool.url, failure, pool.settings.timeout.as_secs_f64())
    })
}
