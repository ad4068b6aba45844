//! Reasons why a statement returned no answer, and the errors they turn into.

use super::tls::Mode;
use crate::error::Error;
use std::error::Error as _;
use std::io;
use tokio_postgres::error::DbError;

/// Why a statement returned no rows.
#[derive(Debug)]
pub enum Failure {
    /// The server refused the statement, which therefore did nothing.
    Server(ServerError),
    /// The connection broke: whether the statement was executed is unknown.
    Broken(String),
    /// The server is there, but offers no connection as secure as the configuration demands.
    Insecure(String),
    /// The server asks for a password, and there is none.
    NoPassword,
    /// The time is up: whether the statement was or will be executed is unknown.
    TimedOut,
    /// The caller was interrupted: unknown too.
    Stopped(Error),
}

/// An error from the server.
#[derive(Debug, Default)]
pub struct ServerError {
    /// The five characters of `SQLSTATE`.
    pub sqlstate: String,
    /// Its message, with detail and hint.
    pub message: String,
    /// The constraint that would be violated, if any.
    pub constraint: String,
}

impl ServerError {
    /// Whether the error is about the session rather than the statement: another session may work.
    pub(super) fn ends_session(&self) -> bool {
        // A plan prepared for another table (feature_not_supported); a prepared statement that is
        // unknown, or whose name another client has used.
        ["0A000", "26000", "42P05"].contains(&self.sqlstate.as_str()) || self.is_read_only()
    }

    /// Whether the session cannot write: a standby, or a demoted primary.
    pub(super) fn is_read_only(&self) -> bool {
        self.sqlstate == "25006"
    }

    /// Whether the table, or a column of it, is missing: `undefined_table`, `undefined_column`.
    pub(super) fn lacks_table(&self) -> bool {
        ["42P01", "42703"].contains(&self.sqlstate.as_str())
    }

    /// The error for a statement that the server refused.
    pub(super) fn refused(self) -> Error {
        let lacks_table = self.lacks_table();
        let said = self.message;
        Error::Sql {
            unknown: false,
            message: match self.sqlstate.as_str() {
                _ if lacks_table => format!(
                    "{said}; the table is missing or not up to date: score.distlock.init() \
                     creates or upgrades it, or an administrator with the output of \
                     `python -m score.distlock schema --grant ROLE`"
                ),
                "25006" => format!(
                    "{said}; it is a standby, or its sessions are read-only by default: \
                     sqlalchemy.url needs the primary, or all hosts of the cluster"
                ),
                "42501" if said.contains("row-level security") => {
                    format!("{said}; a policy on the table does not let this role write it")
                }
                "42501" => format!(
                    "{said}; `python -m score.distlock schema --grant ROLE` prints what an \
                     administrator must grant"
                ),
                "55P03" | "57014" => format!(
                    "{said}; look for who keeps the table locked (pg_locks), or for a \
                     lock_timeout or statement_timeout of the role that is too short"
                ),
                _ => said,
            },
            sqlstate: self.sqlstate,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Broken(error.to_string())
    }
}

impl From<ServerError> for Failure {
    /// Tells a refusal from a server that is gone.
    fn from(server_error: ServerError) -> Failure {
        match server_error.sqlstate.as_str() {
            // admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout,
            // idle_in_transaction_session_timeout, transaction_timeout, too_many_connections:
            // the server is shutting down, starting up, or has disconnected us.
            "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" | "53300" => {
                Failure::Broken(server_error.message)
            }
            // connection_exception and the like; PgBouncer's own errors are among them.
            state if state.starts_with("08") => Failure::Broken(server_error.message),
            _ => Failure::Server(server_error),
        }
    }
}

impl From<&tokio_postgres::Error> for Failure {
    fn from(error: &tokio_postgres::Error) -> Failure {
        let Some(said) = error.as_db_error() else {
            let text = error.to_string();
            let unsent = ["error serializing", "error encoding"];
            if unsent.iter().any(|start| text.starts_with(start)) {
                return Failure::Server(ServerError {
                    // program_limit_exceeded: the value is too large for the protocol.
                    sqlstate: "54000".to_owned(),
                    message: format!("the statement cannot be sent: {}", reason(error)),
                    ..ServerError::default()
                });
            }
            return Failure::Broken(reason(error));
        };
        Failure::from(ServerError {
            sqlstate: said.code().code().to_owned(),
            message: words(said),
            constraint: said.constraint().unwrap_or_default().to_owned(),
        })
    }
}

/// What to change when a login fails.
const TLS: &str = "if the server demands TLS, put sslmode=require into sqlalchemy.url";
const CERTIFICATE: &str = "name a certificate and its key with sslcert and sslkey";

impl Failure {
    /// Why a login failed.
    pub(super) fn of_login(error: &tokio_postgres::Error) -> Failure {
        let reason = reason(error);
        let source = error.source().and_then(|source| source.downcast_ref());
        let inner = source.and_then(io::Error::get_ref);
        if reason.ends_with("password missing") {
            Failure::NoPassword
        } else if inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
            || reason.starts_with("authentication error")
            || reason.contains("require_auth does not allow")
            || reason.ends_with("does not support TLS")
        {
            Failure::Insecure(reason)
        } else {
            Failure::from(error)
        }
    }

    /// The same, with what was tried and what to change.
    pub(super) fn at_login(self, mode: Mode, plain: bool) -> Failure {
        let advise = |mut server_error: ServerError, advice: &str| {
            server_error.message = format!("{}; {advice}", server_error.message);
            Failure::Server(server_error)
        };
        match self {
            // invalid_authorization_specification
            Failure::Server(server_error) if server_error.sqlstate == "28000" => {
                if plain && mode == Mode::Disable {
                    advise(server_error, TLS)
                } else if !plain && server_error.message.contains("certificate") {
                    advise(server_error, CERTIFICATE)
                } else {
                    Failure::Server(server_error)
                }
            }
            failure => failure,
        }
    }

    /// Whether the failure may be about how the connection is secured.
    pub(super) fn is_about_the_login(&self) -> bool {
        match self {
            Failure::Server(server_error) => server_error.sqlstate.starts_with("28"),
            Failure::Insecure(_) => true,
            Failure::Broken(reason) => reason.starts_with("error performing TLS handshake"),
            Failure::NoPassword | Failure::TimedOut | Failure::Stopped(_) => false,
        }
    }

    /// Combines this failure with that of the other way of connecting.
    pub(super) fn and(self, then: Failure) -> Failure {
        let join = |mut server_error: ServerError, other: &str| {
            if server_error.message != other {
                server_error.message = format!("{}; the other way: {other}", server_error.message);
            }
            Failure::Server(server_error)
        };
        match (self, then) {
            (Failure::Server(first), Failure::Server(server_error)) => {
                join(server_error, &first.message)
            }
            (Failure::Server(server_error), Failure::Insecure(other) | Failure::Broken(other))
            | (Failure::Insecure(other) | Failure::Broken(other), Failure::Server(server_error)) => {
                join(server_error, &other)
            }
            (_, then) => then,
        }
    }
}

/// The server's message with detail and hint.
fn words(said: &DbError) -> String {
    let words = [Some(said.message()), said.detail(), said.hint()];
    let words: Vec<&str> = words.into_iter().flatten().collect();
    words.join(". ")
}

/// The server's message, or the library's with its cause.
pub(super) fn reason(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(said), _) => words(said),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}
