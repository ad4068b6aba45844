//! Opening a connection: resolve, connect, log in; every wait can be given up.

use super::connector::Connector;
use super::failure::Failure;
use super::patience::Patience;
use super::session::{Line, Route, Session};
use super::socket::Socket;
use super::stream::Channel;
use super::tls::{ChannelBinding, Mode};
use super::url::{Endpoint, Url};
use crate::error::Error;
use socket2::{Domain, SockAddr, TcpKeepalive, Type};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::{io, thread};
use tokio_postgres::config::{self, SslMode};

/// Connects to the first endpoint that answers.
pub fn connect(url: &Url, patience: Patience) -> Result<Session, Failure> {
    let mut reasons = Vec::new();
    for endpoint in &url.endpoints {
        let limited = match url.config.get_connect_timeout() {
            Some(timeout) => patience.at_most(*timeout),
            None => patience,
        };
        match connect_to(url, endpoint, limited) {
            Ok(connection) => return Ok(connection),
            Err(Failure::Broken(reason)) => reasons.push(format!("{endpoint}: {reason}")),
            // The only one: the whole time is over, which has words of its own.
            Err(Failure::TooSlow) if url.endpoints.len() == 1 && patience.over() => {
                return Err(Failure::TooSlow);
            }
            Err(Failure::TooSlow) => reasons.push(format!("{endpoint}: no answer in time")),
            Err(failure) => return Err(failure),
        }
        if patience.over() {
            break;
        }
    }
    Err(Failure::Broken(reasons.join("; ")))
}

fn connect_to(url: &Url, endpoint: &Endpoint, patience: Patience) -> Result<Session, Failure> {
    let mut last = Failure::Broken("the name has no address".to_owned());
    for address in addresses(endpoint, patience)? {
        match connect_securely(url, endpoint, &address, patience) {
            Err(Failure::Broken(reason)) => last = Failure::Broken(reason),
            result => return result,
        }
    }
    Err(last)
}

/// How a connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    Plain,
    IfOffered,
    Required,
}

/// What `sslmode` tries, and what after a refusal.
fn attempts(mode: Mode, endpoint: &Endpoint) -> &'static [Security] {
    match (mode, endpoint) {
        // There is no TLS on a Unix socket, whatever the mode.
        (Mode::Disable, _) | (_, Endpoint::Unix(_)) => &[Security::Plain],
        (Mode::Allow, _) => &[Security::Plain, Security::Required],
        (Mode::Prefer, _) => &[Security::IfOffered, Security::Plain],
        (Mode::Require | Mode::VerifyCa | Mode::VerifyFull, _) => &[Security::Required],
    }
}

