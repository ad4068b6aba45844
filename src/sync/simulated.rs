//! A simulated world for tests: one thread runs at a time, shuttle chooses which, and at every
//! mutex, condition variable, atomic and process id it may switch to another.
//!
//! Shuttle knows neither time nor processes. Its `wait_timeout` never ends by itself, so our
//! condition variables use its `park`, and a separate thread, the clock, advances the time to the
//! end of the earliest wait. [`Pace`] says when. A fork stops all threads but the one that forked,
//! wherever they are, as they stay in the child's memory.

mod explore;

pub use explore::explore;

use shuttle::current;
use shuttle::rand::{Rng, thread_rng};
use std::cell::RefCell;
use std::ops::{Add, AddAssign, Deref, DerefMut, Range, Sub};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, LockResult, TryLockError, TryLockResult};
use std::time::Duration;

pub use shuttle::sync::atomic;

/// When the clock advances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// When all threads sleep: execution takes no time.
    Idle,
    /// At any moment, too: a thread may be paused for as long as another one sleeps.
    Any,
}

/// What shuttle does not model, for the current execution.
struct World {
    now: Duration,
    sleepers: Vec<Arc<Sleeper>>,
    process: u32,
    /// After a fork: the thread that the child has, and the first that it starts.
    child: Option<(usize, usize)>,
    /// Only the clock can run.
    idle: bool,
    /// The clock is waking sleepers; nobody else runs before it has woken all that are due.
    waking: bool,
    /// The execution should end.
    over: bool,
}

/// Process ids that no execution had before: some state of the product is static.
static PROCESSES: AtomicU32 = AtomicU32::new(1_000_000);

impl World {
    fn new() -> World {
        World {
            // Far enough from zero to subtract from.
            now: Duration::from_secs(1_000_000),
            sleepers: Vec::new(),
            process: PROCESSES.fetch_add(1, SeqCst),
            child: None,
            idle: false,
            waking: false,
            over: false,
        }
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fn world<T>(work: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(work)
}

/// A point at which another thread may run.
pub fn step() {
    shuttle::thread::yield_now();
}

/// The calling thread's process.
pub fn process_id() -> u32 {
    world(|world| world.process)
}

/// From now on the calling thread is the only one, in a child.
pub fn fork() {
    // Threads are numbered in starting order.
    let next = shuttle::thread::spawn(|| {}).thread().id().into();
    world(|world| {
        world.process = PROCESSES.fetch_add(1, SeqCst);
        world.child = Some((current::me().into(), next));
    });
}

/// Whether there was a fork.
pub fn is_forked() -> bool {
    world(|world| world.child.is_some())
}

/// Ends the execution: threads stopped by a fork never end.
pub fn exit() {
    world(|world| world.over = true);
    step();
}

/// A random number, which shuttle repeats along with the schedule.
pub fn random(range: Range<f64>) -> f64 {
    thread_rng().gen_range(range)
}

/// `true` once in `times`, on average.
pub fn once_in(times: u32) -> bool {
    thread_rng().gen_range(0..times) == 0
}

/// The time since the clock started. Asking takes a moment.
pub fn now() -> Duration {
    world(|world| {
        world.now += Duration::from_micros(1);
        world.now
    })
}

/// Like `std::time::Instant`, as far as we use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    pub fn now() -> Instant {
        Instant(now())
    }

    pub fn checked_add(self, time: Duration) -> Option<Instant> {
        self.0.checked_add(time).map(Instant)
    }

    pub fn checked_sub(self, time: Duration) -> Option<Instant> {
        self.0.checked_sub(time).map(Instant)
    }

