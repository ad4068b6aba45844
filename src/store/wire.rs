//! Messages of PostgreSQL's protocol over a socket, sent and received on the calling
//! thread. `postgres-protocol` encodes and decodes them.

use super::failure::{Failure, Refusal};
use super::lookout::Lookout;
use super::patience::Patience;
use super::socket::Socket;
use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use std::io;
use std::time::Duration;

/// How much is read at once: more than most answers of ours have, and no more than
/// that, since what is read into is zeroed before.
const CHUNK: usize = 1024;

/// A connection after the login.
pub struct Wire {
    socket: Socket,
    /// What is yet to be sent.
    pub outbox: BytesMut,
    /// What has come and is yet to be understood.
    inbox: BytesMut,
    /// There may be something to read. Without that no read is tried, which saves a
    /// system call for every answer.
    readable: bool,
    /// Why nothing can be sent any more.
    cut: Option<io::Error>,
    /// What was learned about the answers to statements that only read.
    lookout: Lookout,
    /// Notifications that have arrived: what they say.
    heard: Vec<String>,
}

impl Wire {
    /// Takes over a socket after the login.
    pub fn new(socket: Socket) -> Wire {
        Wire {
            socket,
            outbox: BytesMut::new(),
            inbox: BytesMut::new(),
            readable: false,
            cut: None,
            lookout: Lookout::default(),
            heard: Vec::new(),
        }
    }

    /// Sends what is in the outbox, and waits for the next message of the answer.
    /// A `brief` answer comes from the server's memory.
    pub fn receive(&mut self, mut brief: bool, patience: Patience) -> Result<Message, Failure> {
        loop {
            if let Some(message) = self.understand()? {
                return Ok(message);
            }
            self.flush();
            if self.readable {
                self.read()?;
                continue;
            }
            let slice = patience.slice().ok_or(Failure::TooSlow)?;
            let blocked = !self.outbox.is_empty();
            let look = std::mem::take(&mut brief) && !blocked;
            self.readable =
                look && self.lookout.spot(&self.socket) || self.socket.wait(blocked, slice);
            if !self.readable {
                patience.check().map_err(Failure::Stopped)?;
            }
        }
    }

    /// Reads what there is while nothing was asked for; waits for it, no longer than `slice`,
    /// if nothing was heard yet. An error if the server has hung up.
    pub fn look(&mut self, slice: Duration) -> Result<(), Failure> {
        // Something may have come together with the last answer.
        self.understand_idly()?;
        let slice = if self.heard.is_empty() {
            slice
        } else {
            Duration::ZERO
        };
        self.readable |= self.socket.wait(false, slice);
        while self.readable {
            self.read()?;
            self.understand_idly()?;
        }
        Ok(())
    }

    fn understand_idly(&mut self) -> Result<(), Failure> {
        match self.understand()? {
            None => Ok(()),
            Some(Message::ErrorResponse(body)) => {
                Err(Failure::Broken(Refusal::parse(body.fields()).message))
            }
            Some(_) => Err(Failure::Broken("an answer to no question".to_owned())),
        }
    }

    /// The notifications that have arrived.
    pub fn heard(&mut self) -> Vec<String> {
        std::mem::take(&mut self.heard)
    }

