//! The statements on the table, one function each, by topic. Those on locks are safe to repeat.

mod acquire;
mod execute;
mod hold;
mod insight;
mod queue;
mod sweep;

pub use acquire::{Answer, Look};
pub use execute::Store;
pub use hold::{Released, Renewed};
pub use insight::{Ended, Record};
pub use queue::{Candidate, Queue, Turn};
