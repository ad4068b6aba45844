//! Database URLs: where the server is and how to log in.
//!
//! The parsing proper is that of `tokio_postgres::Config`. Around it: the
//! schemes of SQLAlchemy, the environment variables that libpq fills in, a
//! closed list of options, and error messages without passwords.

use super::tls::{ChannelBinding, Mode, Roots, Tls};
use crate::error::{Error, Result};
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// One place where the server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A parsed URL.
#[derive(Clone)]
pub struct Url {
    /// User, password, database and what else the server is told.
    pub config: Config,
    /// Where to try, in order.
    pub endpoints: Vec<Endpoint>,
    /// What is asked of TLS.
    pub tls: Tls,
    redacted: String,
}

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

/// The options after `?`, in libpq's spelling.
const OPTIONS: &[&str] = &[
    "application_name",
    "connect_timeout",
    "dbname",
    "host",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "options",
    "password",
    "port",
    "sslmode",
    "user",
];

const FORMS: &str = "postgresql://…, postgres://…, postgresql+DRIVER://…, \
                     embedded: and embedded:/folder";

impl Url {
    /// Parses a URL and fills in what it leaves out.
    pub fn parse(text: &str) -> Result<Url> {
        let redacted = redact(text);
        let fail =
            |why: String| Error::Configuration(format!("sqlalchemy.url: {redacted:?} {why}"));
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| fail(format!("is not a URL; allowed are {FORMS}")))?;
        let dialect = scheme.split('+').next().unwrap_or_default();
        if !["postgresql", "postgres"].contains(&dialect) {
            return Err(fail(format!("is not for PostgreSQL; allowed are {FORMS}")));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut kept = Vec::new();
        let mut tls = Tls::default();
        let mut given = Given::default();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match (key, value) {
                ("sslmode", _) => {
                    tls.mode = match value {
                        "disable" => Mode::Disable,
                        "allow" => Mode::Allow,
                        "prefer" => Mode::Prefer,
                        "require" => Mode::Require,
                        "verify-ca" => Mode::VerifyCa,
                        "verify-full" => Mode::VerifyFull,
                        _ => return Err(fail(format!("wants sslmode={value}"))),
                    }
                }
                ("sslrootcert", "system") => tls.roots = Roots::System,
                ("sslrootcert", _) => tls.roots = Roots::File(value.into()),
                ("sslcert", _) => tls.certificate = Some(value.into()),
                ("sslkey", _) => tls.key = Some(value.into()),
                ("channel_binding", _) => {
                    tls.channel_binding = match value {
                        "disable" => ChannelBinding::Disable,
                        "prefer" => ChannelBinding::Prefer,
                        "require" => ChannelBinding::Require,
                        _ => return Err(fail(format!("wants channel_binding={value}"))),
                    }
                }
                ("keepalives_count", _) => kept.push(format!("keepalives_retries={value}")),
                ("host", _) => given.hosts.extend(split(value).map_err(&fail)?),
                ("port", _) => given.ports.extend(split(value).map_err(&fail)?),
                _ if OPTIONS.contains(&key) => kept.push(option.to_owned()),
                _ => {
                    return Err(fail(format!(
                        "has the unknown option {key:?}; allowed are {}",
                        OPTIONS.join(", ")
                    )));
                }
            }
        }
        let plain = format!("postgresql://{rest}?{}", kept.join("&"));
        let mut config: Config = plain.parse().map_err(|error: tokio_postgres::Error| {
            fail(format!(
                "is not understood: {}; percent-encode special characters, \
                 as in postgresql://user:p%40ss@host:5432/database",
                super::failure::reason(&error)
            ))
        })?;
        complete(&mut config, given.hosts.is_empty(), given.ports.is_empty()).map_err(&fail)?;
        let endpoints = endpoints(&config, &given).map_err(&fail)?;
        Ok(Url {
            config,
            endpoints,
            tls,
            redacted,
        })
    }
}