fn connect_securely(
    url: &Url,
    endpoint: &Endpoint,
    address: &SockAddr,
    patience: Patience,
) -> Result<Session, Failure> {
    let mut before: Option<Failure> = None;
    let mut attempts = attempts(url.tls.mode, endpoint).iter().peekable();
    while let Some(security) = attempts.next() {
        let failure = match log_in(url, endpoint, address, *security, patience) {
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
    patience: Patience,
) -> Result<Session, Failure> {
    let mut config = url.config.clone();
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
    let connector = match (security, endpoint) {
        (Security::IfOffered | Security::Required, Endpoint::Tcp(host, _)) => {
            Connector::new(&url.tls, host).map_err(|error| match url.tls.mode {
                // These do without.
                Mode::Allow | Mode::Prefer => Failure::Insecure(error.to_string()),
                _ => Failure::Stopped(error),
            })?
        }
        _ => Connector::plain(),
    };
    let route = Route {
        address: address.clone(),
        connector,
    };
    Session::open(&config, line(url, route, patience)?, patience)
}

/// Connects a socket.
pub fn line(url: &Url, route: Route, patience: Patience) -> Result<Line, Failure> {
    let socket = dial(url, &route.address, patience)?;
    reach(&socket, patience)?;
    let channel = Channel::new(socket);
    Ok(Line { channel, route })
}

/// Waits for the end of a connect that was started.
fn reach(socket: &Socket, patience: Patience) -> Result<(), Failure> {
    while !is_connected(socket)? {
        let slice = patience.slice().ok_or(Failure::TooSlow)?;
        socket.wait(true, slice);
        patience.check().map_err(Failure::Stopped)?;
    }
    Ok(())
}

/// Whether a non-blocking connect has come to its end.
fn is_connected(socket: &Socket) -> io::Result<bool> {
    let (error, peer) = match socket {
        Socket::Tcp(socket) => (socket.take_error()?, socket.peer_addr().map(drop)),
        Socket::Unix(socket) => (socket.take_error()?, socket.peer_addr().map(drop)),
    };
    match (error, peer) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(true),
        (None, Err(error)) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        (None, Err(error)) => Err(error),
    }
}

/// The addresses of an endpoint. Names are resolved on a thread that lives no
/// longer than that, because getaddrinfo(3) can neither be interrupted nor limited.
fn addresses(endpoint: &Endpoint, patience: Patience) -> Result<Vec<SockAddr>, Failure> {
    match endpoint {
        Endpoint::Unix(path) => Ok(vec![SockAddr::unix(path)?]),
        Endpoint::Tcp(host, port) => {
            if let Ok(address) = host.parse::<IpAddr>() {
                return Ok(vec![SocketAddr::new(address, *port).into()]);
            }
            let (sender, receiver) = channel();
            let (host, port) = (host.clone(), *port);
            thread::Builder::new()
                .name("distlock-dns".to_owned())
                .spawn(move || {
                    let found = (host.as_str(), port).to_socket_addrs();
                    // Nobody listens any more if the caller has given up.
                    let _ = sender.send(found.map(Iterator::collect::<Vec<_>>));
                })?;
            loop {
                let slice = patience.slice().ok_or(Failure::TooSlow)?;
                match receiver.recv_timeout(slice) {
                    Ok(found) => {
                        return Ok(found?.into_iter().map(Into::into).collect());
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        patience.check().map_err(Failure::Stopped)?;
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(Failure::Broken("the name was not resolved".to_owned()));
                    }
                }
            }
        }
    }
}

/// Starts a connect that does not block.
fn dial(url: &Url, address: &SockAddr, patience: Patience) -> io::Result<Socket> {
    let unix = address.domain() == Domain::UNIX;
    let socket = socket2::Socket::new(address.domain(), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if !unix {
        socket.set_tcp_nodelay(true)?;
        let config = &url.config;
        if config.get_keepalives() {
            let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
            if let Some(interval) = config.get_keepalives_interval() {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(retries) = config.get_keepalives_retries() {
                keepalive = keepalive.with_retries(retries);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
    }
    loop {
        match socket.connect(address) {
            Ok(()) => break,
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
            {
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The queue of a Unix socket is full: there is nothing to poll for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !patience.over() => {
                thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(if unix {
        Socket::Unix(UnixStream::from(OwnedFd::from(socket)))
    } else {
        Socket::Tcp(socket.into())
    })
}

/// What to tell about a failure to connect.
pub fn explain(url: &Url, failure: Failure, seconds: f64) -> Error {
    match failure {
        Failure::Refused(refusal) => super::statements::refused(refusal),
        Failure::Broken(reason) => Error::Unavailable(format!(
            "cannot reach the database at {url}: {reason}; is the server running, \
             and does it accept connections there?"
        )),
        Failure::Insecure(reason) => Error::Unavailable(format!(
            "cannot connect to the database at {url} as securely as is asked for: {reason}"
        )),
        Failure::TooSlow => Error::Unavailable(format!(
            "the database at {url} did not answer within {seconds} s (sqlalchemy.pool_timeout)"
        )),
        Failure::Stopped(error) => error,
    }
}
