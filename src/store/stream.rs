//! The byte stream under a session: a socket that never blocks, as `tokio-postgres` wants it.
//!
//! It needs no runtime, no thread and no epoll. It notes what it waits for, and `session.rs` waits
//! with poll(2), which can be interrupted and given up.

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

/// A socket and its state, shared by the stream and the waiting thread. As a waker it notes that
/// there was progress.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    /// There may be something to read. Otherwise no read is tried, which saves a system call per
    /// answer.
    readable: AtomicBool,
    /// A write found no room.
    blocked: AtomicBool,
    /// Nothing can be sent any more.
    cut: AtomicBool,
    /// A waker was called.
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

/// The descriptors of all open sockets. A child reads it right after a fork, when another thread of
/// its parent may have been writing: so it has no mutex.
static OPEN: ArcSwapOption<Vec<RawFd>> = ArcSwapOption::const_empty();

/// The descriptors that this process, just forked, inherited from its parent. Only the first call
/// gets them.
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
        // Before closing it: afterwards the number may belong to another file.
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

    /// Whether there was progress since the last call.
    pub fn take_progress(&self) -> bool {
        self.progress.swap(false, Relaxed)
    }

    /// Waits until the socket is ready, but no longer than `slice`. Returns whether there is
    /// something to read: data, the end or an error.
    pub fn wait(&self, slice: Duration) -> bool {
        let ready = self.socket.wait(self.blocked.load(Relaxed), slice);
        if ready {
            self.readable.store(true, Relaxed);
        }
        ready
    }
}

/// How much to read at once: enough for most of our answers, and no more, since the buffer is
/// zeroed before every read.
const CHUNK: usize = 1024;

/// The stream itself, and the watch on what is read until authentication begins.
#[derive(Debug)]
pub struct Stream(pub Arc<Channel>, pub Option<Watch>);

/// Shows the watch, if there is one, what was read.
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
                // A short read: that was all for now. poll(2) reports the end of the stream (0)
                // again.
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
                // Reading will tell why: what the server said before it hung up comes first.
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
        // Dropping the socket closes it. A shutdown(2) would also end the connection of our parent
        // process.
        Poll::Ready(Ok(()))
    }
}
