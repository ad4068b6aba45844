//! Every SQL statement of the library, by name. Nothing else holds SQL.
//!
//! Each statement has its own file, with its guarantees on top. Common parts are fragments, filled
//! in here: `{name}`, or `{name argument}` for those that contain `{argument}`. See [`FRAGMENTS`].
//!
//! Nothing in them is looked up along the search path: a user who may create objects in one of its
//! schemas could add an operator or function that matches better than the system's. `{=}` is
//! `OPERATOR(pg_catalog.=)`, and so for all operators. In that form all operators have the same
//! precedence and associate left to right, so grouping needs parentheses. Functions and types are
//! schema-qualified. Some SQL keywords imply an unqualified operator: `IN`, `BETWEEN`, `LIKE`,
//! `NULLIF`, `IS DISTINCT FROM`, `CASE x WHEN`, `USING`. They are not used. A test checks every
//! word.

use tokio_postgres::types::Type;

/// A statement and the types of its parameters.
#[derive(Debug)]
pub struct Statement {
    /// Its name in the source.
    pub title: &'static str,
    /// The text, with `$n` parameters.
    pub text: String,
    /// The types of `$1`, `$2`, ….
    pub types: Vec<Type>,
    /// Its position in a session's list of prepared statements.
    pub slot: usize,
    /// Whether it writes nothing.
    pub only_reads: bool,
}

/// The table's schema, as statements name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The schema and a dot, or nothing where the search path decides.
    prefix: String,
}

impl Schema {
    /// The schema of this name; without one the search path decides.
    #[must_use]
    pub fn new(name: Option<&str>) -> Schema {
        Schema {
            prefix: name.map_or(String::new(), |name| format!("{}.", quote(name))),
        }
    }

    /// The object `name` in the schema, as the text of a literal.
    fn named(&self, name: &str) -> String {
        literal(&format!("{}{name}", self.prefix))
    }

    /// What `{part}` expands to, if it concerns the schema.
    fn part(&self, part: &str) -> Option<String> {
        Some(match part {
            "schema" => self.prefix.clone(),
            "table" => format!("{}_score_distlock", self.prefix),
            "name" => self.named("_score_distlock"),
            "oid" => format!(
                "{}::pg_catalog.regclass::pg_catalog.oid",
                self.named("_score_distlock")
            ),
            "fences" => format!(
                "{}::pg_catalog.regclass",
                self.named("_score_distlock_fence_seq")
            ),
            _ => return None,
        })
    }
}

/// A text as a literal that means the same whatever `standard_conforming_strings` is, and has no
/// dollar sign, which would look like a parameter or end a dollar quote.
pub(super) fn literal(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{}'", text.replace('$', "\\x24"))
}

/// A name as a quoted identifier.
pub(super) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// What `{name}` and `{name argument}` in a statement or a fragment expand to.
const FRAGMENTS: &[(&str, &str)] = &[
    // Whether nobody else may take this row, and for how many seconds.
    ("live", include_str!("sql/live.sql")),
    ("remaining", include_str!("sql/remaining.sql")),
    // The instant `argument` as 0.2.5 writes it.
    (
        "local",
        "({argument} AT TIME ZONE pg_catalog.make_interval(secs => {zone}))",
    ),
    // The clock, in seconds since 1970; whether it has not passed `argument`.
    (
        "instant",
        "pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())",
    ),
    (
        "timely",
        "pg_catalog.clock_timestamp() {<=} pg_catalog.to_timestamp({argument})",
    ),
    // The location of the row, for statements that have another to fall back on.
    ("latest", include_str!("sql/latest.sql")),
    // What taking a lock writes, at the instant `argument`; a fence above all others; making the
    // commit wait for the disk.
    ("taking", include_str!("sql/taking.sql")),
    ("drawn", include_str!("sql/drawn.sql")),
    ("durable", include_str!("sql/durable.sql")),
    // What we report about a hold.
    ("record", include_str!("sql/record.sql")),
    // The advisory lock that the listening connection of ticket `argument` holds.
    (
        "listener",
        "pg_catalog.hashtextextended(\
           ({argument} {>>} 24)::pg_catalog.text, 0 {-} {oid}::pg_catalog.int8)",
    ),
    // The advisory lock that shows the process of a listening connection.
    (
        "process",
        "pg_catalog.hashtextextended({argument}, 0 {-} {oid}::pg_catalog.int8)",
    ),
    // The queue: may a waiter be about to take its turn? How many processes are ahead? Is a
    // ticket's process gone? The other tickets; notifying the first two; what 0.2.5 sees of a row
    // reserved for them; NULL instead of an empty queue.
    ("awaited", include_str!("sql/awaited.sql")),
    ("ahead", include_str!("sql/ahead.sql")),
    ("dead", include_str!("sql/dead.sql")),
    ("survivors", include_str!("sql/survivors.sql")),
    ("notified", include_str!("sql/notified.sql")),
    ("yielded", include_str!("sql/yielded.sql")),
    (
        "unless_empty",
        "CASE WHEN pg_catalog.cardinality({argument}) {>} 0 THEN {argument} END",
    ),
];

