//! Places for sessions, managed by `r2d2`: how many there are, who uses one and who waits.
//!
//! Making a place is no work, so nothing fails or takes long on `r2d2`'s thread.

use super::budget::Budget;
use super::dial::line;
use super::failure::Failure;
use super::session::Session;
use super::settings::Settings;
use super::url::Url;
use crate::error::Error;
use r2d2::{ManageConnection, NopErrorHandler, PooledConnection};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How long sessions beyond `pool_size` stay open after one was needed. Opening and closing one
/// costs as much as ten calls, and slightly more callers than `pool_size` would do so all the time.
const OVERFLOW_STAYS: Duration = Duration::from_secs(1);

/// How long it may take to cancel an abandoned statement.
pub const CANCELLING: Duration = Duration::from_secs(5);

/// Room for a session.
pub struct Place {
    pub session: Option<Box<Session>>,
    /// When it was last used.
    pub used: Option<Instant>,
    /// Whether its session stays open for the next caller.
    stays: bool,
    /// Its user, or its last one.
    user: User,
}

/// The user of a place.
#[derive(Clone, Copy, PartialEq)]
enum User {
    /// A call, on this thread.
    Caller(ThreadId),
    /// A thread that cancels a call's abandoned statement.
    Cancelling,
}

impl User {
    fn caller() -> User {
        User::Caller(thread::current().id())
    }
}

/// A place that is in use.
pub type Taken = PooledConnection<Places>;

/// How `r2d2` makes places, and which it keeps.
#[derive(Debug)]
pub struct Places {
    /// How many callers wait for a place.
    waiting: Arc<AtomicUsize>,
    stay: bool,
}

impl ManageConnection for Places {
    type Connection = Place;
    type Error = Infallible;

    fn connect(&self) -> Result<Place, Infallible> {
        Ok(Place {
            session: None,
            used: None,
            stays: self.stay,
            user: User::caller(),
        })
    }

    fn is_valid(&self, _: &mut Place) -> Result<(), Infallible> {
        Ok(())
    }

    /// Discards an empty place, so that the next caller gets one with a session. If a caller waits,
    /// no session is idle, and it gets this place: `r2d2` wakes nobody when it discards one.
    fn has_broken(&self, place: &mut Place) -> bool {
        place.session.is_none() && self.waiting.load(Relaxed) == 0
    }
}

/// A number of places.
struct Room {
    places: r2d2::Pool<Places>,
    waiting: Arc<AtomicUsize>,
}

impl Room {
    fn new(size: usize, stay: bool, thread: &Arc<ScheduledThreadPool>) -> Room {
        let waiting = Arc::new(AtomicUsize::new(0));
        let manager = Places {
            waiting: waiting.clone(),
            stay,
        };
        let places = r2d2::Pool::builder()
            .max_size(u32::try_from(size).unwrap_or(u32::MAX))
            .min_idle(Some(0))
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            .error_handler(Box::new(NopErrorHandler))
            .thread_pool(thread.clone())
            .build_unchecked(manager);
        Room { places, waiting }
    }

    /// A place, if one becomes free in time.
    fn take(&self, budget: Budget) -> Result<Option<Taken>, Failure> {
        if let Some(place) = self.places.try_get() {
            return Ok(Some(place));
        }
        self.waiting.fetch_add(1, Relaxed);
        let place = loop {
            let Some(slice) = budget.slice() else {
                break Ok(None);
            };
            if let Ok(place) = self.places.get_timeout(slice) {
                break Ok(Some(place));
            }
            if let Err(error) = budget.check() {
                break Err(Failure::Stopped(error));
            }
        };
        self.waiting.fetch_sub(1, Relaxed);
        place
    }
}

/// The sessions of one process.
pub struct Sessions {
    url: Url,
    room: Room,
    /// One extra place for urgent work, which must not wait for others. Its session is closed after
    /// each use.
    reserve: Room,
    /// The users of the places in use.
    users: Mutex<Vec<User>>,
    /// How many sessions stay open.
    keep: usize,
    made: Instant,
    /// When more than `keep` were last needed at once, in milliseconds since `made`; 0 if no more
    /// than that are open.
    exceeded: AtomicU64,
    /// Sessions opened before this may be dead; in the same unit.
    doubted: AtomicU64,
}

impl Sessions {
    /// Places without sessions; an error if the system starts no thread for `r2d2`, which would panic.
    pub fn new(url: &Url, settings: &Settings) -> Result<Sessions, Failure> {
        thread::Builder::new().spawn(|| ()).map_err(|error| {
            let error = format!("no thread can be started for connections to {url}: {error}");
            Failure::Stopped(Error::Unavailable(error))
        })?;
        let thread = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("distlock-pool")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let thread = Arc::new(thread);
        Ok(Sessions {
            url: url.clone(),
            room: Room::new(settings.limit(), true, &thread),
            reserve: Room::new(1, false, &thread),
            users: Mutex::default(),
            keep: settings.keep(),
            made: Instant::now(),
            exceeded: AtomicU64::new(0),
            doubted: AtomicU64::new(0),
        })
    }

