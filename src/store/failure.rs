//! Why a statement brought no answer.

use crate::error::Error;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use std::io;

/// Why a statement brought no rows.
#[derive(Debug)]
pub enum Failure {
    /// The server refused the statement, which therefore did nothing.
    Refused(Refusal),
    /// The connection broke: whether the statement was executed is unknown.
    Broken(String),
    /// The patience ended: whether the statement was or will be executed is unknown.
    TooSlow,
    /// The caller was interrupted: unknown too.
    Stopped(Error),
}

/// What the server said.
#[derive(Debug, Default)]
pub struct Refusal {
    /// The five characters of `SQLSTATE`.
    pub sqlstate: String,
    /// Its words, with detail and hint.
    pub message: String,
    /// The constraint that would be violated, if it is about one.
    pub constraint: String,
}

impl Refusal {
    /// What an error or a notice says.
    pub(super) fn parse(mut fields: ErrorFields) -> Refusal {
        let mut sqlstate = String::new();
        let mut constraint = String::new();
        let [mut message, mut detail, mut hint] = [const { None }; 3];
        // The fields are documented under "Error and Notice Message Fields".
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => sqlstate = text,
                b'n' => constraint = text,
                b'M' => message = Some(text),
                b'D' => detail = Some(text),
                b'H' => hint = Some(text),
                _ => {}
            }
        }
        Refusal::new(sqlstate, [message, detail, hint], constraint)
    }

    fn new(sqlstate: String, said: [Option<String>; 3], constraint: String) -> Refusal {
        let said: Vec<String> = said.into_iter().flatten().collect();
        Refusal {
            sqlstate,
            message: said.join(". "),
            constraint,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Broken(error.to_string())
    }
}

impl From<Refusal> for Failure {
    /// Did the server refuse, or is it gone?
    fn from(refusal: Refusal) -> Failure {
        match refusal.sqlstate.as_str() {
            // admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout,
            // too_many_connections: it is shutting down, starting up, or has thrown us out.
            "57P01" | "57P02" | "57P03" | "57P05" | "53300" => Failure::Broken(refusal.message),
            // connection_exception and the like; PgBouncer's own errors are among them.
            state if state.starts_with("08") => Failure::Broken(refusal.message),
            _ => Failure::Refused(refusal),
        }
    }
}

impl From<&tokio_postgres::Error> for Failure {
    fn from(error: &tokio_postgres::Error) -> Failure {
        let Some(said) = error.as_db_error() else {
            return Failure::Broken(reason(error));
        };
        let words = [Some(said.message()), said.detail(), said.hint()];
        let words = words.map(|text| text.map(str::to_owned));
        let constraint = said.constraint().unwrap_or_default().to_owned();
        Failure::from(Refusal::new(
            said.code().code().to_owned(),
            words,
            constraint,
        ))
    }
}

/// The library's message with its cause.
pub(super) fn reason(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
