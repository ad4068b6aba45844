//! What a lock is: names, tokens, leases, owners, holds, queues. No SQL and no Python.

mod hint;
mod hold;
mod late;
mod lease;
mod moment;
mod name;
mod owner;
mod plan;
mod queue;
mod token;
mod unresolved;

pub use hint::{Hint, Hints};
pub use hold::{
    Condition, Ending, Entered, Entry, Grant, Hold, HoldId, Holds, LevelId, LockId, Loss, Reported,
};
pub use late::{Due, Late, VALID, Watches};
pub use lease::{Deadline, Lease};
pub use moment::Moment;
pub use name::Name;
pub use owner::{Caller, Place};
pub use plan::{Ask, Outcome, Plan, Seen};
pub use queue::{Line, TICKET_BITS};
pub use token::Token;
pub use unresolved::{Attempt, Unresolved, Unsettled};
