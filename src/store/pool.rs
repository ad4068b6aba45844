//! Sessions kept for the next call, as SQLAlchemy's `QueuePool` keeps them: `pool_size` stay
//! open, `max_overflow` more may be open while they are needed, and who finds all of them in
//! use waits for `pool_timeout`.
//!
//! `r2d2` manages places for sessions: how many there are, who has one and who waits. To
//! make a place is no work, so nothing fails or takes long on its thread. The caller opens
//! the session in its place, with its own limits, and gets the error itself. After a fork the
//! child leaves its parent's pool alone and has one of its own.

use super::connect::{connect, line};
use super::failure::Failure;
use super::patience::Patience;
use super::session::Session;
use super::url::Url;
use crate::error::{Error, Result};
use crate::process::ProcessLocal;
use r2d2::{ManageConnection, NopErrorHandler, PooledConnection};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;
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

impl Settings {
    /// How many sessions stay open.
    fn keep(&self) -> usize {
        if self.size == 0 { UNLIMITED } else { self.size }
    }

    /// How many there may be at once.
    fn limit(&self) -> usize {
        let beyond = self.overflow.unwrap_or(UNLIMITED);
        self.keep().saturating_add(beyond).min(UNLIMITED)
    }
}

/// What was used so short a time ago is not asked whether it is alive.
const FRESH: Duration = Duration::from_millis(20);

/// How long sessions beyond `pool_size` stay open after one of them was needed. To open
/// and close one costs as much as ten calls, and callers who are a few more than `pool_size`
/// would do so all the time.
const OVERFLOW_STAYS: Duration = Duration::from_secs(1);

/// No limit: more than a PostgreSQL serves. `r2d2` reserves memory for all of them.
const UNLIMITED: usize = 16_384;

/// Where a session may be.
#[derive(Default)]
struct Place {
    session: Option<Box<Session>>,
    /// When it was used last.
    used: Option<Instant>,
}

/// How `r2d2` makes places, and which ones it keeps.
#[derive(Debug)]
struct Places {
    /// How many callers wait for one.
    waiting: Arc<AtomicUsize>,
}

impl ManageConnection for Places {
    type Connection = Place;
    type Error = Infallible;

    fn connect(&self) -> std::result::Result<Place, Infallible> {
        Ok(Place::default())
    }

    fn is_valid(&self, _: &mut Place) -> std::result::Result<(), Infallible> {
        Ok(())
    }

    /// An empty place goes, so that the next caller gets one with a session. If somebody waits
    /// there is none, and it is given to them: `r2d2` does not wake them for a place that goes.
    fn has_broken(&self, place: &mut Place) -> bool {
        place.session.is_none() && self.waiting.load(Relaxed) == 0
    }
}

/// How long it may take to cancel a statement that was given up.
const CANCELLING: Duration = Duration::from_secs(5);

/// The sessions of one process.
struct Sessions {
    url: Url,
    places: r2d2::Pool<Places>,
    waiting: Arc<AtomicUsize>,
    in_use: AtomicUsize,
    /// How many stay open.
    keep: usize,
    timer: Arc<ScheduledThreadPool>,
    /// The timer is going to close what is beyond `keep`.
    scheduled: AtomicBool,
    made: Instant,
    /// When more than `keep` were last needed at once, in milliseconds since `made`.
    exceeded: AtomicU64,
    /// What was opened before may lead nowhere, likewise.
    doubted: AtomicU64,
}

impl Sessions {
    fn new(url: &Url, settings: &Settings) -> Sessions {
        let waiting = Arc::new(AtomicUsize::new(0));
        let timer = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("distlock-pool")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let timer = Arc::new(timer);
        let places = r2d2::Pool::builder()
            .max_size(u32::try_from(settings.limit()).unwrap_or(u32::MAX))
            .min_idle(Some(0))
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            .error_handler(Box::new(NopErrorHandler))
            .thread_pool(timer.clone())
            .build_unchecked(Places {
                waiting: waiting.clone(),
            });
        Sessions {
            url: url.clone(),
            places,
            waiting,
            in_use: AtomicUsize::new(0),
            keep: settings.keep(),
            timer,
            scheduled: AtomicBool::new(false),
            made: Instant::now(),
            exceeded: AtomicU64::new(0),
            doubted: AtomicU64::new(0),
        }
    }

