//! Creating and upgrading the table: once, whoever and however many start together.

use super::failure::Failure;
use super::patience::Patience;
use super::session::Session;
use super::sql::{CHECK, SCHEMA};
use super::statements::refused;
use crate::error::Error;
use std::fmt::Write;
use std::time::Duration;

/// The advisory lock of the upgrade: the first eight letters of "distlock".
const KEY: u64 = u64::from_be_bytes(*b"distlock");

/// What an administrator has to run, with `python -m score.distlock schema`:
/// for the user `role`, if it is known who is going to work with the table.
#[must_use]
pub fn schema_sql(schema: Option<&str>, role: Option<&str>) -> String {
    let mut sql = String::new();
    // Writing to a String cannot fail.
    if let Some(schema) = schema {
        let _ = writeln!(sql, "SET search_path TO {};", quote(schema));
    }
    sql.push_str(SCHEMA);
    if let Some(role) = role.map(quote) {
        // Tables can only be seen by those who may use their schema.
        if let Some(schema) = schema.map(quote) {
            let _ = writeln!(sql, "GRANT USAGE ON SCHEMA {schema} TO {role};");
        } else {
            sql.push_str(&GRANT_USAGE.replace("{role}", &literal(&role)));
        }
        let _ = write!(
            sql,
            "GRANT SELECT, INSERT, UPDATE, DELETE ON _score_distlock TO {role};\n\
             GRANT USAGE ON SEQUENCE _score_distlock_id_seq, _score_distlock_fence_seq TO {role};\n"
        );
    }
    sql
}

/// Which schema the table is in, is known once it is there.
const GRANT_USAGE: &str = "\
DO $grant$ BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = '_score_distlock'::regclass),
        {role});
END $grant$;
";

fn literal(text: &str) -> String {
    // With E it is the same whatever standard_conforming_strings says. No
    // dollar, as the text is between dollars.
    let text = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{}'", text.replace('$', "\\x24"))
}

fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

struct State {
    schema: Option<String>,
    role: String,
    complete: bool,
}

fn check(connection: &mut Session, patience: Patience) -> Result<State, Failure> {
    let answer = connection.query_unprepared(&CHECK, &[], patience)?;
    let row = answer
        .rows
        .first()
        .ok_or_else(|| Failure::Broken("the catalogue gave no answer".to_owned()))?;
    let state = || {
        Ok(State {
            schema: row.get("schema")?,
            role: row.get("role")?,
            complete: row.get("complete")?,
        })
    };
    state().map_err(Failure::Stopped)
}

/// Makes sure that the table is there and complete. Takes no lock if it is.
pub fn ensure(connection: &mut Session, patience: Patience) -> Result<(), Failure> {
    let state = check(connection, patience)?;
    if state.complete {
        return Ok(());
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        match upgrade(connection, patience) {
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

/// One transaction under an advisory lock: of many that start together one
/// does it, and the others find it done.
fn upgrade(connection: &mut Session, patience: Patience) -> Result<(), Failure> {
    connection.batch(
        &format!("BEGIN; SELECT pg_advisory_xact_lock({KEY})"),
        patience,
    )?;
    let state = check(connection, patience)?;
    if !state.complete {
        // The table may be in any schema of the search path; what is added
        // belongs beside it.
        let path = state.schema.as_deref().map_or(String::new(), |schema| {
            format!("SET LOCAL search_path TO {};\n", quote(schema))
        });
        connection.batch(
            &format!("SET LOCAL lock_timeout TO '2s';\n{path}{SCHEMA}"),
            patience,
        )?;
    }
    connection.batch("COMMIT", patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_sql_grants_to_the_quoted_role() {
        let sql = schema_sql(Some("s"), Some("we\"b"));
        assert!(sql.starts_with("SET search_path TO \"s\";"));
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
