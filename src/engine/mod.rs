//! What a lock is: names, tokens, leases, owners, holds. No SQL and no Python.

mod hold;
mod lease;
mod name;
mod owner;
mod token;
mod trace;

pub use hold::{Ending, Entry, Hold, Holds};
pub use lease::{Deadline, Lease};
pub use name::Name;
pub use owner::Owner;
pub use token::Token;
pub use trace::{Trace, Traces};
