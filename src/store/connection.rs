//! One connection to the server, driven on the calling thread.

use super::failure::{Failure, Refusal};
use super::patience::Patience;
use super::row::{Columns, Row};
use super::socket::Socket;
use super::sql::{SLOTS, Statement};
use super::wire::Wire;
use postgres_protocol::message::backend::{CommandCompleteBody, Message};
use postgres_protocol::message::frontend::{self, BindError};
use std::io;
use std::time::{Duration, Instant};
use tokio_postgres::types::{IsNull, ToSql, Type};

/// A parameter of a statement.
pub type Parameter<'a> = &'a (dyn ToSql + Sync);

/// What a statement brought.
#[derive(Default)]
pub struct Answer {
    /// Its rows.
    pub rows: Vec<Row>,
    /// How many rows it returned or changed.
    pub affected: u64,
    /// How they look, if the server was asked to describe them.
    columns: Option<Columns>,
    /// The statement was parsed.
    parsed: bool,
}

/// A connection, logged in.
///
/// Dropping it closes the socket and sends nothing, so that a forked child
/// cannot end its parent's session.
pub struct Connection {
    wire: Wire,
    /// The columns of the statements that are prepared.
    prepared: [Option<Columns>; SLOTS],
    /// When it was opened, for `pool_recycle`.
    pub opened: Instant,
    broken: bool,
}

/// The number at the end of what the server says was done, as in `UPDATE 1`.
fn affected(done: &CommandCompleteBody) -> io::Result<u64> {
    let last = done.tag()?.rsplit(' ').next();
    Ok(last.and_then(|last| last.parse().ok()).unwrap_or_default())
}

impl Connection {
    /// A connection over a socket that has logged in.
    pub fn new(socket: Socket) -> Connection {
        Connection {
            wire: Wire::new(socket),
            prepared: [const { None }; SLOTS],
            opened: Instant::now(),
            broken: false,
        }
    }

    /// Whether an idle connection still looks alive; reads what the server
    /// said meanwhile, for instance that it shuts down.
    pub fn is_alive(&mut self) -> bool {
        self.look(Duration::ZERO).is_ok()
    }

    fn look(&mut self, slice: Duration) -> Result<(), Failure> {
        let looked = self.wire.look(slice);
        self.broken |= looked.is_err();
        looked
    }

    /// Waits for notifications, no longer than `slice`; tells what they say.
    pub fn listen(&mut self, slice: Duration) -> Result<Vec<String>, Failure> {
        self.look(slice)?;
        Ok(self.wire.heard())
    }

    /// Asks the server for a sign of life without any statement.
    pub fn ping(&mut self, patience: Patience) -> Result<(), Failure> {
        frontend::sync(&mut self.wire.outbox);
        self.answer(&mut Answer::default(), false, patience)
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
    /// connection: one round trip, also the first time.
    pub fn query(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter],
        patience: Patience,
    ) -> Result<Answer, Failure> {
        let columns = self.prepared[statement.slot].clone();
        self.execute(&statement.name, columns, statement, parameters, patience)
    }

