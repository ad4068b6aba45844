//! The TLS settings of a connection, with libpq's names and meaning.

use std::path::PathBuf;

/// `sslmode`: how much protection the connection needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Without TLS.
    Disable,
    /// Without TLS; with TLS if the server refuses that.
    Allow,
    /// With TLS; without if the server has none or refuses the connection.
    #[default]
    Prefer,
    /// With TLS. If there is a root certificate file, the same as [`Mode::VerifyCa`].
    Require,
    /// With TLS, and a trusted root must have issued the server's certificate.
    VerifyCa,
    /// The same, and the certificate must be for the host in the URL.
    VerifyFull,
}

/// `sslrootcert`: which roots are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Those in `~/.postgresql/root.crt`, if that exists.
    #[default]
    Default,
    /// Those in this file.
    File(PathBuf),
    /// Those that the operating system trusts.
    System,
}

/// `channel_binding`: whether a login with a password is bound to the TLS connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    #[default]
    Prefer,
    /// Required: otherwise the login fails.
    Require,
}

/// Everything about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `sslmode`.
    pub mode: Mode,
    /// `sslrootcert`.
    pub roots: Roots,
    /// `sslcert`; without it `~/.postgresql/postgresql.crt`, if that exists.
    pub certificate: Option<PathBuf>,
    /// `sslkey`; without it `~/.postgresql/postgresql.key`.
    pub key: Option<PathBuf>,
    /// `channel_binding`.
    pub channel_binding: ChannelBinding,
}
