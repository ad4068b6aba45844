//! One connection to the server, driven on the calling thread.

use super::lookout::Lookout;
use super::patience::Patience;
use super::sql::{SLOTS, Statement};
use super::stream::{Interest, Stream};
use crate::error::Error;
use futures_util::TryStreamExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Row, RowStream};

/// Why a statement brought no rows.
#[derive(Debug)]
pub enum Failure {
    /// The server refused the statement, which therefore did nothing.
    Refused(tokio_postgres::Error),
    /// The connection broke: whether the statement was executed is unknown.
    Broken(String),
    /// The patience ended: whether the statement was or will be executed is unknown.
    TooSlow,
    /// The caller was interrupted: unknown too.
    Stopped(Error),
}

/// A parameter of a statement.
pub type Parameter<'a> = &'a (dyn ToSql + Sync);

/// The rows that a statement brought, and how many it returned or changed.
pub type Answer = (Vec<Row>, u64);

/// Collects an answer to its end.
async fn all(stream: RowStream) -> Result<Answer, tokio_postgres::Error> {
    let mut stream = pin!(stream);
    let mut rows = Vec::new();
    while let Some(row) = stream.try_next().await? {
        rows.push(row);
    }
    let affected = stream.rows_affected().unwrap_or_default();
    Ok((rows, affected))
}

/// Remembers that something below has made progress.
#[derive(Debug, Default)]
struct Progress(AtomicBool);

