//! What a statement takes, and what it returns.

use super::failure::reason;
use super::sql::Statement;
use crate::error::{self, Error};
use futures_util::TryStreamExt;
use std::pin::pin;
use tokio_postgres::types::{FromSql, ToSql};
use tokio_postgres::{Client, RowStream};

/// A parameter of a statement.
pub type Parameter<'a> = &'a (dyn ToSql + Sync);

/// What the library returns.
pub type Outcome<T> = Result<T, tokio_postgres::Error>;

/// One row.
pub struct Row(tokio_postgres::Row);

impl Row {
    /// The value in the column of this name.
    pub fn get<'a, T: FromSql<'a>>(&'a self, name: &str) -> error::Result<T> {
        self.0.try_get(name).map_err(|error| Error::Sql {
            // data_exception
            sqlstate: "22000".to_owned(),
            // The statement was executed.
            unknown: true,
            message: format!(
                "the server's answer is not understood: column {name}: {}",
                reason(&error)
            ),
        })
    }
}

/// The result of a statement.
#[derive(Default)]
pub struct Answer {
    /// Its rows.
    pub rows: Vec<Row>,
    /// How many rows it returned or changed.
    pub affected: u64,
    /// The database's clock, if it was asked.
    pub instant: Option<f64>,
}

/// Collects a whole answer.
pub async fn all(stream: RowStream) -> Outcome<Answer> {
    let mut stream = pin!(stream);
    let mut rows = Vec::new();
    while let Some(row) = stream.try_next().await? {
        rows.push(Row(row));
    }
    let affected = stream.rows_affected().unwrap_or_default();
    Ok(Answer {
        rows,
        affected,
        instant: None,
    })
}

/// Executes a statement without preparing it: one round trip.
pub async fn execute(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter<'_>],
) -> Outcome<Answer> {
    let types = statement.types.iter().cloned();
    let typed = parameters.iter().copied().zip(types);
    all(client.query_typed_raw(&statement.text, typed).await?).await
}