/// The text without what may be a password: whatever is between the first `:`
/// of the part before the last `@` and that `@`, and the option `password`.
fn redact(text: &str) -> String {
    let mut shown = text.to_owned();
    let start = text.find("://").map_or(0, |position| position + 3);
    if let Some(at) = shown.rfind('@').filter(|at| *at >= start) {
        if let Some(colon) = shown[start..at].find(':') {
            shown.replace_range(start + colon + 1..at, "***");
        }
    }
    while let Some(position) = shown.find("password=").filter(|position| {
        let after = &shown[position + 9..];
        !after.starts_with("***")
    }) {
        let value = position + 9;
        let end = shown[value..]
            .find('&')
            .map_or(shown.len(), |end| value + end);
        shown.replace_range(value..end, "***");
    }
    shown
}

/// Fills in what libpq would take from the environment and its defaults; hosts
/// and ports only if the options after `?` give none.
fn complete(config: &mut Config, hosts: bool, ports: bool) -> std::result::Result<(), String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    config.ssl_mode(SslMode::Disable);
    if config.get_user().is_none() {
        let user = variable("PGUSER")
            .or_else(|| {
                nix::unistd::User::from_uid(nix::unistd::geteuid())
                    .ok()
                    .flatten()
                    .map(|user| user.name)
            })
            .ok_or("names no user, and the operating system knows none")?;
        config.user(user);
    }
    if config.get_password().is_none() {
        if let Some(password) = variable("PGPASSWORD") {
            config.password(password);
        }
    }
    if config.get_dbname().is_none_or(str::is_empty) {
        let user = config.get_user().unwrap_or_default().to_owned();
        config.dbname(variable("PGDATABASE").unwrap_or(user));
    }
    if config.get_options().is_none() {
        if let Some(options) = variable("PGOPTIONS") {
            config.options(options);
        }
    }
    if config.get_application_name().is_none() {
        config.application_name(variable("PGAPPNAME").unwrap_or("score.distlock".to_owned()));
    }
    if config.get_connect_timeout().is_none() {
        if let Some(seconds) = variable("PGCONNECT_TIMEOUT") {
            let seconds = seconds
                .parse()
                .map_err(|_| format!("meets PGCONNECT_TIMEOUT={seconds}, which is no number"))?;
            if seconds > 0 {
                config.connect_timeout(Duration::from_secs(seconds));
            }
        }
    }
    if hosts && config.get_hosts().is_empty() {
        match variable("PGHOST") {
            Some(hosts) => {
                for host in hosts.split(',') {
                    config.host(host);
                }
            }
            // libpq has the folder of its sockets compiled in: /tmp, or on
            // Debian and Red Hat /var/run/postgresql.
            None => {
                let debian = Path::new("/var/run/postgresql");
                config.host_path(if debian.is_dir() {
                    debian
                } else {
                    Path::new("/tmp")
                });
            }
        }
    }
    if ports && config.get_ports().is_empty() {
        if let Some(ports) = variable("PGPORT") {
            for port in ports.split(',') {
                config.port(
                    port.parse()
                        .map_err(|_| format!("meets PGPORT={ports}, which is no port"))?,
                );
            }
        }
    }
    Ok(())
}

/// The hosts and ports that the options after `?` give. As with libpq they
/// replace those before it.
#[derive(Default)]
struct Given {
    hosts: Vec<String>,
    ports: Vec<String>,
}

/// A list with commas, percent-encoded.
fn split(value: &str) -> std::result::Result<Vec<String>, String> {
    let decoded = percent_encoding::percent_decode_str(value)
        .decode_utf8()
        .map_err(|_| "is not UTF-8".to_owned())?;
    Ok(decoded.split(',').map(str::to_owned).collect())
}

