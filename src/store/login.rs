//! Logging in, which `tokio-postgres` does: it knows the ways to prove a password.
//!
//! It speaks the protocol over any `AsyncRead + AsyncWrite`; this one needs no runtime,
//! no thread and no epoll. What comes after the login is `wire.rs`'s business, so the
//! stream hands over message by message, and nothing stays behind in the library's buffer.

use super::failure::Failure;
use super::patience::Patience;
use super::socket::Socket;
use std::future::Future;
use std::io::Result;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{Config, NoTls};

/// Logs in over a connected socket, and gives it back.
pub fn log_in(
    config: &Config,
    socket: Socket,
    patience: Patience,
) -> std::result::Result<Socket, Failure> {
    let socket = Arc::new(socket);
    let stream = Stream {
        socket: socket.clone(),
        expected: Expected::Header([0; HEADER], 0),
    };
    let login = drive(config.connect_raw(stream, NoTls), &socket, patience)?;
    // Dropped unused, the library's client and connection send nothing.
    login.map(drop).map_err(|error| Failure::from(&error))?;
    Arc::try_unwrap(socket)
        .map_err(|_| Failure::Broken("the login still has the connection".to_owned()))
}

/// Remembers that something below has made progress.
#[derive(Debug, Default)]
struct Progress(AtomicBool);

impl Wake for Progress {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Polls `future` to its end, waiting for the socket whenever it cannot go on.
fn drive<F: Future>(
    future: F,
    socket: &Socket,
    patience: Patience,
) -> std::result::Result<F::Output, Failure> {
    let mut future = pin!(future);
    let progress = Arc::new(Progress::default());
    let waker = Waker::from(progress.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        progress.0.store(false, Relaxed);
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        if progress.0.load(Relaxed) {
            continue;
        }
        let slice = patience.slice().ok_or(Failure::TooSlow)?;
        // What is sent for a login finds room.
        if !socket.wait(false, slice) {
            patience.check().map_err(Failure::Stopped)?;
        }
    }
}

/// A message's kind and length.
const HEADER: usize = 5;

/// What comes next of a message.
enum Expected {
    /// Its header, of which so many bytes have come.
    Header([u8; HEADER], usize),
    /// So many bytes more.
    Body(usize),
}

impl Expected {
    fn size(&self) -> usize {
        match self {
            Expected::Header(_, come) => HEADER - come,
            Expected::Body(left) => *left,
        }
    }

    fn advance(&mut self, bytes: &[u8]) {
        match self {
            Expected::Header(header, come) => {
                header[*come..*come + bytes.len()].copy_from_slice(bytes);
                *come += bytes.len();
                if *come == HEADER {
                    let [_, a, b, c, d] = *header;
                    // The length counts itself.
                    let length = u32::from_be_bytes([a, b, c, d]).saturating_sub(4);
                    *self = Expected::Body(length as usize);
                }
            }
            Expected::Body(left) => *left -= bytes.len(),
        }
        if matches!(self, Expected::Body(0)) {
            *self = Expected::Header([0; HEADER], 0);
        }
    }
}

/// The socket as the library wants it.
struct Stream {
    socket: Arc<Socket>,
    expected: Expected,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let size = buffer.remaining().min(self.expected.size());
        let room = buffer.initialize_unfilled_to(size);
        match self.socket.read(room)? {
            None => Poll::Pending,
            Some(count) => {
                self.expected.advance(&room[..count]);
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        match self.socket.write(bytes)? {
            None => Poll::Pending,
            Some(count) => Poll::Ready(Ok(count)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_a_message_is_read_at_once() {
        // A message with five bytes, then an empty one, then the next.
        let mut stream: &[u8] = b"R\0\0\0\x09abcdeZ\0\0\0\x04X";
        let mut expected = Expected::Header([0; HEADER], 0);
        let mut read = Vec::new();
        while !stream.is_empty() {
            // The network may bring less than was asked for.
            let size = expected.size().min(stream.len()).min(4);
            let (come, rest) = stream.split_at(size);
            expected.advance(come);
            read.push(come);
            stream = rest;
        }
        assert_eq!(
            read,
            [
                &b"R\0\0\0"[..],
                b"\x09",
                b"abcd",
                b"e",
                b"Z\0\0\0",
                b"\x04",
                b"X"
            ]
        );
    }
}