    /// The next message, if it is there, that is neither a notification nor a notice.
    fn understand(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            let message = Message::parse(&mut self.inbox)?;
            match message {
                Some(Message::NoticeResponse(body)) => {
                    let said = Refusal::parse(body.fields());
                    log::debug!("PostgreSQL says: {} ({})", said.message, said.sqlstate);
                }
                Some(Message::NotificationResponse(body)) => {
                    self.heard.push(body.message()?.to_owned());
                }
                Some(Message::ParameterStatus(_)) => {}
                message => return Ok(message),
            }
        }
    }

    /// Sends as much as there is room for.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            match self.socket.write(&self.outbox) {
                Ok(Some(count)) => self.outbox.advance(count),
                Ok(None) => return,
                Err(error) => {
                    // First read what the server said before it hung up.
                    self.outbox.clear();
                    self.cut = Some(error);
                    self.readable = true;
                }
            }
        }
    }

    /// Reads what there is.
    fn read(&mut self) -> Result<(), Failure> {
        let before = self.inbox.len();
        self.inbox.resize(before + CHUNK, 0);
        let result = self.socket.read(&mut self.inbox[before..]);
        let count = result.as_ref().ok().copied().flatten().unwrap_or_default();
        self.inbox.truncate(before + count);
        // Less than there was room for: that was all there is for now. But if nothing can
        // be sent any more, all is read to the end.
        self.readable = count == CHUNK || self.cut.is_some();
        match (self.cut.take(), result) {
            (cut, Ok(Some(1..))) => {
                self.cut = cut;
                Ok(())
            }
            (None, Ok(None)) => Ok(()),
            (None, Ok(Some(_))) => Err(Failure::Broken("the connection is closed".to_owned())),
            (Some(error), _) | (None, Err(error)) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// A wire, and the server's end of it.
    fn pair() -> (Wire, UnixStream) {
        let (client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        (Wire::new(Socket::Unix(client)), server)
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind], &length.to_be_bytes()[..], body].concat()
    }

    fn notification(text: &str) -> Vec<u8> {
        message(
            b'A',
            &[b"\0\0\0\x01channel\0", text.as_bytes(), b"\0"].concat(),
        )
    }

    fn ready() -> Vec<u8> {
        message(b'Z', b"I")
    }

    fn at_once(wire: &mut Wire) -> Result<Message, Failure> {
        wire.receive(false, Patience::new(Duration::from_millis(1), &|| Ok(())))
    }

    #[test]
    fn an_answer_may_come_in_pieces() {
        let text = "x".repeat(3 * CHUNK);
        let bytes = [notification(&text), message(b'N', b"SNOTICE\0\0"), ready()].concat();
        for size in [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, bytes.len()] {
            let (mut wire, mut server) = pair();
            let mut pieces = bytes.chunks(size).peekable();
            while let Some(piece) = pieces.next() {
                server.write_all(piece).unwrap();
                let answer = at_once(&mut wire);
                if pieces.peek().is_some() {
                    assert!(matches!(answer, Err(Failure::TooSlow)));
                } else {
                    assert!(matches!(answer, Ok(Message::ReadyForQuery(_))));
                }
            }
            assert!(wire.heard() == [text.as_str()]);
        }
    }

    #[test]
    fn what_comes_together_with_an_answer_is_heard_without_waiting() {
        let (mut wire, mut server) = pair();
        let bytes = [ready(), notification("one"), notification("two")].concat();
        server.write_all(&bytes).unwrap();
        assert!(matches!(at_once(&mut wire), Ok(Message::ReadyForQuery(_))));
        wire.look(Duration::from_secs(3600)).unwrap();
        assert_eq!(wire.heard(), ["one", "two"]);
    }

    #[test]
    fn last_words_are_read_although_nothing_can_be_sent() {
        let (mut wire, mut server) = pair();
        server
            .write_all(&message(b'E', b"SFATAL\0C57P01\0Mgone\0\0"))
            .unwrap();
        drop(server);
        wire.outbox.extend_from_slice(b"a statement");
        assert!(matches!(at_once(&mut wire), Ok(Message::ErrorResponse(_))));
        assert!(matches!(at_once(&mut wire), Err(Failure::Broken(_))));
    }

    #[test]
    fn more_than_there_is_room_for_is_sent_bit_by_bit() {
        use std::io::Read;
        let (mut wire, mut server) = pair();
        let statement = vec![b's'; 1 << 22];
        wire.outbox.extend_from_slice(&statement);
        let reader = std::thread::spawn(move || {
            let mut read = vec![0; 1 << 22];
            server.read_exact(&mut read).unwrap();
            server.write_all(&ready()).unwrap();
            read
        });
        let answer = wire.receive(false, Patience::new(Duration::from_secs(60), &|| Ok(())));
        assert!(matches!(answer, Ok(Message::ReadyForQuery(_))));
        assert_eq!(reader.join().unwrap(), statement);
    }
}
