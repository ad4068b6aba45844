//! Opens a session with one of several servers, as securely as configured.

use super::budget::Budget;
use super::connector::Connector;
use super::dial::{addresses, line};
use super::failure::Failure;
use super::session::{Route, Session};
use super::sql::{Schema, Sql, Statements};
use super::tls::{ChannelBinding, Mode};
use super::url::{Endpoint, Place, TargetSessionAttrs, Url};
use crate::error::Error;
use rand::seq::SliceRandom;
use socket2::SockAddr;
use std::time::Duration;
use tokio_postgres::config::{self, SslMode};

/// Rejects options that this client cannot honour and must not ignore.
pub fn unsupported(url: &Url) -> crate::error::Result<()> {
    let tcp = |endpoint: &Endpoint| matches!(endpoint.place, Place::Tcp(..));
    // There is no TLS on a Unix socket, and without TLS nothing to bind to.
    let encrypted = url.tls.mode != Mode::Disable && url.endpoints.iter().any(tcp);
    let demanded = [(
        "channel_binding",
        url.tls.channel_binding == ChannelBinding::Require && !encrypted,
        "disable and prefer, as the connection is not encrypted",
    )];
    match demanded.iter().find(|(_, demanded, _)| *demanded) {
        Some((name, _, allowed)) => Err(Error::Configuration(format!(
            "{} cannot be had; allowed are {allowed}",
            url.said(name)
        ))),
        None => Ok(()),
    }
}

/// The acceptable kinds of session, in order of preference.
fn wanted(url: &Url) -> &'static [TargetSessionAttrs] {
    use TargetSessionAttrs::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    match url.target_session_attrs {
        // Locks need writes, so prefer a writable server among several.
        Any if url.endpoints.len() > 1 => &[ReadWrite, Any],
        PreferStandby => &[Standby, Any],
        Any => &[Any],
        ReadWrite => &[ReadWrite],
        ReadOnly => &[ReadOnly],
        Primary => &[Primary],
        Standby => &[Standby],
    }
}

/// Connects to the first endpoint that answers and is of the wanted kind.
pub fn connect(url: &Url, budget: Budget) -> Result<Session, Failure> {
    let mut endpoints: Vec<&Endpoint> = url.endpoints.iter().collect();
    if url.load_balance_hosts {
        endpoints.shuffle(&mut rand::rng());
    }
    let wanted = wanted(url);
    let mut last = Failure::Broken("there is no host".to_owned());
    for (turn, attributes) in wanted.iter().enumerate() {
        // Leave a share for the kinds that come later.
        let limited = share(budget, wanted.len() - turn);
        match connect_to_one_of(url, &endpoints, *attributes, limited) {
            Err(failure @ (Failure::Broken(_) | Failure::TimedOut)) => last = failure,
            result => return result,
        }
    }
    Err(last)
}

/// An equal share of the time left, for one of `parts` attempts.
fn share(budget: Budget, parts: usize) -> Budget {
    match (parts, u32::try_from(parts)) {
        (2.., Ok(parts)) => budget.at_most(budget.left() / parts),
        _ => budget,
    }
}

/// How long one of several hosts may take, unless `connect_timeout` is set.
const CANDIDATE: Duration = Duration::from_secs(10);

fn connect_to_one_of(
    url: &Url,
    endpoints: &[&Endpoint],
    attributes: TargetSessionAttrs,
    budget: Budget,
) -> Result<Session, Failure> {
    let mut reasons = Vec::new();
    for (position, endpoint) in endpoints.iter().enumerate() {
        let mut limited = share(budget, endpoints.len() - position);
        // Also for the last: by then one of the others may have become the wanted one.
        if endpoints.len() > 1 && url.connect_timeout.is_none() {
            limited = limited.at_most(CANDIDATE);
        }
        match connect_to(url, endpoint, attributes, limited) {
            Ok(session) => return Ok(session),
            Err(Failure::Broken(reason)) => reasons.push(format!("{endpoint}: {reason}")),
            // The only host, and the whole time is up: that error has its own message.
            Err(Failure::TimedOut) if endpoints.len() == 1 && budget.over() => {
                return Err(Failure::TimedOut);
            }
            Err(Failure::TimedOut) => reasons.push(format!("{endpoint}: no answer in time")),
            Err(failure) => return Err(failure),
        }
        if budget.over() {
            break;
        }
    }
    Err(Failure::Broken(reasons.join("; ")))
}

