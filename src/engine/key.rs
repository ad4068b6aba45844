//! What a token opens.

use super::{Name, Token};
use std::sync::Arc;

/// A table of locks, identified by its server, database and schema.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table(Arc<str>);

impl Table {
    /// The table with this identification, which no other table may have.
    #[must_use]
    pub fn new(identification: &str) -> Table {
        Table(identification.into())
    }
}

/// A token of one lock in one table. Presented for a lock of another name, or in another table, the
/// same token is another key, and opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The table.
    pub table: Table,
    /// The name of the lock.
    pub name: Name,
    /// Proves ownership.
    pub token: Token,
}

impl Key {
    /// This token for a lock of this table.
    #[must_use]
    pub fn new(table: &Table, name: &Name, token: &Token) -> Key {
        Key {
            table: table.clone(),
            name: name.clone(),
            token: token.clone(),
        }
    }

    #[cfg(test)]
    pub(super) fn random() -> Key {
        let name = Name::new("name").unwrap();
        Key::new(&Table::new("table"), &name, &Token::random())
    }

    /// Another token of the same lock.
    #[must_use]
    pub fn with(&self, token: &Token) -> Key {
        Key {
            token: token.clone(),
            ..self.clone()
        }
    }
}
