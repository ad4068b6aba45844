//! Synchronization and time: the standard library's. The tests of `make threads` substitute a
//! simulated world (`sync/simulated.rs`), in which shuttle decides which thread runs next.

#[cfg(all(test, feature = "shuttle"))]
pub mod simulated;

#[cfg(not(all(test, feature = "shuttle")))]
mod real {
    pub use std::process::id as process_id;
    pub use std::sync::{Condvar, Mutex, MutexGuard, atomic};
    pub use std::thread;
    pub use std::time::Instant;

    /// A random number.
    pub fn random(range: std::ops::Range<f64>) -> f64 {
        rand::RngExt::random_range(&mut rand::rng(), range)
    }
}

#[cfg(not(all(test, feature = "shuttle")))]
pub use real::*;
#[cfg(all(test, feature = "shuttle"))]
pub use simulated::{Condvar, Instant, Mutex, MutexGuard, atomic, process_id, random, thread};
