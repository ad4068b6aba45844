//! Rows of an answer.

use crate::error::{Error, Result};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, RowDescriptionBody};
use std::sync::Arc;
use tokio_postgres::types::{FromSql, Type};

/// The columns of a statement's rows: their names and types.
#[derive(Clone, Debug, Default)]
pub struct Columns(Arc<[(String, Type)]>);

impl Columns {
    /// As the server describes them.
    pub(super) fn parse(description: &RowDescriptionBody) -> std::io::Result<Columns> {
        let columns: Vec<(String, Type)> = description
            .fields()
            .map(|field| {
                let kind = Type::from_oid(field.type_oid()).unwrap_or(Type::UNKNOWN);
                Ok((field.name().to_owned(), kind))
            })
            .collect()?;
        Ok(Columns(columns.into()))
    }
}

/// One row.
pub struct Row {
    columns: Columns,
    body: DataRowBody,
}

impl Row {
    pub(super) fn new(columns: Columns, body: DataRowBody) -> Row {
        Row { columns, body }
    }

    /// The value in the column of this name.
    pub fn get<'a, T: FromSql<'a>>(&'a self, name: &str) -> Result<T> {
        self.find(name).map_err(|reason| Error::Sql {
            // data_exception
            sqlstate: "22000".to_owned(),
            // The statement was executed.
            unknown: true,
            message: format!("the server's answer is not understood: column {name}: {reason}"),
        })
    }

    fn find<'a, T: FromSql<'a>>(
        &'a self,
        name: &str,
    ) -> std::result::Result<T, Box<dyn std::error::Error + Sync + Send>> {
        let mut columns = self.columns.0.iter();
        let position = columns.position(|(column, _)| column == name);
        let position = position.ok_or("it is missing")?;
        let kind = &self.columns.0[position].1;
        if !T::accepts(kind) {
            return Err(format!("it is of the type {kind}").into());
        }
        let range = self.body.ranges().nth(position)?.ok_or("it is not sent")?;
        let bytes = range.map(|range| &self.body.buffer()[range]);
        T::from_sql_nullable(kind, bytes)
    }
}
