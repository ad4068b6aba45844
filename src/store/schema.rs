//! Creates and upgrades the table, once, even if many processes start together.

use super::budget::Budget;
use super::failure::{Failure, ServerError};
use super::session::Session;
use super::sql::{Schema, Sql, Statements, creation, grants, quote};
use crate::engine::Table;
use crate::error::Error;
use std::time::Duration;

/// The key of the upgrade's advisory lock: the first eight letters of "distlock".
const KEY: u64 = u64::from_be_bytes(*b"distlock");

/// The SQL that an administrator has to run, with `python -m score.distlock schema`; grants the
/// user `role`, if known, the right to work with the table.
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
    database: String,
    /// When the server was started.
    started: String,
    role: String,
    /// The setting of that name.
    search_path: String,
    complete: bool,
    /// It exists, but is not a table.
    other_kind: bool,
    /// Owners that are not trusted.
    strangers: Vec<String>,
    /// Triggers, rules and policies that are not ours.
    additions: Vec<String>,
}

impl State {
    fn place(&self) -> Schema {
        Schema::new(self.schema.as_deref())
    }

    /// We lack the rights to complete it.
    fn not_for_us(&self, server_error: &ServerError) -> Failure {
        let sql = schema_sql(self.schema.as_deref(), Some(&self.role));
        let (path, role) = (&self.search_path, &self.role);
        let why = if server_error.sqlstate == "3F000" {
            format!("there is no schema in its search path ({path}) that it may use")
        } else {
            server_error.message.clone()
        };
        Failure::Stopped(Error::Sql {
            sqlstate: server_error.sqlstate.clone(),
            unknown: false,
            message: format!(
                "the table _score_distlock is missing or not up to date, and the user {role:?} may \
                 not change that: {why}. An administrator must run:\n\n{sql}"
            ),
        })
    }

