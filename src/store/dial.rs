//! Connects a socket: resolve, connect; the caller can give up every wait.

use super::budget::Budget;
use super::failure::Failure;
use super::session::{Line, Route};
use super::socket::Socket;
use super::stream::Channel;
use super::url::{Endpoint, Keepalives, Place, Url};
use socket2::{Domain, SockAddr, TcpKeepalive, Type};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::{io, thread};

/// Connects a socket.
pub fn line(url: &Url, route: Route, budget: Budget) -> Result<Line, Failure> {
    let socket = dial(url, &route.address, budget)?;
    reach(&socket, budget)?;
    let channel = Channel::new(socket);
    Ok(Line { channel, route })
}

/// Waits for a connect in progress to end.
fn reach(socket: &Socket, budget: Budget) -> Result<(), Failure> {
    while !is_connected(socket)? {
        let slice = budget.slice().ok_or(Failure::TimedOut)?;
        socket.wait(true, slice);
        budget.check().map_err(Failure::Stopped)?;
    }
    Ok(())
}

/// Whether a non-blocking connect has ended.
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

/// The addresses of an endpoint. Resolves names on a thread of their own, because getaddrinfo(3)
/// can be neither interrupted nor limited.
pub fn addresses(endpoint: &Endpoint, budget: Budget) -> Result<Vec<SockAddr>, Failure> {
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
                    // If the caller has given up, there is no receiver any more.
                    let _ = sender.send(found.map(Iterator::collect::<Vec<_>>));
                })?;
            loop {
                let slice = budget.slice().ok_or(Failure::TimedOut)?;
                match receiver.recv_timeout(slice) {
                    Ok(found) => {
                        return Ok(found?.into_iter().map(Into::into).collect());
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        budget.check().map_err(Failure::Stopped)?;
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

/// Starts a non-blocking connect.
fn dial(url: &Url, address: &SockAddr, budget: Budget) -> io::Result<Socket> {
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
            // The Unix socket's backlog is full: there is nothing to poll for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !budget.over() => {
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