fn endpoints(config: &Config, given: &Given) -> std::result::Result<Vec<Endpoint>, String> {
    let mut hosts = config.get_hosts().to_vec();
    let mut ports: Vec<u16> = config.get_ports().to_vec();
    if !given.hosts.is_empty() {
        (hosts, ports) = (Vec::new(), Vec::new());
        for host in &given.hosts {
            // SQLAlchemy's way: host=name:port, several times.
            match host
                .rsplit_once(':')
                .map(|(name, port)| (name, port.parse()))
            {
                Some((name, Ok(port))) if !name.contains(':') && !name.starts_with('/') => {
                    hosts.push(Host::Tcp(name.to_owned()));
                    ports.push(port);
                }
                _ if host.starts_with('/') => hosts.push(Host::Unix(host.into())),
                _ => hosts.push(Host::Tcp(host.clone())),
            }
        }
    }
    if !given.ports.is_empty() {
        ports = given
            .ports
            .iter()
            .map(|port| {
                port.parse()
                    .map_err(|_| format!("has the port {port:?}, which is none"))
            })
            .collect::<std::result::Result<_, _>>()?;
    }
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(format!(
            "has {} hosts but {} ports",
            hosts.len(),
            ports.len()
        ));
    }
    Ok(hosts
        .iter()
        .enumerate()
        .map(|(index, host)| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(host) => Endpoint::Tcp(host.clone(), port),
                Host::Unix(folder) => Endpoint::Unix(folder.join(format!(".s.PGSQL.{port}"))),
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp(host.to_owned(), port)
    }

    #[test]
    fn urls_of_sqlalchemy_and_libpq() {
        let url = Url::parse("postgresql+psycopg2://a%40b:p%3Aw%2F@db:5433/my%20db").unwrap();
        assert_eq!(url.config.get_user(), Some("a@b"));
        assert_eq!(url.config.get_password(), Some(&b"p:w/"[..]));
        assert_eq!(url.config.get_dbname(), Some("my db"));
        assert_eq!(url.endpoints, [tcp("db", 5433)]);
        assert_eq!(
            url.to_string(),
            "postgresql+psycopg2://a%40b:***@db:5433/my%20db"
        );
    }

    #[test]
    fn sockets_lists_and_ipv6() {
        let url = Url::parse("postgresql://u@/d?host=/run/pg&port=6000").unwrap();
        assert_eq!(
            url.endpoints,
            [Endpoint::Unix("/run/pg/.s.PGSQL.6000".into())]
        );
        let url = Url::parse("postgres://u@%2Frun%2Fpg/d").unwrap();
        assert_eq!(
            url.endpoints,
            [Endpoint::Unix("/run/pg/.s.PGSQL.5432".into())]
        );
        let url = Url::parse("postgres://u@one:1,two:2/d").unwrap();
        assert_eq!(url.endpoints, [tcp("one", 1), tcp("two", 2)]);
        let url = Url::parse("postgres://u@/d?host=one,%2Frun&port=1,2").unwrap();
        assert_eq!(
            url.endpoints,
            [tcp("one", 1), Endpoint::Unix("/run/.s.PGSQL.2".into())]
        );
        let url = Url::parse("postgres://u@/d?host=one:1&host=two:2").unwrap();
        assert_eq!(url.endpoints, [tcp("one", 1), tcp("two", 2)]);
        let url = Url::parse("postgres://u@one:1/d?port=3").unwrap();
        assert_eq!(url.endpoints, [tcp("one", 3)]);
        let url = Url::parse("postgres://u@[::1]:7/d").unwrap();
        assert_eq!(url.endpoints, [tcp("::1", 7)]);
    }

    #[test]
    fn options_reach_the_server() {
        let url =
            Url::parse("postgresql://u@h/d?options=-csearch_path=a,b&sslmode=prefer").unwrap();
        assert_eq!(url.config.get_options(), Some("-csearch_path=a,b"));
        assert_eq!(url.config.get_application_name(), Some("score.distlock"));
    }

    #[test]
    fn errors_say_what_is_allowed_and_never_the_password() {
        for (text, expected) in [
            ("", "is not a URL"),
            ("secret", "is not a URL"),
            ("mysql://u:secret@h/d", "is not for PostgreSQL"),
            ("postgresql://u:secret@h:port/d", "is not understood"),
            ("postgresql://u:se@secret@h:x/d", "is not understood"),
            (
                "postgresql://u@h/d?password=secret&x=1",
                "unknown option \"x\"",
            ),
            ("postgresql://u:secret@h/d?sslmode=must", "sslmode=must"),
            (
                "postgresql://u:secret@h/d?connect_timeout=soon",
                "connect_timeout",
            ),
            (
                "postgresql://u:secret@a,b/d?port=1,2,3",
                "2 hosts but 3 ports",
            ),
        ] {
            let error = Url::parse(text).expect_err(text).to_string();
            assert!(error.starts_with("sqlalchemy.url: "), "{error}");
            assert!(error.contains(expected), "{error}");
            assert!(text == "secret" || !error.contains("secret"), "{error}");
        }
    }
}
