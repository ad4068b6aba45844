//! The TLS settings of a connection, with libpq's names and meaning.

use std::path::PathBuf;

/// `sslmode`: how much the connection has to be protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Without TLS.
    Disable,
    /// Without TLS, and with it if the server refuses that.
    Allow,
    /// With TLS, and without it if the server has none or refuses the connection.
    #[default]
    Prefer,
    /// With TLS. If there is a file with root certificates this is as [`Mode::VerifyCa`].
    Require,
    /// With TLS, and the server's certificate comes from a root that is trusted.
    VerifyCa,
    /// And it is for the host that the URL names.
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
    /// Or else there is no login.
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