    fn users(&self) -> MutexGuard<'_, Vec<User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.users().len()
    }

    /// How many places other threads use. A place that this thread uses belongs to a call that a
    /// signal handler interrupted, and only comes back after the handler returns.
    pub fn in_use_elsewhere(&self) -> usize {
        let this = User::caller();
        self.users().iter().filter(|user| **user != this).count()
    }

    fn end_use(&self, user: User) {
        let mut users = self.users();
        if let Some(index) = users.iter().position(|other| *other == user) {
            users.swap_remove(index);
        }
    }

    /// A place, if one becomes free in time. It stays in use until [`Sessions::give_back`].
    pub fn take(&self, budget: Budget) -> Result<Option<Taken>, Failure> {
        let mut place = match self.room.places.try_get() {
            None if budget.urgent => self.reserve.take(budget)?,
            None => self.room.take(budget)?,
            place => place,
        };
        if let Some(place) = &mut place {
            place.user = User::caller();
            self.note_use(place.user);
        }
        Ok(place)
    }

    /// Notes that a place is in use. The first caller to find that the sessions beyond `keep` have
    /// not been needed for a while closes them.
    fn note_use(&self, user: User) {
        let before = {
            let mut users = self.users();
            users.push(user);
            users.len() - 1
        };
        if before >= self.keep {
            return self.exceeded.store(self.now(), Relaxed);
        }
        let exceeded = self.exceeded.load(Relaxed);
        if exceeded != 0
            && Duration::from_millis(self.now() - exceeded) > OVERFLOW_STAYS
            && self.exceeded.swap(0, Relaxed) == exceeded
        {
            self.trim();
        }
    }

    /// Notes that a session was opened. There may now be more than `keep`, even if fewer were
    /// needed at once.
    pub fn note_opened(&self) {
        if self.room.places.state().connections as usize > self.keep {
            self.exceeded.store(self.now(), Relaxed);
        }
    }

    /// Closes the least recently used idle sessions, until no more than `keep` are open. Also
    /// discards places without a session, of which `r2d2` makes a few too many.
    fn trim(&self) {
        let count = self.room.places.state().idle_connections as usize;
        let idle = std::iter::from_fn(|| self.room.places.try_get()).take(count);
        let idle: Vec<Taken> = idle.collect();
        let (mut kept, empty): (Vec<_>, Vec<_>) =
            idle.into_iter().partition(|place| place.session.is_some());
        let room = self.keep.saturating_sub(self.in_use());
        let surplus = kept.split_off(kept.len().min(room));
        // The most recently used come first, and should come first again.
        kept.into_iter().rev().for_each(drop);
        drop(empty);
        for mut place in surplus {
            place.session = None;
        }
    }

    /// Milliseconds since `made`, starting from 1.
    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// A session did not answer: the other open ones may be dead, too.
    pub fn suspect(&self) {
        self.doubted.store(self.now(), Relaxed);
    }

    /// Whether a session opened at that time may be dead.
    pub fn is_doubted(&self, opened: Instant) -> bool {
        opened < self.made + Duration::from_millis(self.doubted.load(Relaxed))
    }

    /// Takes a place back, with its session unless that has ended.
    pub fn give_back(sessions: &Arc<Sessions>, mut place: Taken) {
        match place.session.take() {
            Some(session) if session.is_unfinished() => {
                Sessions::cancel(sessions.clone(), place, session);
            }
            session => {
                place.session = session.filter(|session| place.stays && !session.is_broken());
                place.used = Some(Instant::now());
                sessions.end_use(place.user);
            }
        }
    }

    /// Has the server cancel the statement that a session abandoned, on a thread of its own. The
    /// place stays in use until that is done, so the server never has more sessions than there are
    /// places.
    fn cancel(sessions: Arc<Sessions>, place: Taken, mut session: Box<Session>) {
        sessions.users().push(User::Cancelling);
        sessions.end_use(place.user);
        let shared = sessions.clone();
        let work = move || {
            let budget = Budget::new(CANCELLING, &|| Ok(()));
            let line = line(&sessions.url, session.route.clone(), budget);
            if let Err(failure) = line.and_then(|line| session.cancel(line, budget)) {
                log::debug!("a statement could not be cancelled: {failure:?}");
            }
            drop(session);
            drop(place);
            sessions.end_use(User::Cancelling);
        };
        let thread = thread::Builder::new().name("distlock-cancel".to_owned());
        if let Err(error) = thread.spawn(work) {
            log::debug!("no thread to cancel a statement: {error}");
            shared.end_use(User::Cancelling);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::url::Request;
    use super::*;

    #[test]
    fn a_handler_waits_for_others_and_not_for_the_call_that_it_interrupts() {
        let url = Url::parse(&Request::new("postgresql://u@h/d")).unwrap();
        let sessions = Arc::new(Sessions::new(&url, &Settings::default()).unwrap());
        let budget = Budget::new(Duration::from_secs(60), &|| Ok(()));
        let place = sessions.take(budget).unwrap().unwrap();
        assert_eq!((sessions.in_use(), sessions.in_use_elsewhere()), (1, 0));
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(sessions.in_use_elsewhere(), 1));
        });
        // Whichever thread took it, and wherever it comes back.
        thread::scope(|scope| {
            scope.spawn(|| Sessions::give_back(&sessions, place));
        });
        assert_eq!(sessions.in_use(), 0);
    }
}