impl Wake for Progress {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// A connection: the client's half, the half that moves bytes, and the socket.
///
/// Dropping it closes the socket and sends nothing, so that a forked child
/// cannot end its parent's session.
pub struct Connection {
    client: Client,
    wire: tokio_postgres::Connection<Stream, NoTlsStream>,
    interest: Arc<Interest>,
    progress: Arc<Progress>,
    prepared: [Option<tokio_postgres::Statement>; SLOTS],
    /// What was learned about the answers to statements that only read.
    lookout: Lookout,
    /// When it was opened, for `pool_recycle`.
    pub opened: Instant,
    broken: bool,
    /// Notifications that have arrived: what they say.
    heard: Vec<String>,
}

/// Waits until the socket is ready or the slice of time is over.
pub(super) fn wait(interest: &Interest, writable: bool, slice: Duration) {
    let mut wanted = PollFlags::IN;
    if writable {
        wanted |= PollFlags::OUT;
    }
    let mut sockets = [PollFd::new(&interest.socket, wanted)];
    let timeout = Timespec::try_from(slice).ok();
    match poll(&mut sockets, timeout.as_ref()) {
        Ok(0) | Err(Errno::INTR) => {}
        // Readable, writable, hung up or in error: reading tells which.
        _ => {
            let ready = sockets[0].revents();
            if !ready.difference(PollFlags::OUT).is_empty() {
                interest.readable.store(true, Relaxed);
            }
        }
    }
}

/// Polls `future` to its end, waiting for the socket whenever it cannot go on.
/// `step` moves the bytes of the connection, if it is set up already.
fn drive<F: Future>(
    future: F,
    mut lookout: Option<&mut Lookout>,
    interest: &Interest,
    progress: &Arc<Progress>,
    patience: Patience,
    mut step: impl FnMut(&mut Context<'_>) -> Result<(), String>,
) -> Result<F::Output, Failure> {
    let mut future = pin!(future);
    let waker = Waker::from(progress.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        progress.0.store(false, Relaxed);
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        let stepped = step(&mut context);
        if progress.0.load(Relaxed) && stepped.is_ok() {
            continue;
        }
        if let Err(reason) = stepped {
            // What the server said before it hung up has reached the future.
            return match future.as_mut().poll(&mut context) {
                Poll::Ready(output) => Ok(output),
                Poll::Pending => Err(Failure::Broken(reason)),
            };
        }
        let Some(slice) = patience.slice() else {
            return Err(Failure::TooSlow);
        };
        let writable = interest.blocked.load(Relaxed);
        let lookout = lookout.take().filter(|_| !writable);
        if !lookout.is_some_and(|lookout| lookout.spot(interest)) {
            wait(interest, writable, slice);
        }
        if !interest.readable.load(Relaxed) {
            patience.check().map_err(Failure::Stopped)?;
        }
    }
}

impl Connection {
    /// Logs in over a connected stream.
    pub fn open(
        config: &Config,
        stream: Stream,
        interest: Arc<Interest>,
        patience: Patience,
    ) -> Result<Connection, Failure> {
        let progress = Arc::new(Progress::default());
        let login = config.connect_raw(stream, tokio_postgres::NoTls);
        let (client, wire) = drive(login, None, &interest, &progress, patience, |_| Ok(()))?
            .map_err(Connection::failure)?;
        Ok(Connection {
            client,
            wire,
            interest,
            progress,
            prepared: Default::default(),
            lookout: Lookout::default(),
            opened: Instant::now(),
            broken: false,
            heard: Vec::new(),
        })
    }

    /// Sorts the errors of the client: did the server refuse, or is it gone?
    fn failure(error: tokio_postgres::Error) -> Failure {
        match error.code() {
            // It is shutting down, starting up, or has thrown us out.
            Some(code)
                if [
                    SqlState::ADMIN_SHUTDOWN,
                    SqlState::CRASH_SHUTDOWN,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::IDLE_SESSION_TIMEOUT,
                    SqlState::TOO_MANY_CONNECTIONS,
                ]
                .contains(code)
                    || code.code().starts_with("08") =>
            {
                Failure::Broken(message(&error))
            }
            Some(_) => Failure::Refused(error),
            None => Failure::Broken(message(&error)),
        }
    }

    /// `brief` work is answered from the server's memory.
    fn run<T>(
        &mut self,
        brief: bool,
        patience: Patience,
        work: impl AsyncFnOnce(
            &Client,
            &mut [Option<tokio_postgres::Statement>; SLOTS],
        ) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failure> {
        let Connection {
            client,
            wire,
            interest,
            progress,
            prepared,
            lookout,
            heard,
            ..
        } = self;
        let work = work(client, prepared);
        let lookout = brief.then_some(lookout);
        let result = drive(work, lookout, interest, progress, patience, |context| {
            Connection::step(wire, heard, context)
        })
        .and_then(|result| result.map_err(Connection::failure));
        self.broken |= !matches!(result, Ok(_) | Err(Failure::Refused(_)));
        result
    }

    fn step(
        wire: &mut tokio_postgres::Connection<Stream, NoTlsStream>,
        heard: &mut Vec<String>,
        context: &mut Context<'_>,
    ) -> Result<(), String> {
        loop {
            match wire.poll_message(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                    log::debug!(
                        "PostgreSQL says: {}: {}",
                        notice.severity(),
                        notice.message()
                    );
                }
                Poll::Ready(Some(Ok(AsyncMessage::Notification(notification)))) => {
                    heard.push(notification.payload().to_owned());
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Err(message(&error)),
                Poll::Ready(None) => return Err("the connection is closed".to_owned()),
            }
        }
    }

    /// Whether an idle connection still looks alive; reads what the server
    /// said meanwhile, for instance that it shuts down.
    pub fn is_alive(&mut self) -> bool {
        self.look(Duration::ZERO);
        !self.broken
    }

    /// Waits for something to read, no longer than `slice`, and reads it.
    fn look(&mut self, slice: Duration) {
        wait(&self.interest, false, slice);
        if !self.broken && self.interest.readable.load(Relaxed) {
            let mut context = Context::from_waker(Waker::noop());
            self.broken = Connection::step(&mut self.wire, &mut self.heard, &mut context).is_err();
        }
    }

    /// Waits for notifications, no longer than `slice`; tells what they say.
    pub fn listen(&mut self, slice: Duration) -> Result<Vec<String>, Failure> {
        if self.heard.is_empty() {
            self.look(slice);
        }
        if self.broken {
            return Err(Failure::Broken("the listening connection broke".to_owned()));
        }
        Ok(std::mem::take(&mut self.heard))
    }

    /// Asks the server for a sign of life without any statement.
    pub fn ping(&mut self, patience: Patience) -> Result<(), Failure> {
        self.run(false, patience, async |client, _| {
            client.check_connection().await
        })
    }

    /// Never to be used again.
    pub fn retire(&mut self) {
        self.broken = true;
    }

    /// Whether it can be used again.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Executes a statement in a transaction of its own, prepared once per
    /// connection: one round trip.
    pub fn query(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter],
        patience: Patience,
    ) -> Result<Answer, Failure> {
        self.run(statement.brief(), patience, async |client, prepared| {
            let slot = &mut prepared[statement.slot];
            if slot.is_none() {
                *slot = Some(
                    client
                        .prepare_typed(&statement.text, &statement.types)
                        .await?,
                );
            }
            // The slot was filled just above.
            let statement = slot.as_ref().unwrap();
            let parameters = parameters.iter().copied();
            all(client.query_raw(statement, parameters).await?).await
        })
    }

    /// The same without preparing, for poolers that move us from server
    /// connection to server connection.
    pub fn query_unprepared(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter],
        patience: Patience,
    ) -> Result<Answer, Failure> {
        let typed = parameters
            .iter()
            .copied()
            .zip(statement.types.iter().cloned());
        self.run(statement.brief(), patience, async |client, _| {
            all(client.query_typed_raw(&statement.text, typed).await?).await
        })
    }

    /// Executes statements without parameters, in one transaction unless they
    /// say otherwise.
    pub fn batch(&mut self, sql: &str, patience: Patience) -> Result<(), Failure> {
        self.run(false, patience, async |client, _| {
            client.batch_execute(sql).await
        })
    }
}

/// The server's message, or the client's with its cause.
pub(super) fn message(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    if let Some(error) = error.as_db_error() {
        let mut text = error.message().to_owned();
        for more in [error.detail(), error.hint()].into_iter().flatten() {
            text.push_str(". ");
            text.push_str(more);
        }
        return text;
    }
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
