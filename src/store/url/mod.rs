//! Database URLs: where the server is and how to log in.
//!
//! `text.rs` splits a URL, `found.rs` adds the service file and the environment (`options.rs` lists
//! all of libpq's options), `endpoints.rs` and `settings.rs` check it, and `shown.rs` is what may
//! be shown of it.

mod endpoints;
mod files;
mod found;
mod options;
mod settings;
mod shown;
#[cfg(test)]
mod tests;
mod text;

pub use endpoints::{Endpoint, Password, Place};
pub use settings::{AuthMethod, Keepalives, RequireAuth, TargetSessionAttrs};

use super::tls::Tls;
use crate::error::{Error, Result};
use endpoints::Spot;
use found::Found;
use settings::Wishes;
use std::env;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;
use text::{Parts, Problem};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// A parsed URL, completed from the service file and the environment.
#[derive(Clone)]
pub struct Url {
    /// User, password, database and other parameters for the server. Hosts, TLS and timeouts are in
    /// the other fields.
    pub config: Config,
    /// Where to try, in order.
    pub endpoints: Vec<Endpoint>,
    /// The TLS options. As in libpq, they only concern TCP.
    pub tls: Tls,
    /// The authentication methods that the server may ask for.
    pub require_auth: Option<RequireAuth>,
    /// Which server of a list is acceptable.
    pub target_session_attrs: TargetSessionAttrs,
    /// Whether to try hosts, and the addresses of a name, in random order.
    pub load_balance_hosts: bool,
    /// How long to try each address.
    pub connect_timeout: Option<Duration>,
    /// How long the operating system waits for sent data to be acknowledged.
    pub tcp_user_timeout: Option<Duration>,
    /// Whether and how the operating system probes the connection.
    pub keepalives: Keepalives,
    /// The options of the URL and its arguments themselves, with libpq's names, including the
    /// password.
    explicit: Vec<(&'static str, Vec<u8>)>,
    /// The sources of options that may be impossible to satisfy, and then have to be changed.
    said: Vec<(&'static str, String)>,
    scheme: String,
    redacted: String,
}

/// Options that a connection or a server may fail to satisfy.
const DEMANDS: [&str; 7] = [
    "user",
    "password",
    "dbname",
    "sslmode",
    "channel_binding",
    "require_auth",
    "target_session_attrs",
];

/// The URL without its password.
impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.redacted)
    }
}

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Url({})", self.redacted)
    }
}

/// The process's environment, or a made-up one in tests.
pub struct Surroundings<'a> {
    /// The value of an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<Vec<u8>>,
    /// The user's home.
    pub home: Option<PathBuf>,
    /// The user's name.
    pub user: Option<String>,
}

impl Surroundings<'_> {
    /// A variable as text; `None` if it is empty.
    fn text(&self, name: &str) -> Option<String> {
        let value = (self.variable)(name)?;
        Some(String::from_utf8_lossy(&value).into_owned()).filter(|text| !text.is_empty())
    }
}

/// The configured URL, and what comes with it.
pub struct Request<'a> {
    /// The URL.
    pub text: &'a str,
    /// What to call it in messages.
    pub label: &'a str,
    /// What `connect_args` adds or overrides, with libpq's names.
    pub arguments: &'a [(String, String)],
}

impl<'a> Request<'a> {
    /// A URL without arguments.
    #[must_use]
    pub fn new(text: &'a str) -> Request<'a> {
        Request {
            text,
            label: "sqlalchemy.url",
            arguments: &[],
        }
    }
}

impl Url {
    /// Parses a URL and fills in the missing parts.
    pub fn parse(request: &Request<'_>) -> Result<Url> {
        let variable = |name: &str| env::var_os(name).map(OsStringExt::into_vec);
        let account = nix::unistd::User::from_uid(nix::unistd::geteuid());
        let account = account.ok().flatten();
        let home = variable("HOME").filter(|home| !home.is_empty());
        let home = home.map(|home| PathBuf::from(std::ffi::OsString::from_vec(home)));
        let around = Surroundings {
            variable: &variable,
            home: home.or_else(|| account.as_ref().map(|user| user.dir.clone())),
            user: account.map(|user| user.name),
        };
        Url::read(request, &around)
    }

