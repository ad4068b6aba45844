//! Named, reentrant mutexes across processes and servers, as rows of one
//! PostgreSQL table. This file is the table of contents.
//!
//! The layers; each knows only those below it:
//!
//! * [`python`]: the extension module: converts, releases the GIL, calls, maps errors.
//! * [`service`]: the operations on locks, the waiters, automatic extension, owed releases, and the
//!   threads for them, started when needed.
//! * [`store`]: PostgreSQL: statements, connections, the pool, the table.
//! * [`engine`]: what a lock, a hold and a queue are. No SQL, no I/O.

// There the store is another one (`src/store/memory.rs`).
#![cfg_attr(all(test, feature = "shuttle"), allow(dead_code))]

pub mod engine;
pub mod error;
mod process;
pub mod service;
pub mod store;
mod sync;
mod zone;

#[cfg(feature = "python")]
pub mod python;
