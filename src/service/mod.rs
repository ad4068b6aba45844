//! Combines engine and store into the operations on locks, and runs the background threads.

mod acquisition;
mod confirmed;
mod ending;
mod extending;
mod granting;
mod held;
mod insight;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod lock;
mod locks;
mod owed;
mod registry;
mod releasing;
mod renewal;
mod shared_transfers;
mod threads;
mod transferring;
mod wait;
mod waiters;
mod wakeup;
mod watch;
mod workers;

pub use acquisition::{Acquisition, Step};
pub use confirmed::Confirmed;
pub use ending::End;
pub use granting::Request;
pub use lock::Lock;
pub use locks::Locks;
pub use registry::{Callbacks, registry};
pub use transferring::Transfer;
pub use wait::Wait;
pub use wakeup::Wakeup;
pub use watch::{Attempted, Event, Observer, Report};

use crate::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;

/// No critical section of this module's mutexes can fail half-way, so a panic elsewhere leaves the
/// data intact.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
