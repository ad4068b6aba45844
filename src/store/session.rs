//! One session with the server: `tokio-postgres`, driven on the calling thread.

use super::answer::{Answer, Outcome, Parameter, all, execute};
use super::budget::Budget;
use super::connector::{Connector, TlsStream};
use super::failure::{Failure, reason};
use super::spin::Spin;
use super::sql::{SLOTS, Schema, Sql, Statement, Statements};
use super::stream::{Channel, Stream};
use crate::error::Error;
use futures_util::future::join;
use socket2::SockAddr;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio_postgres::{AsyncMessage, Client, Config};

/// Why `CockroachDB` does not work.
const NO_ADVISORY_LOCKS: &str = "sqlalchemy.url names a CockroachDB, whose advisory locks do \
    nothing and which has no notifications: processes that wait for a lock would not find out about \
    each other. Use a PostgreSQL";

/// The half of a connection that moves bytes.
type Wire = tokio_postgres::Connection<Stream, TlsStream>;

/// The statements of a session that are prepared.
type Prepared = [Option<tokio_postgres::Statement>; SLOTS];

/// Runs `future` on the calling thread until it is done, the time is up or the caller no longer
/// wants the result. Whenever nothing moves, waits for the socket.
///
/// `step` moves the bytes of an open connection; it fails when the connection ends. The first wait
/// spins, if `spin` is given.
pub fn run<F: Future>(
    future: F,
    channel: &Arc<Channel>,
    budget: Budget,
    mut spin: Option<&mut Spin>,
    mut step: impl FnMut(&mut Context<'_>) -> Result<(), String>,
) -> Result<F::Output, Failure> {
    let mut future = pin!(future);
    let waker = Waker::from(channel.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        channel.take_progress();
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        let stepped = step(&mut context);
        if let Err(reason) = stepped {
            // The future has received what the server said before it hung up.
            return match future.as_mut().poll(&mut context) {
                Poll::Ready(output) => Ok(output),
                Poll::Pending => Err(Failure::Broken(reason)),
            };
        }
        if channel.take_progress() {
            continue;
        }
        if spin.take().is_some_and(|spin| spin.spot(channel)) {
            continue;
        }
        let slice = budget.slice().ok_or(Failure::TimedOut)?;
        if !channel.wait(slice) {
            budget.check().map_err(Failure::Stopped)?;
        }
    }
}

/// Moves all pending bytes, and keeps the notifications that arrive.
fn step(wire: &mut Wire, heard: &mut Vec<String>, context: &mut Context<'_>) -> Result<(), String> {
    loop {
        match wire.poll_message(context) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                let code = notice.code().code();
                log::debug!("PostgreSQL says: {} ({code})", notice.message());
            }
            Poll::Ready(Some(Ok(AsyncMessage::Notification(notification)))) => {
                heard.push(notification.payload().to_owned());
            }
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => return Err(reason(&error)),
            Poll::Ready(None) => return Err("the connection is closed".to_owned()),
        }
    }
}

/// A session, logged in.
pub struct Session {
    /// `None` only while it is being dropped.
    client: Option<Client>,
    wire: Wire,
    channel: Arc<Channel>,
    /// How it was reached.
    pub route: Route,
    prepared: Prepared,
    /// Whether the server process is ours alone, so that what we prepare stays ours; `None` until
    /// we have asked.
    alone: Option<bool>,
    /// The process that logged in. A forked child leaves its parent's session alone.
    process: u32,
    /// When it was opened, for `pool_recycle`.
    pub opened: Instant,
    spin: Spin,
    broken: bool,
    /// A statement was abandoned, and the server may still be executing it.
    unfinished: bool,
    /// The payloads of notifications that have arrived.
    heard: Vec<String>,
}

/// A connected socket, and how to connect another one.
pub struct Line {
    /// The socket.
    pub channel: Arc<Channel>,
    /// The route to the same server.
    pub route: Route,
}

/// The route to a server.
#[derive(Clone)]
pub struct Route {
    /// Its address.
    pub address: SockAddr,
    /// How connections to it are secured.
    pub connector: Connector,
}

