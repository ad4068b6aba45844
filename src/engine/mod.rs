//! The concepts: names, tokens, leases, owners, holds, queues. No SQL and no Python.

mod hint;
mod hold;
mod holds;
mod identity;
mod key;
mod late;
mod lease;
mod loss;
mod moment;
mod name;
mod owner;
mod plan;
mod queue;
mod token;
mod transfers;
mod unresolved;
mod warning;

pub use hint::{Hint, Hints};
use hold::Gone;
pub use hold::{Condition, Hold};
pub use holds::ending::Ending;
pub use holds::{Entry, Grant, Holds, Reported};
pub use identity::{Entered, HoldId, LevelId, LockId};
pub use key::{Key, Table};
pub use late::{Due, Late, VALID, Watches};
pub use lease::{Deadline, Lease};
pub use loss::Loss;
pub use moment::Moment;
pub use name::Name;
pub use owner::{Caller, Place};
pub use plan::{Ask, Outcome, Plan, Seen};
pub use queue::{Line, TICKET_BITS};
pub use token::Token;
pub use transfers::{Begin, Claim, Outcome as ReleaseOutcome, Transfers};
pub use unresolved::{Attempt, Unresolved, Unsettled};
pub use warning::Warning;
