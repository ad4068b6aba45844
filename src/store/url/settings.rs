//! Connection settings, as checked values.

use super::found::Found;
use super::text::Problem;
use crate::store::tls::{ChannelBinding, Mode, Roots, Tls};
use std::path::PathBuf;
use std::time::Duration;

/// `require_auth`: which authentication methods the server may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequireAuth {
    /// The named methods.
    pub methods: Vec<AuthMethod>,
    /// Whether those are forbidden, and all others allowed.
    pub negated: bool,
}

impl RequireAuth {
    /// Whether the server may ask for this method.
    #[must_use]
    pub fn allows(&self, method: AuthMethod) -> bool {
        self.methods.contains(&method) != self.negated
    }
}

/// An authentication method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// The password itself.
    Password,
    /// MD5.
    Md5,
    /// Kerberos.
    Gss,
    /// Windows' own method.
    Sspi,
    /// SCRAM, with or without channel binding.
    ScramSha256,
    /// A token.
    OAuth,
    /// The server asks for nothing.
    None,
}

impl AuthMethod {
    /// libpq's name for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        word(METHODS, &self)
    }
}

const METHODS: &[(&str, AuthMethod)] = &[
    ("password", AuthMethod::Password),
    ("md5", AuthMethod::Md5),
    ("gss", AuthMethod::Gss),
    ("sspi", AuthMethod::Sspi),
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("oauth", AuthMethod::OAuth),
    ("none", AuthMethod::None),
];

/// `target_session_attrs`: which server of a list is acceptable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Any.
    #[default]
    Any,
    /// Sessions can write: `default_transaction_read_only` and `in_hot_standby` are off.
    ReadWrite,
    /// One of them is on.
    ReadOnly,
    /// The server is not a standby.
    Primary,
    /// The server is a standby.
    Standby,
    /// A standby, or if no host of the list is one, any.
    PreferStandby,
}

const ATTRIBUTES: &[(&str, TargetSessionAttrs)] = &[
    ("any", TargetSessionAttrs::Any),
    ("read-write", TargetSessionAttrs::ReadWrite),
    ("read-only", TargetSessionAttrs::ReadOnly),
    ("primary", TargetSessionAttrs::Primary),
    ("standby", TargetSessionAttrs::Standby),
    ("prefer-standby", TargetSessionAttrs::PreferStandby),
];

const MODES: &[(&str, Mode)] = &[
    ("disable", Mode::Disable),
    ("allow", Mode::Allow),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

const BINDINGS: &[(&str, ChannelBinding)] = &[
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

/// The name of a value.
fn word<T: PartialEq>(table: &'static [(&'static str, T)], value: &T) -> &'static str {
    let found = table.iter().find(|(_, known)| known == value);
    found.map_or("", |(word, _)| *word)
}

/// The word of `sslmode`.
pub fn mode_word(mode: Mode) -> &'static str {
    word(MODES, &mode)
}

/// The word of `channel_binding`.
pub fn binding_word(binding: ChannelBinding) -> &'static str {
    word(BINDINGS, &binding)
}

/// The word of `target_session_attrs`.
pub fn attributes_word(attributes: TargetSessionAttrs) -> &'static str {
    word(ATTRIBUTES, &attributes)
}

/// The value of `require_auth`.
pub fn auth_words(required: Option<&RequireAuth>) -> String {
    let Some(required) = required else {
        return String::new();
    };
    let not = if required.negated { "!" } else { "" };
    let methods = required.methods.iter();
    let words = methods.map(|method| format!("{not}{}", word(METHODS, method)));
    words.collect::<Vec<_>>().join(",")
}

/// `keepalives` and related options. `None` leaves the choice to the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keepalives {
    /// Whether the operating system probes the connection.
    pub enabled: bool,
    /// How long without traffic before the first probe.
    pub idle: Option<Duration>,
    /// How long between two probes.
    pub interval: Option<Duration>,
    /// How many probes.
    pub count: Option<u32>,
}

/// All of these settings.
#[derive(Clone, Debug)]
pub struct Wishes {
    pub tls: Tls,
    pub require_auth: Option<RequireAuth>,
    pub target_session_attrs: TargetSessionAttrs,
    pub load_balance_hosts: bool,
    pub connect_timeout: Option<Duration>,
    pub tcp_user_timeout: Option<Duration>,
    pub keepalives: Keepalives,
}

