//! Named, reentrant mutexes across processes and servers, as rows of one
//! PostgreSQL table. This file is the table of contents.
//!
//! The layers, each of which knows only those below it:
//!
//! * [`python`]: the extension module: converts, releases the GIL, calls, maps errors.
//! * [`locks`]: the operations on locks: engine and store brought together.
//! * [`engine`]: what a lock is. No SQL, no I/O.
//! * [`store`]: PostgreSQL: statements, connections, the pool, the table.

pub mod engine;
pub mod error;
pub mod locks;
mod process;
pub mod store;
mod zone;

#[cfg(feature = "python")]
pub mod python;