/// The values for a statement's fragments.
struct Filling<'a> {
    schema: &'a Schema,
    /// The numbers of the parameters that hold the host's `maxtime` and its offset from UTC.
    lease: usize,
    zone: usize,
}

impl Filling<'_> {
    /// The text without comments, with all fragments expanded.
    fn fill(&self, text: &str) -> String {
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .collect();
        self.fill_all(code.join("\n").trim())
    }

    /// The text as it is, with all fragments expanded.
    fn fill_all(&self, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (part, after) = behind.split_once('}').expect("a fragment's name ends");
            rest = after;
            filled.push_str(before);
            filled.push_str(&self.part(part));
        }
        filled + rest
    }

    fn part(&self, part: &str) -> String {
        let (name, argument) = part.split_once(' ').unwrap_or((part, ""));
        match name {
            // An empty array.
            "" => "{}".to_owned(),
            "lease" => format!("${}", self.lease),
            "zone" => format!("${}", self.zone),
            operator if operator.chars().all(|letter| "+-*/<>=|".contains(letter)) => {
                format!("OPERATOR(pg_catalog.{operator})")
            }
            _ => self.schema.part(name).unwrap_or_else(|| {
                let (_, fragment) = FRAGMENTS
                    .iter()
                    .find(|(known, _)| *known == name)
                    .expect("the fragment is known");
                self.fill(&fragment.replace("{argument}", argument))
            }),
        }
    }
}

macro_rules! statements {
    ($($name:ident = $file:literal (lease $lease:literal, zone $zone:literal) [$($kind:ident),*];)*) => {
        /// The statements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Sql {
            $(
                #[doc = concat!("See `", $file, "`.")]
                $name
            ),*
        }

        /// How many statements a session may prepare.
        pub const SLOTS: usize = [$(Sql::$name),*].len();

        impl Statements {
            /// All statements, for the table in a schema.
            #[must_use]
            pub fn new(schema: &Schema) -> Statements {
                Statements(vec![$({
                    let filling = Filling { schema, lease: $lease, zone: $zone };
                    Statement {
                        title: stringify!($name),
                        text: filling.fill(include_str!(concat!("sql/", $file))),
                        types: vec![$(Type::$kind),*],
                        slot: Sql::$name as usize,
                        only_reads: Sql::$name.only_reads(),
                    }
                }),*])
            }
        }
    };
}

impl Sql {
    /// Whether it can be executed in a read-only session.
    #[must_use]
    pub fn only_reads(self) -> bool {
        matches!(
            self,
            Sql::Probe
                | Sql::Busy
                | Sql::Holder
                | Sql::Held
                | Sql::Released
                | Sql::Holders
                | Sql::Waits
                | Sql::Info
                | Sql::Revocable
        )
    }

    /// Whether it may take a lock, and so has a time limit as its last parameter.
    #[must_use]
    pub fn takes(self) -> bool {
        matches!(self, Sql::Acquire | Sql::Retake | Sql::Wait | Sql::Take)
    }

    /// Whether waiting for other transactions is pointless: the caller wants the lock now, and can
    /// be told that it is busy.
    #[must_use]
    pub fn is_limited(self) -> bool {
        self.takes() || self == Sql::Probe
    }
}

/// All statements on one table.
#[derive(Debug)]
pub struct Statements(Vec<Statement>);

impl std::ops::Index<Sql> for Statements {
    type Output = Statement;

    fn index(&self, sql: Sql) -> &Statement {
        &self.0[sql as usize]
    }
}

impl std::ops::Deref for Statements {
    type Target = [Statement];

    fn deref(&self) -> &[Statement] {
        &self.0
    }
}

