//! Opening a connection: resolve, connect, log in; every wait can be given up.

use super::connection::Connection;
use super::failure::Failure;
use super::login::log_in;
use super::patience::Patience;
use super::socket::Socket;
use super::tls::{ChannelBinding, Mode};
use super::url::{Endpoint, Keepalives, Place, TargetSessionAttrs, Url};
use crate::error::Error;
use rand::seq::SliceRandom;
use socket2::{Domain, SockAddr, TcpKeepalive, Type};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::{io, thread};

/// What this client cannot do yet, and must not do without.
pub fn unsupported(url: &Url) -> crate::error::Result<()> {
    let tcp = |endpoint: &Endpoint| matches!(endpoint.place, Place::Tcp(..));
    // TLS is about TCP only; channel binding is nothing that a socket can do without it.
    let demanded = [
        (
            "sslmode",
            url.tls.mode > Mode::Prefer && url.endpoints.iter().any(tcp),
            "disable, allow and prefer, as TLS is not spoken",
        ),
        (
            "channel_binding",
            url.tls.channel_binding == ChannelBinding::Require,
            "disable and prefer, as TLS is not spoken",
        ),
        (
            "require_auth",
            url.require_auth.is_some(),
            "none, as the server decides",
        ),
        (
            "target_session_attrs",
            url.target_session_attrs != TargetSessionAttrs::Any,
            "any",
        ),
    ];
    match demanded.iter().find(|(_, demanded, _)| *demanded) {
        Some((name, _, allowed)) => Err(Error::Configuration(format!(
            "{} cannot be had in this version; allowed are {allowed}",
            url.said(name)
        ))),
        None => Ok(()),
    }
}

/// Connects to the first endpoint that answers.
pub fn connect(url: &Url, patience: Patience) -> Result<Connection, Failure> {
    let mut reasons = Vec::new();
    let mut endpoints: Vec<&Endpoint> = url.endpoints.iter().collect();
    if url.load_balance_hosts {
        endpoints.shuffle(&mut rand::rng());
    }
    for endpoint in endpoints {
        let limited = match url.connect_timeout {
            Some(timeout) => patience.at_most(timeout),
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

fn connect_to(url: &Url, endpoint: &Endpoint, patience: Patience) -> Result<Connection, Failure> {
    let mut last = Failure::Broken("the name has no address".to_owned());
    let mut config = url.config.clone();
    if let Some(password) = &endpoint.password {
        config.password(&password.0);
    }
    let mut addresses = addresses(endpoint, patience)?;
    if url.load_balance_hosts {
        addresses.shuffle(&mut rand::rng());
    }
    for address in addresses {
        match dial(url, &address, patience) {
            Ok(socket) => match reach(&socket, patience) {
                Ok(()) => {
                    return log_in(&config, socket, patience).map(Connection::new);
                }
                Err(Failure::Broken(reason)) => last = Failure::Broken(reason),
                Err(failure) => return Err(failure),
            },
            Err(error) => last = Failure::Broken(error.to_string()),
        }
    }
    Err(last)
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
    match &endpoint.place {
        Place::Unix(path) => Ok(vec![SockAddr::unix(path)?]),
        Place::Tcp(host, port) => {
            let host = endpoint.address.as_ref().unwrap_or(host);
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

fn keep_alive(socket: &socket2::Socket, wanted: &Keepalives) -> io::Result<()> {
    if !wanted.enabled {
        return Ok(());
    }
    socket.set_keepalive(true)?;
    let mut keepalive = TcpKeepalive::new();
    if let Some(idle) = wanted.idle {
        keepalive = keepalive.with_time(idle);
    }
    if let Some(interval) = wanted.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(count) = wanted.count {
        keepalive = keepalive.with_retries(count);
    }
    socket.set_tcp_keepalive(&keepalive)
}

/// Starts a connect that does not block.
fn dial(url: &Url, address: &SockAddr, patience: Patience) -> io::Result<Socket> {
    let unix = address.domain() == Domain::UNIX;
    let socket = socket2::Socket::new(address.domain(), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if !unix {
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(url.tcp_user_timeout)?;
        keep_alive(&socket, &url.keepalives)?;
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

/// What to tell about a failure to connect, and what to change.
pub fn explain(url: &Url, failure: Failure, seconds: f64) -> Error {
    match failure {
        Failure::Refused(mut refusal) => {
            let name = match refusal.sqlstate.as_str() {
                "28P01" => Some("password"),
                "28000" => Some("user"),
                "3D000" => Some("dbname"),
                _ => None,
            };
            if let Some(name) = name {
                let told = format!("; what to change: {}", url.said(name));
                refusal.message.push_str(&told);
            }
            super::statements::refused(refusal)
        }
        // The library's words.
        Failure::Broken(reason) if reason.ends_with("password missing") => {
            Error::Configuration(format!(
                "the database at {url} asks for a password, and there is none in sqlalchemy.url, \
                 in PGPASSWORD and in the password file (PGPASSFILE or ~/.pgpass)"
            ))
        }
        Failure::Broken(reason) => {
            let refused = ["Connection refused", "No such file or directory"];
            let hint = if refused.iter().any(|words| reason.contains(words)) {
                "; is the server running, and does it accept connections there?"
            } else {
                ""
            };
            Error::Unavailable(format!(
                "cannot reach the database at {url}: {reason}{hint}"
            ))
        }
        Failure::TooSlow => Error::Unavailable(format!(
            "the database at {url} did not answer within {seconds} s (sqlalchemy.pool_timeout)"
        )),
        Failure::Stopped(error) => error,
    }
}
