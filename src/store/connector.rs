//! How a session is secured: not yet at all.

/// What secures a connection.
pub type Connector = tokio_postgres::NoTls;
/// The secured connection.
pub type TlsStream = tokio_postgres::tls::NoTlsStream;
/// Why it cannot be secured.
pub type TlsError = std::io::Error;