impl Wishes {
    /// Checks the options found.
    pub fn new(found: &Found<'_>) -> Result<Wishes, Problem> {
        let seconds = |name| -> Result<_, Problem> {
            Ok(number(found, name)?.map(|n| Duration::from_secs(u64::from(n))))
        };
        let milliseconds = number(found, "tcp_user_timeout")?;
        Ok(Wishes {
            tls: tls(found)?,
            require_auth: require_auth(found)?,
            target_session_attrs: choice(found, "target_session_attrs", ATTRIBUTES)?,
            load_balance_hosts: choice(
                found,
                "load_balance_hosts",
                &[("disable", false), ("random", true)],
            )?,
            connect_timeout: seconds("connect_timeout")?,
            tcp_user_timeout: milliseconds.map(|n| Duration::from_millis(u64::from(n))),
            keepalives: Keepalives {
                enabled: integer(found, "keepalives")? != Some(0),
                idle: seconds("keepalives_idle")?,
                interval: seconds("keepalives_interval")?,
                count: number(found, "keepalives_count")?,
            },
        })
    }
}

fn tls(found: &Found<'_>) -> Result<Tls, Problem> {
    let path = |name| -> Result<_, Problem> { Ok(found.filled(name)?.map(PathBuf::from)) };
    Ok(Tls {
        mode: choice(found, "sslmode", MODES)?,
        roots: match path("sslrootcert")? {
            None => Roots::Default,
            Some(path) if path.as_os_str() == "system" => Roots::System,
            Some(path) => Roots::File(path),
        },
        certificate: path("sslcert")?,
        key: path("sslkey")?,
        channel_binding: choice(found, "channel_binding", BINDINGS)?,
    })
}

/// One of several words.
fn choice<T: Copy + Default>(
    found: &Found<'_>,
    name: &str,
    table: &[(&str, T)],
) -> Result<T, Problem> {
    let Some(text) = found.text(name)? else {
        return Ok(T::default());
    };
    let known = table.iter().find(|(word, _)| *word == text);
    known.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = table.iter().map(|(word, _)| *word).collect();
        let words = words.join(", ");
        found.complaint(name, &format!("is not understood; allowed are {words}"))
    })
}

/// A number, as C's `int`.
fn integer(found: &Found<'_>, name: &str) -> Result<Option<i32>, Problem> {
    let Some(text) = found.text(name)? else {
        return Ok(None);
    };
    let number = text.trim().parse();
    number
        .map(Some)
        .map_err(|_| found.complaint(name, "is not understood; allowed are whole numbers"))
}

/// A positive number; anything else means the default.
fn number(found: &Found<'_>, name: &str) -> Result<Option<u32>, Problem> {
    let number = integer(found, name)?.and_then(|number| u32::try_from(number).ok());
    Ok(number.filter(|number| *number > 0))
}

fn require_auth(found: &Found<'_>) -> Result<Option<RequireAuth>, Problem> {
    let Some(text) = found.filled("require_auth")? else {
        return Ok(None);
    };
    let (mut methods, mut negated) = (Vec::new(), None);
    for item in text.split(',') {
        let (name, not) = match item.strip_prefix('!') {
            Some(name) => (name, true),
            None => (item, false),
        };
        let Some((_, method)) = METHODS.iter().find(|(word, _)| *word == name) else {
            let words: Vec<&str> = METHODS.iter().map(|(word, _)| *word).collect();
            let why = format!(
                "is not understood; allowed are {}, with commas between several, \
                 each or none with an ! before it",
                words.join(", ")
            );
            return Err(found.complaint("require_auth", &why));
        };
        if negated.is_some_and(|negated| negated != not) {
            return Err(found.complaint("require_auth", "has some methods with ! and some without"));
        }
        if methods.contains(method) {
            return Err(found.complaint("require_auth", "names a method twice"));
        }
        negated = Some(not);
        methods.push(*method);
    }
    Ok(Some(RequireAuth {
        methods,
        negated: negated == Some(true),
    }))
}
