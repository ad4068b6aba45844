//! Named, reentrant mutexes across processes and servers, as rows of one
//! PostgreSQL table. This file is the table of contents.
//!
//! The layers, each of which knows only those below it:
//!
//! * [`python`]: the extension module: converts, releases the GIL, calls, maps errors.
//! * [`acquisition`]: acquiring with patience: asks, queues up, sleeps, asks again.
//! * [`locks`]: the operations on locks: engine and store brought together.
//! * [`waiting`], [`extending`], [`background`]: who waits, what is kept alive,
//!   and the threads for it: none before they are needed.
//! * [`engine`]: what a lock is. No SQL, no I/O.
//! * [`store`]: PostgreSQL: statements, connections, the pool, the table.

pub mod acquisition;
pub mod background;
pub mod engine;
pub mod error;
pub mod extending;
pub mod locks;
mod process;
pub mod store;
pub mod waiting;
mod zone;

#[cfg(feature = "python")]
pub mod python;