    /// The same without preparing, for poolers that move us from server
    /// connection to server connection.
    pub fn query_unprepared(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter],
        patience: Patience,
    ) -> Result<Answer, Failure> {
        self.execute("", None, statement, parameters, patience)
    }

    /// Executes a statement under this name, which is already prepared if its `columns`
    /// are known.
    fn execute(
        &mut self,
        name: &str,
        columns: Option<Columns>,
        statement: &Statement,
        parameters: &[Parameter],
        patience: Patience,
    ) -> Result<Answer, Failure> {
        let known = columns.is_some();
        if let Err(error) = self.write(name, !known, statement, parameters) {
            self.wire.outbox.clear();
            return Err(Failure::Refused(Refusal {
                // program_limit_exceeded: a value that the protocol has no room for.
                sqlstate: "54000".to_owned(),
                message: format!("the statement cannot be sent: {error}"),
                ..Refusal::default()
            }));
        }
        let mut answer = Answer {
            columns,
            ..Answer::default()
        };
        let result = self.answer(&mut answer, statement.brief(), patience);
        // It is prepared, whether executing it succeeded or not.
        if answer.parsed && !name.is_empty() {
            self.prepared[statement.slot].clone_from(&answer.columns);
        }
        result.map(|()| answer)
    }

    fn write(
        &mut self,
        name: &str,
        parse: bool,
        statement: &Statement,
        parameters: &[Parameter],
    ) -> Result<(), Box<dyn std::error::Error + Sync + Send>> {
        let outbox = &mut self.wire.outbox;
        if parse {
            let types = statement.types.iter().map(Type::oid);
            frontend::parse(name, &statement.text, types, outbox)?;
            frontend::describe(b'S', name, outbox)?;
        }
        let values = parameters.iter().zip(&statement.types);
        // 1 is the binary format.
        let bound = frontend::bind(
            "",
            name,
            [1],
            values,
            |(value, kind), bytes| {
                Ok(match value.to_sql_checked(kind, bytes)? {
                    IsNull::Yes => postgres_protocol::IsNull::Yes,
                    IsNull::No => postgres_protocol::IsNull::No,
                })
            },
            [1],
            outbox,
        );
        bound.map_err(|error| match error {
            BindError::Conversion(error) => error,
            BindError::Serialization(error) => error.into(),
        })?;
        frontend::execute("", 0, outbox)?;
        frontend::sync(outbox);
        Ok(())
    }

    /// Executes statements without parameters, in one transaction unless they
    /// say otherwise.
    pub fn batch(&mut self, sql: &str, patience: Patience) -> Result<(), Failure> {
        frontend::query(sql, &mut self.wire.outbox)?;
        self.answer(&mut Answer::default(), false, patience)
    }

    /// Sends what is in the outbox and receives the answer, as far as it comes.
    fn answer(
        &mut self,
        answer: &mut Answer,
        brief: bool,
        patience: Patience,
    ) -> Result<(), Failure> {
        let mut refusal = None;
        let end = loop {
            let step = self
                .wire
                .receive(brief, patience)
                .and_then(|message| Connection::understand(message, answer, &mut refusal));
            match step {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        self.broken |= end.is_err();
        let result = match (refusal, end) {
            // Whatever the server said, the caller does not want to go on.
            (_, Err(Failure::Stopped(error))) => Err(Failure::Stopped(error)),
            // Also if the server hung up after it.
            (Some(refusal), _) => Err(Failure::from(refusal)),
            (None, end) => end,
        };
        // A statement that is there and was not described cannot be used: begin anew.
        self.broken |= answer.parsed && answer.columns.is_none();
        self.broken |= matches!(result, Err(Failure::Broken(_)));
        result
    }

    /// One message of an answer; `true` if it was the last.
    fn understand(
        message: Message,
        answer: &mut Answer,
        refusal: &mut Option<Refusal>,
    ) -> Result<bool, Failure> {
        match message {
            Message::ParseComplete => answer.parsed = true,
            Message::RowDescription(body) => {
                answer.columns = Some(Columns::parse(&body)?);
            }
            Message::DataRow(body) => {
                let columns = answer.columns.clone().unwrap_or_default();
                answer.rows.push(Row::new(columns, body));
            }
            Message::CommandComplete(body) => {
                answer.affected = affected(&body)?;
            }
            Message::ErrorResponse(body) => *refusal = Some(Refusal::parse(body.fields())),
            Message::ReadyForQuery(_) => return Ok(true),
            Message::NoData => answer.columns = Some(Columns::default()),
            Message::BindComplete
            | Message::ParameterDescription(_)
            | Message::EmptyQueryResponse => {}
            _ => {
                return Err(Failure::Broken(
                    "an answer that nobody asked for".to_owned(),
                ));
            }
        }
        Ok(false)
    }
}
