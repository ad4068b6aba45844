//! Creating and upgrading the table: once, whoever and however many start together.

use super::failure::Failure;
use super::patience::Patience;
use super::session::Session;
use super::sql::{Schema, Sql, Statements, creation, grants, quote};
use super::statements::refused;
use crate::error::Error;
use std::time::Duration;

/// The advisory lock of the upgrade: the first eight letters of "distlock".
const KEY: u64 = u64::from_be_bytes(*b"distlock");

/// What an administrator has to run, with `python -m score.distlock schema`:
/// for the user `role`, if it is known who is going to work with the table.
#[must_use]
pub fn schema_sql(schema: Option<&str>, role: Option<&str>) -> String {
    let place = Schema::new(schema);
    let mut sql = creation(&place);
    if let Some(role) = role.map(quote) {
        sql.push_str(&grants(&place, schema, &role));
    }
    sql
}

/// What the catalogues say about the table.
struct State {
    schema: Option<String>,
    role: String,
    complete: bool,
    /// It is no table.
    other_kind: bool,
    /// Owners who are not to be trusted.
    strangers: Vec<String>,
    /// Triggers, rules and policies that are not ours.
    additions: Vec<String>,
}

impl State {
    fn place(&self) -> Schema {
        Schema::new(self.schema.as_deref())
    }

    /// An error unless the table may be used.
    fn trusted(self) -> Result<State, Failure> {
        let schema = self.schema.as_deref().unwrap_or_default();
        let table = format!("the table {schema:?}._score_distlock");
        let why = if self.other_kind {
            format!("{table} is not a table but a view or something else")
        } else if let Some(owner) = self.strangers.first() {
            let additions = if self.additions.is_empty() {
                String::new()
            } else {
                format!(" On it: {}.", self.additions.join(", "))
            };
            format!(
                "{table}, its sequences or the functions of its triggers belong to {}, and so do \
                 the tokens of all holds; what {owner:?} attaches to the table is executed as \
                 {:?}.{additions} If that is intended, set table_owner = {owner}; if not, ask \
                 an administrator to drop the table",
                self.strangers.join(", "),
                self.role,
            )
        } else {
            return Ok(self);
        };
        Err(Failure::Stopped(Error::Configuration(why)))
    }
}

fn check(
    connection: &mut Session,
    table_owner: Option<&str>,
    patience: Patience,
) -> Result<State, Failure> {
    // No statement of it names the schema: it finds it out.
    let statements = Statements::new(&Schema::new(None));
    let answer = connection.query_unprepared(&statements[Sql::Check], &[&table_owner], patience)?;
    let row = answer
        .rows
        .first()
        .ok_or_else(|| Failure::Broken("the catalogue gave no answer".to_owned()))?;
    let state = || {
        Ok(State {
            schema: row.get("schema")?,
            role: row.get("role")?,
            complete: row.get("complete")?,
            other_kind: row.get("other_kind")?,
            strangers: row.get("strangers")?,
            additions: row.get("additions")?,
        })
    };
    state().map_err(Failure::Stopped)?.trusted()
}

/// Makes sure that the table is there and complete, and belongs to nobody else; tells where
/// it is. Takes no lock if nothing is missing.
pub fn ensure(
    connection: &mut Session,
    table_owner: Option<&str>,
    patience: Patience,
) -> Result<Schema, Failure> {
    let state = check(connection, table_owner, patience)?;
    if state.complete {
        return Ok(state.place());
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let polite = attempts == 1;
        let upgraded = if connection.is_ours(patience)? {
            upgrade(connection, table_owner, polite, patience)
        } else {
            upgrade_at_once(connection, table_owner, &state.place(), polite, patience)
        };
        match upgraded {
            // Somebody who does not know our advisory lock, such as 0.2.5's
            // create_all(), was creating the table at the same moment.
            Err(Failure::Refused(refusal))
                if attempts < 10
                    && ["23505", "42P07", "42701"].contains(&refusal.sqlstate.as_str()) =>
            {
                connection.batch("ROLLBACK", patience)?;
            }
            // 55P03, lock_not_available: somebody works with the table. We do
            // not queue up with an exclusive lock, which would block everybody.
            Err(Failure::Refused(refusal)) if refusal.sqlstate == "55P03" && !patience.over() => {
                connection.batch("ROLLBACK", patience)?;
                patience
                    .pause(Duration::from_millis(200))
                    .map_err(Failure::Stopped)?;
            }
            // 42501 is insufficient_privilege.
            Err(Failure::Refused(refusal)) if refusal.sqlstate == "42501" => {
                let sql = schema_sql(state.schema.as_deref(), Some(&state.role));
                return Err(Failure::Stopped(Error::Sql {
                    sqlstate: "42501".to_owned(),
                    unknown: false,
                    message: format!(
                        "the table _score_distlock is missing or not up to date, and the user \
                         {:?} may not change that ({}). An administrator must run:\n\n{sql}",
                        state.role, refusal.message,
                    ),
                }));
            }
            Err(Failure::Refused(refusal)) => return Err(Failure::Stopped(refused(refusal))),
            result => return result,
        }
    }
}

/// One transaction. The first attempt is `polite` and takes the advisory lock: of many that
/// start together one does it, and the others find it done. Anybody can keep it locked, so
/// later ones do without: two that create the same things at once get an error, and repeat.
fn upgrade(
    connection: &mut Session,
    table_owner: Option<&str>,
    polite: bool,
    patience: Patience,
) -> Result<Schema, Failure> {
    connection.batch(&format!("BEGIN; {}", start(polite)), patience)?;
    let mut state = check(connection, table_owner, patience)?;
    if !state.complete {
        // The table may be in any schema of the search path; what is added
        // belongs beside it.
        connection.batch(&creation(&state.place()), patience)?;
        // Somebody may have created a table of their own at the same moment.
        state = check(connection, table_owner, patience)?;
    }
    connection.batch("COMMIT", patience)?;
    Ok(state.place())
}

/// How the transaction begins.
fn start(polite: bool) -> String {
    let lock = format!("SELECT pg_catalog.pg_advisory_xact_lock({KEY});");
    let lock = if polite { lock.as_str() } else { "" };
    format!("SET LOCAL lock_timeout TO '2s'; {lock}")
}

/// The same in one message, which is a transaction too: a pooler may give us the session for
/// no longer. If others do it at the same moment, nothing is left to do for most of it.
fn upgrade_at_once(
    connection: &mut Session,
    table_owner: Option<&str>,
    place: &Schema,
    polite: bool,
    patience: Patience,
) -> Result<Schema, Failure> {
    let sql = format!("{} {}", start(polite), creation(place));
    connection.batch(&sql, patience)?;
    Ok(check(connection, table_owner, patience)?.place())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_sql_grants_to_the_quoted_role() {
        let sql = schema_sql(Some("s"), Some("we\"b"));
        assert!(sql.contains("CREATE TABLE IF NOT EXISTS \"s\"._score_distlock"));
        assert!(sql.contains("TO \"we\"\"b\";"));
        assert!(sql.contains("GRANT USAGE ON SCHEMA \"s\" TO \"we\"\"b\";"));
        assert!(!schema_sql(None, None).contains("GRANT"));
    }

    #[test]
    fn without_a_schema_that_of_the_table_is_granted() {
        let sql = schema_sql(None, Some("o'n\\e$"));
        assert!(sql.contains("E'\"o''n\\\\e\\x24\"');"), "{sql}");
    }
}
