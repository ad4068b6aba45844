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

fn broken(error: &io::Error) -> Failure {
    Failure::Broken(error.to_string())
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

    /// Waits for something to read, no longer than `slice`, and reads what there is while
    /// nothing was asked for. An error if the server has hung up.
    pub fn look(&mut self, slice: Duration) -> Result<(), Failure> {
        self.readable |= self.socket.wait(false, slice);
        while self.readable {
            self.read()?;
            match self.understand()? {
                None => {}
                Some(Message::ErrorResponse(body)) => {
                    return Err(Failure::Broken(Refusal::parse(body.fields()).message));
                }
                Some(_) => return Err(Failure::Broken("an answer to no question".to_owned())),
            }
        }
        Ok(())
    }

    /// The notifications that have arrived.
    pub fn heard(&mut self) -> Vec<String> {
        std::mem::take(&mut self.heard)
    }

    /// The next message, if it is there, that is neither a notification nor a notice.
    fn understand(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            let message = Message::parse(&mut self.inbox).map_err(|error| broken(&error))?;
            match message {
                Some(Message::NoticeResponse(body)) => {
                    let said = Refusal::parse(body.fields());
                    log::debug!("PostgreSQL says: {} ({})", said.message, said.sqlstate);
                }
                Some(Message::NotificationResponse(body)) => {
                    let said = body.message().map_err(|error| broken(&error))?;
                    self.heard.push(said.to_owned());
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
        // Less than there was room for: that was all there is for now.
        self.readable = count == CHUNK;
        match (result, &self.cut) {
            (Ok(Some(0)), None) => Err(Failure::Broken("the connection is closed".to_owned())),
            (Err(error), None) => Err(broken(&error)),
            (Ok(None | Some(0)) | Err(_), Some(error)) => Err(broken(error)),
            (Ok(Some(_)), Some(_)) => {
                self.readable = true;
                Ok(())
            }
            (Ok(_), None) => Ok(()),
        }
    }
}