    /// A place, if one becomes free in time.
    fn place(
        &self,
        patience: Patience,
    ) -> std::result::Result<Option<PooledConnection<Places>>, Failure> {
        if let Some(place) = self.places.try_get() {
            return Ok(Some(place));
        }
        self.waiting.fetch_add(1, Relaxed);
        let place = loop {
            let Some(slice) = patience.slice() else {
                break Ok(None);
            };
            if let Ok(place) = self.places.get_timeout(slice) {
                break Ok(Some(place));
            }
            if let Err(error) = patience.check() {
                break Err(Failure::Stopped(error));
            }
        };
        self.waiting.fetch_sub(1, Relaxed);
        place
    }

    /// Notes that a place is in use.
    fn note_use(self: &Arc<Sessions>) {
        if self.in_use.fetch_add(1, Relaxed) >= self.keep {
            self.exceeded.store(self.now(), Relaxed);
            if !self.scheduled.swap(true, Relaxed) {
                self.trim_after(OVERFLOW_STAYS);
            }
        }
    }

    /// Has the server give up what a session that was given up still does there, on a thread
    /// of its own. Until that is done the place is in use, so there are never more sessions on
    /// the server than places.
    fn cancel(sessions: Arc<Sessions>, place: PooledConnection<Places>, mut session: Box<Session>) {
        let shared = sessions.clone();
        let work = move || {
            let patience = Patience::new(CANCELLING, &|| Ok(()));
            let line = line(&sessions.url, session.route.clone(), patience);
            if let Err(failure) = line.and_then(|line| session.cancel(line, patience)) {
                log::debug!("a statement could not be cancelled: {failure:?}");
            }
            drop(session);
            drop(place);
            sessions.in_use.fetch_sub(1, Relaxed);
        };
        let thread = thread::Builder::new().name("distlock-cancel".to_owned());
        if let Err(error) = thread.spawn(work) {
            log::debug!("no thread to cancel a statement: {error}");
            shared.in_use.fetch_sub(1, Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn trim_after(self: &Arc<Sessions>, delay: Duration) {
        let sessions = Arc::downgrade(self);
        self.timer.execute_after(delay, move || {
            if let Some(sessions) = sessions.upgrade() {
                sessions.trim();
            }
        });
    }

    /// Closes sessions beyond `keep` that nobody needs: those that were used the longest ago.
    /// It runs on the thread that makes places, so nobody gets an empty one meanwhile.
    fn trim(self: &Arc<Sessions>) {
        let unneeded = self.now().saturating_sub(self.exceeded.load(Relaxed));
        let still = OVERFLOW_STAYS.saturating_sub(Duration::from_millis(unneeded));
        if !still.is_zero() {
            return self.trim_after(still);
        }
        self.scheduled.store(false, Relaxed);
        // The latest used come first, and are to come first again.
        let idle: Vec<_> = std::iter::from_fn(|| self.places.try_get()).collect();
        let in_use = self.in_use.load(Relaxed);
        let keep = self.keep.saturating_sub(in_use);
        for (position, mut place) in idle.into_iter().enumerate().rev() {
            if position >= keep {
                place.session = None;
            }
        }
        if in_use > self.keep && !self.scheduled.swap(true, Relaxed) {
            self.trim_after(OVERFLOW_STAYS);
        }
    }
}

/// The sessions of the process, made at the first use.
#[derive(Default)]
struct Shared(OnceLock<Arc<Sessions>>);

/// The pool of one configuration.
pub struct Pool {
    url: Url,
    /// Its options.
    pub settings: Settings,
    shared: ProcessLocal<Shared>,
    /// A session could be opened once: the address is right.
    reached: AtomicBool,
}

/// A session in use. It goes back to its pool when dropped.
pub struct Pooled {
    /// `None` only while it is being dropped.
    place: Option<PooledConnection<Places>>,
    sessions: Arc<Sessions>,
    /// It was opened for this call.
    fresh: bool,
    /// Whose the pool is.
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

    /// Whether the session was opened for this call, so that it leads somewhere.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether there is a session that looks alive.
    fn is_usable(&mut self, recycle: Option<Duration>) -> bool {
        let used = self.place.as_ref().and_then(|place| place.used);
        let doubted = Duration::from_millis(self.sessions.doubted.load(Relaxed));
        let doubted = self.sessions.made + doubted;
        self.session().is_some_and(|session| {
            let young = recycle.is_none_or(|age| session.opened.elapsed() < age)
                && session.opened >= doubted;
            young && (used.is_some_and(|used| used.elapsed() < FRESH) || session.is_alive())
        })
    }
}

impl std::ops::Deref for Pooled {
    type Target = Session;

    fn deref(&self) -> &Session {
        let place = self.place.as_ref();
        // `Pool::take` hands out no other, and only `drop` takes it out.
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
            // In a child forked meanwhile: the pool may be locked for ever.
            place.session = None;
            std::mem::forget(place);
            return;
        }
        match place.session.take() {
            Some(session) if session.is_unfinished() => {
                Sessions::cancel(self.sessions.clone(), place, session);
            }
            session => {
                place.session = session.filter(|session| !session.is_broken());
                place.used = Some(Instant::now());
                self.sessions.in_use.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl Pool {
    /// A pool without sessions.
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

    /// Opens a session that never enters the pool.
    pub fn connect(&self, patience: Patience) -> std::result::Result<Session, Failure> {
        let session = connect(&self.url, patience)?;
        self.reached.store(true, Relaxed);
        Ok(session)
    }

    /// Whether a session was ever opened, here or in a parent process.
    pub fn was_reached(&self) -> bool {
        self.reached.load(Relaxed)
    }

    /// A session has given no answer: the others may lead nowhere either.
    pub fn doubt(&self, patience: Patience) {
        if let Some(sessions) = self.shared.of(patience.process).0.get() {
            sessions.doubted.store(sessions.now(), Relaxed);
        }
    }

    /// A session that looks alive; opens one if need be.
    pub fn take(&self, patience: Patience) -> std::result::Result<Pooled, Failure> {
        // Also before each repetition: nothing is done twice in a forked child.
        if std::process::id() != patience.process {
            return Err(Failure::Stopped(Error::Forked));
        }
        let shared = self.shared.of(patience.process);
        let sessions = shared
            .0
            .get_or_init(|| Arc::new(Sessions::new(&self.url, &self.settings)));
        let Some(place) = sessions.place(patience)? else {
            let free = sessions.in_use.load(Relaxed) < self.settings.limit();
            return Err(if free {
                Failure::TooSlow
            } else {
                self.exhausted()
            });
        };
        sessions.note_use();
        // From here on `Drop` counts down, whatever happens.
        let mut pooled = Pooled {
            place: Some(place),
            sessions: sessions.clone(),
            fresh: false,
            process: patience.process,
        };
        if !(pooled.is_usable(self.settings.recycle) && self.ping(&mut pooled, patience)?) {
            pooled.put(None);
            pooled.put(Some(self.connect(patience)?));
            pooled.fresh = true;
        }
        Ok(pooled)
    }

    fn exhausted(&self) -> Failure {
        Failure::Stopped(Error::Unavailable(format!(
            "all {} connections of the pool to {} were in use for {} s: \
             raise sqlalchemy.pool_size or max_overflow, or sqlalchemy.pool_timeout",
            self.settings.limit(),
            self.url,
            self.settings.timeout.as_secs_f64(),
        )))
    }

    /// Whether the session is alive, if that is to be asked.
    fn ping(
        &self,
        session: &mut Session,
        patience: Patience,
    ) -> std::result::Result<bool, Failure> {
        if !self.settings.pre_ping {
            return Ok(true);
        }
        match session.ping(patience) {
            // The session is not to blame.
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
