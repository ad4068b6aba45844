//! The parts of the crate `parking_lot` that `r2d2` and `scheduled-thread-pool` use, on top of the
//! standard library's mutexes.
//!
//! `parking_lot` keeps waiting threads in one table per process. A forked child inherits the
//! entries of threads that it does not have. The next thread it starts may get the memory of such
//! an entry, and become its own successor in a list: walking that list never ends. Seen in a child
//! that ended with `sys.exit`, once in a few thousand. The standard library's mutexes have no
//! table.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{self, PoisonError};
use std::time::Instant;

/// Like `parking_lot::Mutex`.
#[derive(Default)]
pub struct Mutex<T: ?Sized>(sync::Mutex<T>);

/// Like `parking_lot::MutexGuard`.
pub struct MutexGuard<'a, T: ?Sized>(Option<sync::MutexGuard<'a, T>>);

/// Like `parking_lot::Condvar`. Like it, and unlike the standard library's, it makes no system call
/// if nobody waits: `r2d2` notifies at the end of each use.
#[derive(Debug, Default)]
pub struct Condvar {
    condvar: sync::Condvar,
    /// How many threads wait. A notifier has locked the mutex since changing what they wait for, so
    /// it sees all that were waiting then.
    waiting: AtomicUsize,
}

/// Like `parking_lot::WaitTimeoutResult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Locks it, even after another thread has panicked.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Only a wait takes the guard out, and puts it back.
        self.0.as_ref().unwrap()
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // As above.
        self.0.as_mut().unwrap()
    }
}

impl Condvar {
    /// A new one, without waiters.
    #[must_use]
    pub const fn new() -> Condvar {
        Condvar {
            condvar: sync::Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Wakes one thread.
    pub fn notify_one(&self) {
        if self.waiting.load(Relaxed) > 0 {
            self.condvar.notify_one();
        }
    }

    /// Wakes all threads. Returns 0, as the standard library does not say how many.
    pub fn notify_all(&self) -> usize {
        if self.waiting.load(Relaxed) > 0 {
            self.condvar.notify_all();
        }
        0
    }

    /// Waits to be woken.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        if let Some(locked) = guard.0.take() {
            self.waiting.fetch_add(1, Relaxed);
            let waited = self.condvar.wait(locked);
            self.waiting.fetch_sub(1, Relaxed);
            guard.0 = Some(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Waits to be woken, but not beyond `until`.
    pub fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        until: Instant,
    ) -> WaitTimeoutResult {
        let left = until.saturating_duration_since(Instant::now());
        let Some(locked) = guard.0.take() else {
            return WaitTimeoutResult(true);
        };
        self.waiting.fetch_add(1, Relaxed);
        let waited = self.condvar.wait_timeout(locked, left);
        self.waiting.fetch_sub(1, Relaxed);
        let (locked, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        guard.0 = Some(locked);
        WaitTimeoutResult(waited.timed_out())
    }
}

impl WaitTimeoutResult {
    /// Whether the time ran out.
    #[must_use]
    pub fn timed_out(self) -> bool {
        self.0
    }
}