    pub fn saturating_duration_since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub fn elapsed(self) -> Duration {
        Instant::now().saturating_duration_since(self)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, time: Duration) -> Instant {
        Instant(self.0 + time)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, time: Duration) {
        self.0 += time;
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// A thread that sleeps, or is about to, until it is woken or its time is up.
pub struct Sleeper {
    until: Duration,
    state: AtomicU8,
    thread: shuttle::thread::Thread,
}

const ASLEEP: u8 = 0;
const WOKEN: u8 = 1;
const TIMED_OUT: u8 = 2;

impl Sleeper {
    /// A sleeper for the calling thread. From here on it can be woken.
    pub fn new(timeout: Duration) -> Arc<Sleeper> {
        let sleeper = Arc::new(Sleeper {
            until: now().saturating_add(timeout),
            state: AtomicU8::new(ASLEEP),
            thread: shuttle::thread::current(),
        });
        world(|world| world.sleepers.push(sleeper.clone()));
        sleeper
    }

    /// Sleeps; returns whether the time ran out.
    pub fn sleep(&self) -> bool {
        while self.state.load(SeqCst) == ASLEEP {
            shuttle::thread::park();
        }
        world(|world| {
            world
                .sleepers
                .retain(|other| !std::ptr::eq(&raw const **other, self));
        });
        self.state.load(SeqCst) == TIMED_OUT
    }

    fn is_asleep(&self) -> bool {
        self.state.load(SeqCst) == ASLEEP
    }

    fn end(&self, how: u8) {
        if self.is_asleep() {
            self.state.store(how, SeqCst);
            self.thread.unpark();
        }
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        self.end(WOKEN);
    }
}

/// The clock's loop: whenever it runs, time passes until some sleep ends. It stops when no other
/// thread is left, so a thread that stays for ever fails the test.
fn tick() -> bool {
    let over = world(|world| {
        let asleep = world.sleepers.iter().filter(|sleeper| sleeper.is_asleep());
        // Sleeps that end within a millisecond or two end together, in any order.
        let latest = asleep.clone().map(|sleeper| sleeper.until).min()? + Duration::from_millis(2);
        let over: Vec<_> = asleep
            .filter(|sleeper| sleeper.until <= latest)
            .cloned()
            .collect();
        let until = over.iter().map(|sleeper| sleeper.until).max()?;
        world.now = world.now.max(until);
        Some(over)
    });
    match over {
        Some(over) => {
            world(|world| world.waking = true);
            for sleeper in over {
                sleeper.end(TIMED_OUT);
            }
            world(|world| world.waking = false);
        }
        // Shuttle reports deadlocks.
        None if world(|world| world.idle) => return false,
        None => {}
    }
    step();
    true
}

/// Like `std::sync::Mutex`, without poisoning: a panic ends the test. A child must not lock one
/// that its parent has used, as it may be locked for ever.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    mutex: shuttle::sync::Mutex<T>,
    /// The process that last locked it; 0 means none yet.
    process: AtomicU32,
}

/// Like `std::sync::MutexGuard`. A condition variable locks the mutex again.
pub struct MutexGuard<'a, T> {
    guard: shuttle::sync::MutexGuard<'a, T>,
    mutex: &'a Mutex<T>,
}

#[allow(clippy::unnecessary_wraps)] // as there
impl<T> Mutex<T> {
    pub const fn new(value: T) -> Mutex<T> {
        Mutex {
            mutex: shuttle::sync::Mutex::new(value),
            process: AtomicU32::new(0),
        }
    }

    fn check_process(&self) {
        let process = world(|world| world.process);
        let before = self.process.swap(process, SeqCst);
        assert!(
            before == 0 || before == process,
            "a child locks a mutex of its parent's"
        );
    }

    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.check_process();
        let guard = self.mutex.lock().unwrap();
        Ok(MutexGuard { guard, mutex: self })
    }

    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        self.check_process();
        let guard = self
            .mutex
            .try_lock()
            .map_err(|_| TryLockError::WouldBlock)?;
        Ok(MutexGuard { guard, mutex: self })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Like `std::sync::Condvar`. Which of several threads it wakes is random, and there are occasional
/// spurious wakeups.
#[derive(Default)]
pub struct Condvar(std::sync::Mutex<Vec<Arc<Sleeper>>>);

/// Like `std::sync::WaitTimeoutResult`.
#[derive(Clone, Copy, Debug)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(self) -> bool {
        self.0
    }
}

#[allow(clippy::unnecessary_wraps)] // as there
impl Condvar {
    pub const fn new() -> Condvar {
        Condvar(std::sync::Mutex::new(Vec::new()))
    }

    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let mutex = guard.mutex;
        let for_no_reason = once_in(32);
        let sleeper = Sleeper::new(timeout);
        self.0.lock().unwrap().push(sleeper.clone());
        drop(guard);
        if for_no_reason {
            sleeper.wake();
        }
        let timed_out = WaitTimeoutResult(sleeper.sleep());
        self.0
            .lock()
            .unwrap()
            .retain(|other| !Arc::ptr_eq(other, &sleeper));
        Ok((mutex.lock().unwrap(), timed_out))
    }

    pub fn notify_one(&self) {
        step();
        let mut sleepers = self.0.lock().unwrap();
        sleepers.retain(|sleeper| sleeper.is_asleep());
        let chosen = thread_rng().gen_range(0..sleepers.len().max(1));
        let one = (!sleepers.is_empty()).then(|| sleepers.swap_remove(chosen));
        drop(sleepers);
        if let Some(one) = one {
            one.wake();
        }
    }

    pub fn notify_all(&self) {
        step();
        let sleepers = std::mem::take(&mut *self.0.lock().unwrap());
        for sleeper in sleepers {
            sleeper.wake();
        }
    }
}

/// Like `std::thread`.
pub mod thread {
    pub use shuttle::thread::{Builder, JoinHandle, ThreadId, current, spawn};

    /// Sleeps for this long.
    pub fn sleep(time: std::time::Duration) {
        super::Sleeper::new(time).sleep();
    }
}
