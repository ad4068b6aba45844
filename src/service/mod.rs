//! The locks at work: engine and store brought together, and the threads that they need.

mod acquisition;
mod confirmed;
mod insight;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod locks;
mod owed;
mod registry;
mod renewal;
mod threads;
mod waiters;
mod watch;
mod workers;

pub use acquisition::{Acquisition, Step, Wait, thread_wakeup};
pub use confirmed::Confirmed;
pub use locks::{Lock, Locks, Request};
pub use registry::{OnLost, registry};
pub use waiters::Wakeup;
pub use watch::{Attempted, Event, Observer, Report};

use crate::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;

/// No step under the mutexes of this module can fail half-way, so a panic elsewhere
/// spoils nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
