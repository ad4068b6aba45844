//! PostgreSQL: statements, connections, the pool and the table. No Python, no policy
//! about locks.

mod connect;
mod connection;
mod listener;
mod lookout;
mod patience;
mod pool;
mod schema;
pub mod sql;
mod statements;
mod stream;
mod url;

pub use connection::Failure;
pub use listener::{Call, Deaf, Listener};
pub use patience::{Check, Patience};
pub use pool::Settings;
pub use schema::schema_sql;
pub use statements::{Answer, Candidate, Doubt, Look, Queue, Released, Store, Turn};
pub use url::Url;