fn connect_to(
    url: &Url,
    endpoint: &Endpoint,
    attributes: TargetSessionAttrs,
    budget: Budget,
) -> Result<Session, Failure> {
    let mut addresses = addresses(endpoint, budget)?;
    if url.load_balance_hosts {
        addresses.shuffle(&mut rand::rng());
    }
    connect_to_one_address(url, endpoint, &addresses, attributes, budget)
}

fn connect_to_one_address(
    url: &Url,
    endpoint: &Endpoint,
    addresses: &[SockAddr],
    attributes: TargetSessionAttrs,
    budget: Budget,
) -> Result<Session, Failure> {
    let mut last = Failure::Broken("the name has no address".to_owned());
    for (position, address) in addresses.iter().enumerate() {
        let mut limited = share(budget, addresses.len() - position);
        if let Some(timeout) = url.connect_timeout {
            limited = limited.at_most(timeout);
        }
        let connected = connect_securely(url, endpoint, address, limited);
        match connected.and_then(|session| checked(session, attributes, limited)) {
            Err(failure @ (Failure::Broken(_) | Failure::TimedOut)) => last = failure,
            result => return result,
        }
    }
    Err(last)
}

/// Returns the session if it is of this kind.
fn checked(
    mut session: Session,
    attributes: TargetSessionAttrs,
    budget: Budget,
) -> Result<Session, Failure> {
    if attributes == TargetSessionAttrs::Any {
        return Ok(session);
    }
    let statements = Statements::new(&Schema::new(None));
    let answer = session.query_unprepared(&statements[Sql::Role], &[], budget)?;
    let column = |name| match answer.rows.first() {
        Some(row) => row.get::<bool>(name).map_err(Failure::Stopped),
        None => Err(Failure::Broken(
            "the server does not say what it is".to_owned(),
        )),
    };
    let (standby, read_only) = (column("standby")?, column("read_only")?);
    let what = match attributes {
        TargetSessionAttrs::ReadWrite if read_only => "sessions are read-only there",
        TargetSessionAttrs::ReadOnly if !read_only => "sessions are not read-only there",
        TargetSessionAttrs::Primary if standby => "it is a standby",
        TargetSessionAttrs::Standby if !standby => "it is not a standby",
        _ => return Ok(session),
    };
    Err(Failure::Broken(what.to_owned()))
}

/// How a connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    Plain,
    IfOffered,
    Required,
}

/// What `sslmode` tries first, and what after a refusal.
fn attempts(mode: Mode, place: &Place) -> &'static [Security] {
    match (mode, place) {
        // There is no TLS on a Unix socket, whatever the mode.
        (Mode::Disable, _) | (_, Place::Unix(_)) => &[Security::Plain],
        (Mode::Allow, _) => &[Security::Plain, Security::Required],
        (Mode::Prefer, _) => &[Security::IfOffered, Security::Plain],
        (Mode::Require | Mode::VerifyCa | Mode::VerifyFull, _) => &[Security::Required],
    }
}

fn connect_securely(
    url: &Url,
    endpoint: &Endpoint,
    address: &SockAddr,
    budget: Budget,
) -> Result<Session, Failure> {
    let mut before: Option<Failure> = None;
    let mut attempts = attempts(url.tls.mode, &endpoint.place).iter().peekable();
    while let Some(security) = attempts.next() {
        let failure = match log_in(url, endpoint, address, *security, budget) {
            Ok(session) => return Ok(session),
            Err(failure) => failure.at_login(url.tls.mode, *security == Security::Plain),
        };
        let go_on = attempts.peek().is_some() && failure.is_about_the_login();
        let failure = match before.take() {
            Some(before) => before.and(failure),
            None => failure,
        };
        if !go_on {
            return Err(failure);
        }
        before = Some(failure);
    }
    Err(Failure::Broken("nothing was tried".to_owned()))
}