impl Session {
    /// Logs in over a connected socket.
    pub fn open(config: &Config, line: Line, budget: Budget) -> Result<Session, Failure> {
        let Line { channel, route } = line;
        let stream = Stream(channel.clone(), route.connector.watch());
        let login = config.connect_raw(stream, route.connector.clone());
        let (client, wire) = run(login, &channel, budget, None, |_| Ok(()))?
            .map_err(|error| Failure::of_login(&error))?;
        if wire.parameter("crdb_version").is_some() {
            return Err(Failure::Stopped(Error::Configuration(
                NO_ADVISORY_LOCKS.into(),
            )));
        }
        Ok(Session {
            client: Some(client),
            wire,
            channel,
            route,
            prepared: [const { None }; SLOTS],
            alone: None,
            process: budget.process,
            opened: Instant::now(),
            spin: Spin::default(),
            broken: false,
            unfinished: false,
            heard: Vec::new(),
        })
    }

    /// Has the client work while the wire moves.
    fn work<T>(
        &mut self,
        only_reads: bool,
        budget: Budget,
        work: impl AsyncFnOnce(&Client, &mut Prepared) -> Outcome<T>,
    ) -> Result<T, Failure> {
        let Some(client) = &self.client else {
            return Err(Failure::Broken("the session has ended".to_owned()));
        };
        let work = work(client, &mut self.prepared);
        self.unfinished = true;
        let spin = only_reads.then_some(&mut self.spin);
        let result = run(work, &self.channel, budget, spin, |context| {
            step(&mut self.wire, &mut self.heard, context)
        });
        self.unfinished = matches!(result, Err(Failure::TimedOut | Failure::Stopped(_)));
        let result = result.and_then(|result| result.map_err(|error| Failure::from(&error)));
        result.inspect_err(|failure| self.note(failure))
    }

