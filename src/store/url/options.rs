//! All options and environment variables of libpq 18, and how each is handled.

/// How an option is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It means the same as in libpq.
    Honoured,
    /// Accepts only these values, which match what we do anyway. libpq accepts "" for some.
    Only(&'static [&'static str]),
    /// Rejected, for this reason.
    Refused(&'static str),
    /// Has no effect here; a comment beside it says why.
    Meaningless,
}

use Fate::{Honoured, Meaningless, Only, Refused};

/// An option of a connection.
pub struct Option_ {
    /// libpq's name.
    pub name: &'static str,
    /// The environment variable, or "".
    pub variable: &'static str,
    /// How it is handled.
    pub fate: Fate,
}

const fn option(name: &'static str, variable: &'static str, fate: Fate) -> Option_ {
    Option_ {
        name,
        variable,
        fate,
    }
}

const NO_CRL: Fate = Refused("revocation lists are not read");
const NO_OAUTH: Fate = Refused("OAuth is not spoken");
const NO_KEYS: Fate = Refused("give the password instead");

/// In libpq's order.
pub const OPTIONS: &[Option_] = &[
    option("service", "PGSERVICE", Honoured),
    option("user", "PGUSER", Honoured),
    option("password", "PGPASSWORD", Honoured),
    option("passfile", "PGPASSFILE", Honoured),
    option("channel_binding", "PGCHANNELBINDING", Honoured),
    option("connect_timeout", "PGCONNECT_TIMEOUT", Honoured),
    option("dbname", "PGDATABASE", Honoured),
    option("host", "PGHOST", Honoured),
    option("hostaddr", "PGHOSTADDR", Honoured),
    option("port", "PGPORT", Honoured),
    // Only concerns the bytes between server and client library; Python's str is not affected.
    option("client_encoding", "PGCLIENTENCODING", Meaningless),
    option("options", "PGOPTIONS", Honoured),
    option("application_name", "PGAPPNAME", Honoured),
    option("fallback_application_name", "", Honoured),
    option("keepalives", "", Honoured),
    option("keepalives_idle", "", Honoured),
    option("keepalives_interval", "", Honoured),
    option("keepalives_count", "", Honoured),
    option("tcp_user_timeout", "", Honoured),
    option("sslmode", "PGSSLMODE", Honoured),
    option("sslnegotiation", "PGSSLNEGOTIATION", Only(&["postgres"])),
    // libpq ignores it too: no TLS library compresses any more.
    option("sslcompression", "PGSSLCOMPRESSION", Meaningless),
    option("sslcert", "PGSSLCERT", Honoured),
    option("sslkey", "PGSSLKEY", Honoured),
    option("sslcertmode", "PGSSLCERTMODE", Only(&["allow"])),
    option(
        "sslpassword",
        "",
        Refused("sslkey must not need a passphrase"),
    ),
    option("sslrootcert", "PGSSLROOTCERT", Honoured),
    option("sslcrl", "PGSSLCRL", NO_CRL),
    option("sslcrldir", "PGSSLCRLDIR", NO_CRL),
    option("sslsni", "PGSSLSNI", Only(&["1", ""])),
    option(
        "requirepeer",
        "PGREQUIREPEER",
        Refused("the owner of a socket is not looked at"),
    ),
    option("require_auth", "PGREQUIREAUTH", Honoured),
    // We speak protocol 3.0.
    option(
        "min_protocol_version",
        "PGMINPROTOCOLVERSION",
        Only(&["3.0"]),
    ),
    option(
        "max_protocol_version",
        "PGMAXPROTOCOLVERSION",
        Only(&["3.0", "3.2", "latest"]),
    ),
    // Never below 1.2; the newest that both sides know.
    option(
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        Only(&["TLSv1.2", "TLSv1.1", "TLSv1", ""]),
    ),
    option(
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        Only(&["TLSv1.3", ""]),
    ),
    // We have no GSSAPI; "prefer" works without it.
    option("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"])),
    // These three are about logging in with GSSAPI, which never happens.
    option("krbsrvname", "PGKRBSRVNAME", Meaningless),
    option("gsslib", "PGGSSLIB", Meaningless),
    option("gssdelegation", "PGGSSDELEGATION", Meaningless),
    option("replication", "", Only(&["false", "off", "no", "0", ""])),
    option("target_session_attrs", "PGTARGETSESSIONATTRS", Honoured),
    option("load_balance_hosts", "PGLOADBALANCEHOSTS", Honoured),
    option("scram_client_key", "", NO_KEYS),
    option("scram_server_key", "", NO_KEYS),
    option("oauth_issuer", "", NO_OAUTH),
    option("oauth_client_id", "", NO_OAUTH),
    option("oauth_client_secret", "", NO_OAUTH),
    option("oauth_scope", "", NO_OAUTH),
    option(
        "sslkeylogfile",
        "",
        Refused("the keys of a connection are not written anywhere"),
    ),
];

/// Driver options that SQLAlchemy removes from a URL. They concern the driver's own statements;
/// `conf.engine` does not need them either.
pub const DRIVERS: &[&str] = &[
    "async_fallback",
    "prepared_statement_cache_size",
    "statement_cache_size",
];

// libpq's variables that belong to no option: PGSERVICEFILE, PGSYSCONFDIR and PGREQUIRESSL are
// honoured, see found.rs and files.rs. PGDATESTYLE, PGTZ and PGGEQO do not affect our statements,
// which compare and return numbers; PGLOCALEDIR is the language of libpq's own messages, and
// PGOAUTHDEBUG concerns a method that we do not support.

/// The option of this name.
pub fn find(name: &str) -> std::option::Option<&'static Option_> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// The names of the usable options, for messages.
pub fn allowed() -> String {
    let usable = OPTIONS
        .iter()
        .filter(|option| !matches!(option.fate, Refused(_)));
    let names: Vec<&str> = usable.map(|option| option.name).collect();
    names.join(", ")
}
