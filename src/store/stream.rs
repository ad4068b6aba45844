//! The byte stream below a session: a socket that never blocks, as `tokio-postgres`
//! wants it.
//!
//! It needs no runtime, no thread and no epoll. It notes what it waits for, and
//! `session.rs` waits with poll(2), which can be interrupted and given up.

use super::auth::Watch;
use super::socket::Socket;
use arc_swap::ArcSwapOption;
use std::io::{self, Result};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A socket and what is known about it; shared by the stream and by the one who waits.
/// As a waker it notes that something has made progress.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    /// There may be something to read. Without that no read is tried, which saves a
    /// system call for every answer.
    readable: AtomicBool,
    /// A write found no room.
    blocked: AtomicBool,
    /// Nothing can be sent any more.
    cut: AtomicBool,
    /// Somebody was woken.
    progress: AtomicBool,
}

impl Wake for Channel {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.progress.store(true, Relaxed);
    }
}

/// The descriptors of all sockets that are open. A child reads it right after a fork, when
/// another thread of its parent may have been writing: so nobody locks it.
static OPEN: ArcSwapOption<Vec<RawFd>> = ArcSwapOption::const_empty();

/// The descriptors that this process, which was just forked, has from its parent. Whoever
/// asks is the only one who is told.
pub fn inherited() -> Vec<RawFd> {
    OPEN.swap(None).map_or(Vec::new(), |open| open.to_vec())
}

fn note(descriptor: RawFd, open: bool) {
    OPEN.rcu(|before| {
        let before = before.iter().flat_map(|all| all.iter()).copied();
        let others = before.filter(|other| *other != descriptor);
        Some(Arc::new(others.chain(open.then_some(descriptor)).collect()))
    });
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Before it is closed: then the number may be that of another file.
        note(self.socket.as_fd().as_raw_fd(), false);
    }
}

impl Channel {
    /// Takes over a connected socket.
    pub fn new(socket: Socket) -> Arc<Channel> {
        note(socket.as_fd().as_raw_fd(), true);
        Arc::new(Channel {
            socket,
            readable: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            progress: AtomicBool::new(false),
        })
    }

    /// Whether somebody was woken since the last call.
    pub fn take_progress(&self) -> bool {
        self.progress.swap(false, Relaxed)
    }

    /// Waits until the socket is ready, but no longer than `slice`. Tells whether there is
    /// something to read: data, the end or an error.
    pub fn wait(&self, slice: Duration) -> bool {
        let ready = self.socket.wait(self.blocked.load(Relaxed), slice);
        if ready {
            self.readable.store(true, Relaxed);
        }
        ready
    }
}

/// How much is read at once: more than most answers of ours have, and no more than that,
/// since what is read into is zeroed before.
const CHUNK: usize = 1024;

/// The stream itself, and who looks at what is read until the login is under way.
#[derive(Debug)]
pub struct Stream(pub Arc<Channel>, pub Option<Watch>);

/// Shows what was read to who looks at it, if there is somebody.
pub fn show(watch: &mut Option<Watch>, read: &[u8]) -> Result<()> {
    if let Some(looking) = watch {
        if looking.read(read)? {
            *watch = None;
        }
    }
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let Stream(channel, watch) = &mut *self;
        if !channel.readable.load(Relaxed) {
            return Poll::Pending;
        }
        let size = buffer.remaining().min(CHUNK);
        let room = buffer.initialize_unfilled_to(size);
        match channel.socket.read(room)? {
            Some(count) => {
                // Less than there was room for: that was all there is for now. poll(2)
                // reports the end of the stream (0) again.
                let more = count == size || channel.cut.load(Relaxed);
                channel.readable.store(more, Relaxed);
                buffer.advance(count);
                let all = buffer.filled();
                let read = &all[all.len() - count..];
                Poll::Ready(show(watch, read))
            }
            None if channel.cut.load(Relaxed) => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            None => {
                channel.readable.store(false, Relaxed);
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let channel = &self.0;
        let written = channel.socket.write(bytes);
        channel.blocked.store(matches!(written, Ok(None)), Relaxed);
        match written {
            Ok(Some(count)) => Poll::Ready(Ok(count)),
            Ok(None) => Poll::Pending,
            Err(_) => {
                // Reading tells why: what the server said before it hung up comes first.
                channel.cut.store(true, Relaxed);
                channel.readable.store(true, Relaxed);
                channel.progress.store(true, Relaxed);
                Poll::Ready(Ok(bytes.len()))
            }
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