    /// Whether a statement was abandoned that the server may still be executing.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// Asks the server over another connection to cancel the current statement, and waits until
    /// that has ended.
    pub fn cancel(&mut self, line: Line, budget: Budget) -> Result<(), Failure> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        let Line { channel, route } = line;
        let request = client.cancel_token();
        let sent = request.cancel_query_raw(Stream(channel.clone(), None), route.connector);
        run(sent, &channel, budget, None, |_| Ok(()))?.map_err(|error| Failure::from(&error))?;
        // A dead connection does not answer this either.
        self.ping(budget.at_most(Duration::from_secs(1)))
    }

    /// Marks the session as broken if the failure ends it.
    fn note(&mut self, failure: &Failure) {
        self.broken |= match failure {
            Failure::Server(server_error) => server_error.ends_session(),
            _ => true,
        };
    }

    /// Whether an idle session still looks alive; reads what the server has sent meanwhile, for
    /// instance that it is shutting down.
    pub fn is_alive(&mut self) -> bool {
        self.look(Duration::ZERO).is_ok()
    }

    /// Reads what has arrived unasked; if no notification is waiting yet, waits for at most
    /// `slice`.
    fn look(&mut self, slice: Duration) -> Result<(), Failure> {
        if self.broken {
            return Err(Failure::Broken("the session has ended".to_owned()));
        }
        let mut context = Context::from_waker(Waker::noop());
        // Something may have come together with the last answer.
        let mut stepped = step(&mut self.wire, &mut self.heard, &mut context);
        let slice = if self.heard.is_empty() {
            slice
        } else {
            Duration::ZERO
        };
        if stepped.is_ok() && self.channel.wait(slice) {
            stepped = step(&mut self.wire, &mut self.heard, &mut context);
        }
        self.broken |= stepped.is_err();
        stepped.map_err(Failure::Broken)
    }

    /// Waits for notifications, no longer than `slice`; returns their payloads.
    pub fn listen(&mut self, slice: Duration) -> Result<Vec<String>, Failure> {
        self.look(slice)?;
        Ok(std::mem::take(&mut self.heard))
    }

    /// Pings the server without a statement.
    pub fn ping(&mut self, budget: Budget) -> Result<(), Failure> {
        self.work(false, budget, async |client, _| {
            client.check_connection().await
        })
    }

    /// Whether it can be used again.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Executes a statement in its own transaction: one round trip. Prepares it once per session if
    /// that is ours alone.
    pub fn query(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter],
        budget: Budget,
    ) -> Result<Answer, Failure> {
        match self.alone {
            None => self.query_first(statement, parameters, budget),
            Some(false) => self.query_unprepared(statement, parameters, budget),
            Some(true) => self.work(statement.only_reads, budget, async |client, prepared| {
                let slot = &mut prepared[statement.slot];
                if let Some(prepared) = slot {
                    let parameters = parameters.iter().copied();
                    return all(client.query_raw(prepared, parameters).await?).await;
                }
                let prepare = client.prepare_typed(&statement.text, &statement.types);
                let executed = execute(client, statement, parameters);
                // Both are sent at once. A statement that cannot be prepared stays unprepared.
                let (answer, prepared) = join(executed, prepare).await;
                *slot = prepared.ok();
                answer
            }),
        }
    }

    /// Executes the first statement, and at the same time asks whether the session is ours alone.
    ///
    /// `tokio-postgres` names statements by a counter per process. A pooler that shares sessions
    /// may, under such a name, execute what another process has prepared. A pooler makes up the
    /// process number it reports at login, since it has no server process yet; PostgreSQL reports
    /// its own.
    fn query_first(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter],
        budget: Budget,
    ) -> Result<Answer, Failure> {
        // The statement names no schema.
        let statements = Statements::new(&Schema::new(None));
        let (answer, alone) = self.work(false, budget, async |client, _| {
            let backend: [Parameter; 1] = [&super::cancel::backend(client)];
            let told = execute(client, &statements[Sql::Whose], &backend);
            let executed = execute(client, statement, parameters);
            let (answer, told) = join(executed, told).await;
            let told = told.ok().and_then(|told| {
                let row = told.rows.first()?;
                Some((row.get("alone").ok()?, row.get("instant").ok()))
            });
            let (alone, instant) = told.unzip();
            let answer = answer.map(|answer| Answer {
                instant: instant.flatten(),
                ..answer
            });
            Ok((answer, alone))
        })?;
        self.alone = alone;
        let answer = answer.map_err(|error| Failure::from(&error));
        answer.inspect_err(|failure| self.note(failure))
    }

    /// Whether the server process is ours alone, rather than shared through a pooler.
    pub fn is_ours(&mut self, budget: Budget) -> Result<bool, Failure> {
        if let Some(alone) = self.alone {
            return Ok(alone);
        }
        // The statement names no schema.
        let statements = Statements::new(&Schema::new(None));
        let backend = self.client.as_ref().and_then(super::cancel::backend);
        let told = self.query_unprepared(&statements[Sql::Whose], &[&backend], budget)?;
        let alone = told.rows.first().map(|row| row.get("alone")).transpose();
        self.alone = alone.map_err(Failure::Stopped)?;
        Ok(self.alone == Some(true))
    }

    /// Executes a statement without preparing it, for a session that is used once.
    pub fn query_unprepared(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter],
        budget: Budget,
    ) -> Result<Answer, Failure> {
        self.work(false, budget, async |client, _| {
            execute(client, statement, parameters).await
        })
    }

    /// Executes statements without parameters, in one transaction unless they say otherwise.
    pub fn batch(&mut self, sql: &str, budget: Budget) -> Result<(), Failure> {
        self.work(false, budget, async |client, _| {
            client.batch_execute(sql).await
        })
    }
}

impl Drop for Session {
    /// Says goodbye if that is possible without waiting: closing the socket alone would not end the
    /// session while a forked child has a copy. In a child, only closes that copy.
    fn drop(&mut self) {
        self.client = None;
        if self.process == std::process::id() {
            let mut context = Context::from_waker(Waker::noop());
            // Without a client, and without an answer to wait for, this sends Terminate.
            let _ = step(&mut self.wire, &mut self.heard, &mut context);
        }
    }
}
