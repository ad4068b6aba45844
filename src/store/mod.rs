//! PostgreSQL: statements, connections, the pool and the table. No Python, no policy
//! about locks.

mod auth;
mod cancel;
mod clock;
mod connect;
mod connector;
mod dial;
mod failure;
mod insight;
mod listener;
mod lookout;
mod outage;
mod patience;
mod places;
mod pool;
mod schema;
mod session;
mod socket;
pub mod sql;
mod statements;
mod stream;
pub mod tls;
mod trust;
mod url;

pub use connect::unsupported;
pub use failure::Failure;
pub use insight::{About, Record};
pub use listener::{Call, Deaf, Listener};
pub use patience::{Check, Patience};
pub use pool::Settings;
pub use schema::schema_sql;
pub use sql::Sql;
pub use statements::{Answer, Candidate, Look, Queue, Released, Renewed, Store, Turn};
pub use stream::inherited;
pub use url::{Request, Url};
