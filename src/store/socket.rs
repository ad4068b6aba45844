//! A socket that never blocks, and waits for it with poll(2), which can be interrupted and given
//! up.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

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

/// Does the work; `None` if it would block.
fn at_once(mut work: impl FnMut() -> Result<usize>) -> Result<Option<usize>> {
    loop {
        match work() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            result => return result.map(Some),
        }
    }
}

impl Socket {
    /// Reads what is available; 0 at the end of the stream, `None` if nothing is there yet.
    pub fn read(&self, room: &mut [u8]) -> Result<Option<usize>> {
        at_once(|| match self {
            Socket::Tcp(socket) => { socket }.read(room),
            Socket::Unix(socket) => { socket }.read(room),
        })
    }

    /// Writes what there is room for; `None` if there is none.
    pub fn write(&self, bytes: &[u8]) -> Result<Option<usize>> {
        at_once(|| match self {
            Socket::Tcp(socket) => { socket }.write(bytes),
            Socket::Unix(socket) => { socket }.write(bytes),
        })
    }

    /// Waits until there is something to read or, if `writable`, room to write, but no longer than
    /// `slice`. Returns whether a read would return something: data, the end or an error.
    pub fn wait(&self, writable: bool, slice: Duration) -> bool {
        let mut wanted = PollFlags::IN;
        if writable {
            wanted |= PollFlags::OUT;
        }
        let mut sockets = [PollFd::new(self, wanted)];
        let timeout = Timespec::try_from(slice).ok();
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => false,
            _ => !sockets[0].revents().difference(PollFlags::OUT).is_empty(),
        }
    }
}
