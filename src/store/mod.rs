//! PostgreSQL: statements, connections, the pool and the table. No Python, no locking policy.

mod answer;
mod auth;
mod budget;
mod cancel;
mod clock;
mod connect;
mod connector;
mod dial;
mod failure;
mod holder;
mod listener;
#[cfg(all(test, feature = "shuttle"))]
pub mod memory;
mod outage;
mod pace;
mod places;
mod pool;
mod schema;
mod session;
mod settings;
mod socket;
mod spin;
pub mod sql;
mod statements;
mod stream;
pub mod tls;
mod trust;
mod url;

pub use budget::{Budget, Check};
pub use connect::unsupported;
pub use failure::Failure;
pub use holder::About;
#[cfg(not(all(test, feature = "shuttle")))]
pub use listener::Listener;
pub use listener::{Call, NotListening};
#[cfg(all(test, feature = "shuttle"))]
pub use memory::{Listener, Store};
pub use schema::schema_sql;
pub use settings::Settings;
pub use sql::Sql;
#[cfg(not(all(test, feature = "shuttle")))]
pub use statements::Store;
pub use statements::{Answer, Candidate, Ended, Look, Queue, Record, Released, Renewed, Turn};
pub use stream::inherited;
pub use url::{Request, Url};