    /// An error if the session does not have the search path that its options ask for.
    fn seen_as_asked(self, options: Option<&str>) -> Result<State, Failure> {
        match options.and_then(search_path) {
            Some(asked) if asked != self.search_path => {
                Err(Failure::Stopped(Error::Configuration(format!(
                    "the options in sqlalchemy.url, connect_args or PGOPTIONS ask for search_path = \
                     {asked}, and the session has {}: a pooler in between ignores options, and the \
                     locks would be in another table. Leave them out, and have an administrator \
                     set it with ALTER ROLE … IN DATABASE … SET search_path = …",
                    self.search_path
                ))))
            }
            _ => Ok(self),
        }
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
            let intended = if self.strangers.len() == 1 {
                format!("set table_owner = {owner}")
            } else {
                "let one role own all of it, and set table_owner to that".to_owned()
            };
            format!(
                "{table}, its sequences or the functions of its triggers belong to {}, and so do \
                 the tokens of all holds; what {owner:?} attaches to the table is executed as \
                 {:?}.{additions} If that is intended, {intended}; if not, ask an administrator \
                 to drop the triggers, or the table",
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
    budget: Budget,
) -> Result<State, Failure> {
    // The statement does not name the schema: it looks that up.
    let statements = Statements::new(&Schema::new(None));
    let answer = connection.query_unprepared(&statements[Sql::Check], &[&table_owner], budget)?;
    let row = answer
        .rows
        .first()
        .ok_or_else(|| Failure::Broken("the catalogue gave no answer".to_owned()))?;
    let state = || {
        Ok(State {
            schema: row.get("schema")?,
            database: row.get("database")?,
            started: row.get("started")?,
            role: row.get("role")?,
            search_path: row.get("search_path")?,
            complete: row.get("complete")?,
            other_kind: row.get("other_kind")?,
            strangers: row.get("strangers")?,
            additions: row.get("additions")?,
        })
    };
    state().map_err(Failure::Stopped)?.trusted()
}

/// Makes sure that the table is there and complete, and that only trusted roles own it; returns
/// which one it is. Takes no lock if nothing is missing.
pub fn ensure(
    connection: &mut Session,
    table_owner: Option<&str>,
    options: Option<&str>,
    budget: Budget,
) -> Result<(Schema, Table), Failure> {
    let server = server(connection, budget)?;
    let state = complete(connection, table_owner, options, budget)?;
    let schema = state.schema.as_deref().unwrap_or_default();
    // Where nothing better is known, two servers were hardly started at the same microsecond.
    let server = server.unwrap_or(state.started.clone());
    let table = Table::new(&format!("{server}/{:?}/{schema:?}", state.database));
    Ok((state.place(), table))
}

/// Which server this is, if we may know, and it does.
fn server(connection: &mut Session, budget: Budget) -> Result<Option<String>, Failure> {
    let statements = Statements::new(&Schema::new(None));
    let answer = match connection.query_unprepared(&statements[Sql::Server], &[], budget) {
        // Not what says that the server or an administrator ends the session or the statement.
        Err(Failure::Server(server_error)) if !server_error.sqlstate.starts_with("57") => {
            return Ok(None);
        }
        answer => answer?,
    };
    let row = answer.rows.first();
    row.map_or(Ok(None), |row| row.get("server"))
        .map_err(Failure::Stopped)
}

fn complete(
    connection: &mut Session,
    table_owner: Option<&str>,
    options: Option<&str>,
    budget: Budget,
) -> Result<State, Failure> {
    let state = check(connection, table_owner, budget)?.seen_as_asked(options)?;
    if state.complete {
        return Ok(state);
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let polite = attempts == 1;
        let upgraded = if connection.is_ours(budget)? {
            upgrade(connection, table_owner, polite, budget)
        } else {
            upgrade_at_once(connection, table_owner, &state.place(), polite, budget)
        };
        match upgraded {
            // A client that does not know our advisory lock, such as 0.2.5's create_all(), was
            // creating the table at the same moment.
            Err(Failure::Server(server_error))
                if attempts < 10
                    && ["23505", "42P07", "42701"].contains(&server_error.sqlstate.as_str()) =>
            {
                connection.batch("ROLLBACK", budget)?;
            }
            // 55P03, lock_not_available: another transaction uses the table. We do not queue for an
            // exclusive lock, which would block everybody.
            Err(Failure::Server(server_error))
                if server_error.sqlstate == "55P03" && !budget.over() =>
            {
                connection.batch("ROLLBACK", budget)?;
                budget
                    .pause(Duration::from_millis(200))
                    .map_err(Failure::Stopped)?;
            }
            // insufficient_privilege; or invalid_schema_name: there is no schema it may use.
            Err(Failure::Server(server_error))
                if ["42501", "3F000"].contains(&server_error.sqlstate.as_str()) =>
            {
                return Err(state.not_for_us(&server_error));
            }
            Err(Failure::Server(server_error)) => {
                return Err(Failure::Stopped(server_error.refused()));
            }
            result => return result,
        }
    }
}

/// One transaction. The first attempt is `polite` and takes the advisory lock: of many processes
/// starting together one does the work, and the others find it done. Anybody can hold that lock, so
/// later attempts skip it: if two create the same things at once, one gets an error and repeats.
fn upgrade(
    connection: &mut Session,
    table_owner: Option<&str>,
    polite: bool,
    budget: Budget,
) -> Result<State, Failure> {
    connection.batch(&format!("BEGIN; {}", start(polite)), budget)?;
    let mut state = check(connection, table_owner, budget)?;
    if !state.complete {
        // The table may be in any schema of the search path; create what is missing in the same
        // one.
        connection.batch(&creation(&state.place()), budget)?;
        // Another user may have created their own table at the same moment.
        state = check(connection, table_owner, budget)?;
    }
    connection.batch("COMMIT", budget)?;
    Ok(state)
}

/// How the transaction begins. Only `budget` limits it, not the role's settings: between two
/// messages the network may take longer than those allow. Older servers do not know all of them.
fn start(polite: bool) -> String {
    let lock = format!("SELECT pg_catalog.pg_advisory_xact_lock({KEY});");
    let lock = if polite { lock.as_str() } else { "" };
    format!(
        "SET LOCAL lock_timeout TO '2s';
        SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings
        WHERE name OPERATOR(pg_catalog.=) ANY (
            ARRAY['idle_in_transaction_session_timeout', 'transaction_timeout']::pg_catalog.text[]
        );
        {lock}"
    )
}

/// The same in one message, which is a transaction too: a pooler may give us the session for no
/// longer. If others do it at the same moment, most of it finds nothing left to do.
fn upgrade_at_once(
    connection: &mut Session,
    table_owner: Option<&str>,
    place: &Schema,
    polite: bool,
    budget: Budget,
) -> Result<State, Failure> {
    let sql = format!("{} {}", start(polite), creation(place));
    connection.batch(&sql, budget)?;
    check(connection, table_owner, budget)
}

/// The search path that the server's command line options ask for, if any. Parsed as the server
/// does: words are separated by spaces, and a backslash makes a space part of a word.
fn search_path(options: &str) -> Option<String> {
    let mut words = vec![String::new()];
    let mut letters = options.chars();
    while let Some(letter) = letters.next() {
        if letter.is_ascii_whitespace() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.extend(if letter == '\\' {
                letters.next()
            } else {
                Some(letter)
            });
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut found = None;
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
            Some("") => words.next()?,
            Some(setting) => setting.to_owned(),
            None => continue,
        };
        let (name, value) = setting.split_once('=')?;
        if name.replace('-', "_").eq_ignore_ascii_case("search_path") {
            found = Some(value.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_path_among_the_options() {
        for (options, expected) in [
            ("-csearch_path=locks", Some("locks")),
            ("-c search_path=a,b -c geqo=off", Some("a,b")),
            ("--search-path=a --Search_Path=b", Some("b")),
            (r"-c search_path=a,\ b", Some("a, b")),
            (r"-csearch_path=\\", Some("\\")),
            ("-cgeqo=off", None),
            ("-c", None),
            ("", None),
        ] {
            assert_eq!(search_path(options).as_deref(), expected, "{options}");
        }
    }

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