fn log_in(
    url: &Url,
    endpoint: &Endpoint,
    address: &SockAddr,
    security: Security,
    budget: Budget,
) -> Result<Session, Failure> {
    let mut config = url.config.clone();
    if let Some(password) = &endpoint.password {
        config.password(&password.0);
    }
    config.ssl_mode(match security {
        Security::Plain => SslMode::Disable,
        Security::IfOffered => SslMode::Prefer,
        Security::Required => SslMode::Require,
    });
    config.channel_binding(match url.tls.channel_binding {
        ChannelBinding::Disable => config::ChannelBinding::Disable,
        ChannelBinding::Prefer => config::ChannelBinding::Prefer,
        ChannelBinding::Require => config::ChannelBinding::Require,
    });
    let connector = match (security, &endpoint.place) {
        (Security::IfOffered | Security::Required, Place::Tcp(host, _)) => {
            Connector::new(&url.tls, host).map_err(|error| match url.tls.mode {
                // These modes can do without TLS.
                Mode::Allow | Mode::Prefer => Failure::Insecure(error.to_string()),
                _ => Failure::Stopped(Error::Configuration(format!(
                    "{error}; what to change: {}",
                    url.said("sslmode")
                ))),
            })?
        }
        _ => Connector::plain(),
    };
    let route = Route {
        address: address.clone(),
        connector: connector.requiring(url.require_auth.clone()),
    };
    Session::open(&config, line(url, route, budget)?, budget)
}

/// Turns a failure to connect into an error that says what to change.
pub fn explain(url: &Url, failure: Failure, seconds: f64) -> Error {
    match failure {
        Failure::Server(mut server_error) => {
            let name = match server_error.sqlstate.as_str() {
                "28P01" => Some("password"),
                "28000" => Some("user"),
                "3D000" => Some("dbname"),
                _ => None,
            };
            if let Some(name) = name {
                let told = format!("; what to change: {}", url.said(name));
                server_error.message.push_str(&told);
            }
            server_error.refused()
        }
        Failure::NoPassword => Error::Configuration(format!(
            "the database at {url} asks for a password, and there is none in sqlalchemy.url, \
             in PGPASSWORD and in the password file (PGPASSFILE or ~/.pgpass)"
        )),
        Failure::Broken(reason) => {
            let refused = ["Connection refused", "No such file or directory"];
            let hint = if reason.contains("unsupported startup parameter") {
                "; a pooler does not pass the URL's options on: leave them out, and have an \
                 administrator set what they say, with ALTER ROLE … IN DATABASE … SET search_path \
                 = … for instance"
            } else if refused.iter().any(|words| reason.contains(words)) {
                "; is the server running, and does it accept connections there?"
            } else {
                ""
            };
            Error::Unavailable(format!(
                "cannot reach the database at {url}: {reason}{hint}"
            ))
        }
        Failure::Insecure(reason) => Error::Unavailable(format!(
            "cannot connect to the database at {url} with the security that is configured: \
             {reason}; what to change: {}",
            url.said(
                [
                    ("channel binding", "channel_binding"),
                    ("require_auth", "require_auth")
                ]
                .into_iter()
                .find_map(|(words, name)| reason.contains(words).then_some(name))
                .unwrap_or("sslmode")
            )
        )),
        Failure::TimedOut => Error::Unavailable(format!(
            "the database at {url} did not answer within {seconds} s (sqlalchemy.pool_timeout), \
             or within a shorter timeout of the call"
        )),
        Failure::Stopped(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::url::Request;
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    #[test]
    fn an_address_that_says_nothing_leaves_time_for_the_next_one() {
        let url = Url::parse(&Request::new("postgresql://u@name/d?sslmode=disable")).unwrap();
        let silent = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = silent
            .each_ref()
            .map(|listener| listener.local_addr().unwrap().into());
        let budget = Budget::new(Duration::from_millis(300), &|| Ok(()));
        let attributes = TargetSessionAttrs::Any;
        let endpoint = &url.endpoints[0];
        let connected = connect_to_one_address(&url, endpoint, &addresses, attributes, budget);
        assert!(matches!(connected, Err(Failure::TimedOut)));
        for listener in &silent {
            // A client has connected.
            listener.set_nonblocking(true).unwrap();
            listener.accept().unwrap();
        }
    }
}