    fn read(request: &Request<'_>, around: &Surroundings<'_>) -> Result<Url> {
        Url::try_read(request, around).map_err(Error::Configuration)
    }

    fn try_read(
        request: &Request<'_>,
        around: &Surroundings<'_>,
    ) -> std::result::Result<Url, Problem> {
        let label = request.label;
        let parts = if !request.text.trim().is_empty() {
            text::split(request.text).map_err(|why| format!("{label}: it {why}"))?
        } else if says_where(around) {
            Parts {
                scheme: "postgresql".to_owned(),
                ..Parts::default()
            }
        } else {
            return Err(format!(
                "{label} is empty, and PGSERVICE, PGHOST, PGHOSTADDR and PGDATABASE are not \
                 set; {}",
                text::FORMS
            ));
        };
        let found = Found::new(label, &parts, request.arguments, around)?;
        let wishes = Wishes::new(&found)?;
        let spots = endpoints::spots(&found)?;
        let config = config(&found, around)?;
        let passwords = match config.get_password() {
            Some(_) => None,
            None => found.passfile(around)?,
        };
        let endpoint = |spot: &Spot| {
            let database = config.get_dbname().unwrap_or_default();
            let user = config.get_user().unwrap_or_default();
            let password = passwords.as_ref().and_then(|passwords| {
                passwords.find(spot.name_in_passfile(), spot.port, database, user)
            });
            Endpoint {
                place: spot.place(),
                address: spot.address.clone(),
                password: password.map(Password),
            }
        };
        let endpoints: Vec<Endpoint> = spots.iter().map(endpoint).collect();
        let explicit: Vec<_> = found
            .explicit()
            .map(|(name, value)| (name, value.to_vec()))
            .collect();
        Ok(Url {
            redacted: shown::redacted(&parts.scheme, &explicit, &config, &endpoints),
            said: DEMANDS.map(|name| (name, found.said(name))).into(),
            scheme: parts.scheme,
            explicit,
            config,
            endpoints,
            tls: wishes.tls,
            require_auth: wishes.require_auth,
            target_session_attrs: wishes.target_session_attrs,
            load_balance_hosts: wishes.load_balance_hosts,
            connect_timeout: wishes.connect_timeout,
            tcp_user_timeout: wishes.tcp_user_timeout,
            keepalives: wishes.keepalives,
        })
    }

    /// The source of one of [`DEMANDS`], with its value.
    #[must_use]
    pub fn said<'a>(&'a self, name: &'a str) -> &'a str {
        let found = self.said.iter().find(|(known, _)| *known == name);
        found.map_or(name, |(_, said)| said)
    }

    /// The driver that the URL names, and the options of the URL and its arguments with libpq's
    /// names, including the password.
    #[must_use]
    pub fn explicit(&self) -> (Option<&str>, &[(&'static str, Vec<u8>)]) {
        let driver = self.scheme.split_once('+').map(|(_, driver)| driver);
        (driver, &self.explicit)
    }
}

/// Whether libpq's environment names a database, so that an empty URL is enough.
fn says_where(around: &Surroundings<'_>) -> bool {
    ["PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE"]
        .iter()
        .any(|name| around.text(name).is_some())
}

/// The parameters for the server.
fn config(found: &Found<'_>, around: &Surroundings<'_>) -> std::result::Result<Config, Problem> {
    let mut config = Config::new();
    // The client does TLS itself, by `Url::tls`.
    config.ssl_mode(SslMode::Disable);
    let user = found.filled("user")?.or_else(|| around.user.clone());
    let user = user.ok_or("sqlalchemy.url names no user, and the operating system knows none")?;
    config.dbname(found.filled("dbname")?.unwrap_or_else(|| user.clone()));
    config.user(user);
    if let Some(password) = found
        .get("password")
        .filter(|value| !value.bytes.is_empty())
    {
        config.password(&password.bytes);
    }
    if let Some(options) = found.filled("options")? {
        config.options(options);
    }
    let name = match found.filled("application_name")? {
        Some(name) => name,
        None => found
            .filled("fallback_application_name")?
            .unwrap_or_else(|| "score.distlock".to_owned()),
    };
    config.application_name(name);
    Ok(config)
}
