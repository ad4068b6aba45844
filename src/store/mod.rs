//! PostgreSQL: statements, connections, the pool and the table. No Python, no policy
//! about locks.

mod connect;
mod connection;
mod failure;
mod listener;
mod login;
mod lookout;
mod patience;
mod pool;
mod row;
mod schema;
mod socket;
pub mod sql;
mod statements;
pub mod tls;
mod url;
mod wire;

pub use connect::unsupported;
pub use failure::Failure;
pub use listener::{Call, Deaf, Listener};
pub use patience::{Check, Patience};
pub use pool::Settings;
pub use schema::schema_sql;
pub use statements::{Answer, Candidate, Look, Queue, Released, Renewed, Store, Turn};
pub use url::{Request, Url};
