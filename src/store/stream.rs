//! A socket that never blocks, as the byte stream below a PostgreSQL connection.
//!
//! `tokio-postgres` speaks the protocol over any `AsyncRead + AsyncWrite`; this
//! one needs no runtime, no thread and no epoll. It says what it waits for, and
//! `connection.rs` waits with poll(2), which can be interrupted and given up.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Either kind of socket.
#[derive(Debug)]
pub enum Socket {
    /// `host=name` or an address.
    Tcp(TcpStream),
    /// `host=/folder`.
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

/// What the stream knows and wants; shared with the one who waits for it.
#[derive(Debug)]
pub struct Interest {
    /// The socket, for poll(2).
    pub socket: Socket,
    /// poll(2) said that there is something to read. Without that no read is
    /// tried, which saves a system call for every answer.
    pub readable: AtomicBool,
    /// A write found no room.
    pub blocked: AtomicBool,
}

/// How much is read at once.
const CHUNK: usize = 1024;

/// The stream itself.
#[derive(Debug)]
pub struct Stream(Arc<Interest>);

impl Stream {
    /// Takes over a connected, non-blocking socket.
    pub fn new(socket: Socket) -> (Stream, Arc<Interest>) {
        let interest = Arc::new(Interest {
            socket,
            readable: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
        });
        (Stream(interest.clone()), interest)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if !self.0.readable.load(Relaxed) {
            return Poll::Pending;
        }
        // No more than an answer of ours needs: what is read into is zeroed before.
        let size = buffer.remaining().min(CHUNK);
        let room = buffer.initialize_unfilled_to(size);
        let read = match &self.0.socket {
            Socket::Tcp(socket) => { socket }.read(room),
            Socket::Unix(socket) => { socket }.read(room),
        };
        match read {
            Ok(count) => {
                // Less than there was room for: that was all there is for now.
                // At the end of the stream (0) poll(2) reports it again.
                self.0.readable.store(count == size, Relaxed);
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.0.readable.store(false, Relaxed);
                Poll::Pending
            }
            // The caller comes again, and `readable` still stands.
            Err(error) if error.kind() == ErrorKind::Interrupted => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        loop {
            let written = match &self.0.socket {
                Socket::Tcp(socket) => { socket }.write(bytes),
                Socket::Unix(socket) => { socket }.write(bytes),
            };
            return match written {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.0.blocked.store(true, Relaxed);
                    Poll::Pending
                }
                result => {
                    self.0.blocked.store(false, Relaxed);
                    Poll::Ready(result)
                }
            };
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        // Dropping the socket closes it. A shutdown(2) would also end the
        // connection of the process that this one was forked from.
        Poll::Ready(Ok(()))
    }
}