statements! {
    Acquire = "acquire.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, FLOAT8];
    Retake = "retake.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, FLOAT8];
    Probe = "probe.sql" (lease 3, zone 2) [TEXT, FLOAT8, FLOAT8];
    Extend = "extend.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    Renew = "renew.sql" (lease 0, zone 4) [TEXT_ARRAY, TEXT_ARRAY, FLOAT8_ARRAY, FLOAT8];
    Transfer = "transfer.sql" (lease 4, zone 5) [TEXT, TEXT, TEXT, FLOAT8, FLOAT8, TEXT];
    Release = "release.sql" (lease 0, zone 0) [TEXT, TEXT];
    ReleaseAwaited = "release_awaited.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    Holder = "holder.sql" (lease 2, zone 3) [TEXT, FLOAT8, FLOAT8];
    Held = "held.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    Released = "released.sql" (lease 0, zone 0) [TEXT, TEXT];
    Wait = "wait.sql" (lease 3, zone 4)
        [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, INT8, INT8_ARRAY, BOOL, FLOAT8];
    Take = "take.sql" (lease 3, zone 4)
        [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, BOOL, FLOAT8];
    Leave = "leave.sql" (lease 3, zone 4) [TEXT, INT8, FLOAT8, FLOAT8];
    ListenKey = "listen.sql" (lease 0, zone 0) [INT8];
    Process = "process.sql" (lease 0, zone 0) [TEXT];
    Prove = "prove.sql" (lease 0, zone 0) [INT8, TEXT];
    Guard = "guard.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    Vacuum = "vacuum.sql" (lease 1, zone 2) [FLOAT8, FLOAT8];
    Sweep = "sweep.sql" (lease 1, zone 2) [FLOAT8, FLOAT8, INT8, INT8, FLOAT8];
    Repair = "repair.sql" (lease 0, zone 0) [INT8];
    Check = "check.sql" (lease 0, zone 0) [TEXT];
    Server = "server.sql" (lease 0, zone 0) [];
    Number = "number.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, INT8];
    Holders = "holders.sql" (lease 1, zone 2) [FLOAT8, FLOAT8];
    Info = "info.sql" (lease 2, zone 3) [TEXT, FLOAT8, FLOAT8];
    Revocable = "revocable.sql" (lease 2, zone 3) [TEXT, FLOAT8, FLOAT8];
    Busy = "busy.sql" (lease 0, zone 0) [];
    Role = "role.sql" (lease 0, zone 0) [];
    Facts = "facts.sql" (lease 0, zone 0) [];
    Waits = "waits.sql" (lease 1, zone 2) [FLOAT8, FLOAT8];
    Whose = "whose.sql" (lease 0, zone 0) [INT4];
}

/// Creates the table or adds what is missing; can be run at any time. Keeps its comments, for the
/// administrator who reads it.
#[must_use]
pub fn creation(schema: &Schema) -> String {
    let filling = Filling {
        schema,
        lease: 0,
        zone: 0,
    };
    filling.fill_all(include_str!("sql/schema.sql"))
}

/// Lets the quoted role `role` work with the table in `schema`, which statements name `place`.
#[must_use]
pub fn grants(place: &Schema, schema: Option<&str>, role: &str) -> String {
    // A role sees a table only if it may use the schema. If the schema is not given, the server has
    // to find it.
    let usage = match schema.map(quote) {
        Some(schema) => format!("GRANT USAGE ON SCHEMA {schema} TO {role};\n"),
        None => format!(
            "DO $grant$ BEGIN\n    \
             EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %s',\n        \
             (SELECT relnamespace::pg_catalog.regnamespace FROM pg_catalog.pg_class\n          \
             WHERE oid OPERATOR(pg_catalog.=) '_score_distlock'::pg_catalog.regclass),\n        \
             {});\nEND $grant$;\n",
            literal(role)
        ),
    };
    let prefix = &place.prefix;
    format!(
        "{usage}\
         GRANT SELECT, INSERT, UPDATE, DELETE ON {prefix}_score_distlock TO {role};\n\
         GRANT USAGE ON SEQUENCE {prefix}_score_distlock_id_seq, \
         {prefix}_score_distlock_fence_seq TO {role};\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_gets_its_argument() {
        let schema = Schema::new(Some("a'b"));
        let filling = Filling {
            schema: &schema,
            lease: 1,
            zone: 2,
        };
        assert_eq!(
            filling.fill("-- {no}\nSET a = {local b}, c = d {>=} '{}', e = {name}\n"),
            "SET a = (b AT TIME ZONE pg_catalog.make_interval(secs => $2)), \
             c = d OPERATOR(pg_catalog.>=) '{}', e = E'\"a''b\"._score_distlock'"
        );
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for statement in Statements::new(&Schema::new(None)).iter() {
            // An empty array is not a fragment.
            let text = statement.text.replace("'{}'", "");
            assert!(!text.contains('{'), "{text}");
            assert!(!statement.text.contains("--"), "{}", statement.text);
            for number in 1..=statement.types.len() {
                assert!(statement.text.contains(&format!("${number}")));
            }
            let beyond = format!("${}", statement.types.len() + 1);
            assert!(!statement.text.contains(&beyond), "{}", statement.text);
        }
    }
}
