//! Every SQL statement of the library, by name. Nothing else holds SQL.
//!
//! The statements are files of their own, each with its guarantees above it.
//! What they have in common is filled in here: `{live}` (may nobody else take
//! this row?), `{remaining}` (for how many seconds?), `{local}` (an instant as
//! 0.2.5 writes it), `{taking}` (what taking a lock writes, at that instant) and
//! `{taking_now}` (at that of the statement's arrival), `{key}` (the advisory lock of a name); for the queue of waiters `{awaited}` (may one of them be about to take its turn?), `{ahead}`
//! (how many processes come before?), `{dead}` (is a ticket's process gone?),
//! `{survivors}` (the tickets of the others), `{notified}` (calls the first two),
//! `{yielded}` (what 0.2.5 sees of a row left to them), `{listener}` (the
//! advisory lock that a listening connection holds), `{first}` (that of the first in the
//! queue).
//!
//! A prepared statement's name is made from its text, so that behind a pooler that hands
//! sessions around, whatever has a name of ours is what we mean by it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;
use tokio_postgres::types::Type;

/// A statement and the types of its parameters.
#[derive(Debug)]
pub struct Statement {
    /// Its name once it is prepared, of which no other text is the owner.
    pub name: String,
    /// The text, with `$n` parameters.
    pub text: String,
    /// What `$1`, `$2`, … are.
    pub types: Vec<Type>,
    /// Its position in a connection's list of prepared statements.
    pub slot: usize,
}

impl Statement {
    fn new(text: String, types: Vec<Type>, slot: usize) -> Statement {
        let mut hasher = DefaultHasher::new();
        (&text, &types).hash(&mut hasher);
        Statement {
            name: format!("distlock_{:016x}", hasher.finish()),
            text,
            types,
            slot,
        }
    }

    /// Whether it only reads, so that the answer waits for no disk.
    #[must_use]
    pub fn brief(&self) -> bool {
        self.slot == PROBE.slot
    }
}

const LOCAL: &str = "(instant AT TIME ZONE make_interval(secs => {zone}))";
/// The advisory lock that is held by the connection which hears of this ticket.
const LISTENER: &str =
    "hashtextextended((ticket >> 24)::text, '_score_distlock'::regclass::oid::bigint)";
/// What taking a lock writes: at `instant`, or at once.
const TAKING: &str = include_str!("taking.sql");
/// Parts that may contain those below them.
const PARTS: &[(&str, &str)] = &[
    ("{taking}", TAKING),
    ("{ahead}", include_str!("ahead.sql")),
    ("{survivors}", include_str!("survivors.sql")),
    ("{notified}", include_str!("notified.sql")),
    ("{dead}", include_str!("dead.sql")),
    ("{listener}", LISTENER),
    ("{awaited}", include_str!("awaited.sql")),
    ("{yielded}", include_str!("yielded.sql")),
    ("{live}", include_str!("live.sql")),
    ("{remaining}", include_str!("remaining.sql")),
    ("{local}", LOCAL),
    ("{key}", KEY),
];
const KEY: &str = "hashtextextended($1, '_score_distlock'::regclass::oid::bigint)";

/// Fills in the common parts; `lease` and `zone` are the numbers of the
/// parameters that hold the host's `maxtime` and its offset from UTC.
fn fill(text: &str, lease: usize, zone: usize) -> String {
    let code: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .collect();
    let at_once = TAKING.replace("{local}", LOCAL).replace("instant", "now()");
    let mut filled = code
        .join("\n")
        .replace("{taking_now}", at_once.trim())
        .replace("{first}", &LISTENER.replace("ticket", "waiters[1]"));
    for (part, text) in PARTS {
        filled = filled.replace(part, text.trim());
    }
    filled
        .replace("{lease}", &format!("${lease}"))
        .replace("{zone}", &format!("${zone}"))
}

macro_rules! statements {
    ($($slot:literal $name:ident = $file:literal (lease $lease:literal, zone $zone:literal) [$($kind:ident),*];)*) => {
        $(
            #[doc = concat!("See `", $file, "`.")]
            pub static $name: LazyLock<Statement> = LazyLock::new(|| {
                let text = fill(include_str!($file), $lease, $zone);
                Statement::new(text, vec![$(Type::$kind),*], $slot)
            });
        )*
        /// How many statements a connection may prepare.
        pub const SLOTS: usize = [$($slot),*].len();
    };
}

statements! {
    0 ACQUIRE = "acquire.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT];
    1 EXTEND = "extend.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    2 RELEASE = "release.sql" (lease 0, zone 0) [TEXT, TEXT];
    3 RELEASED = "released.sql" (lease 0, zone 0) [TEXT, TEXT];
    4 TRANSFER = "transfer.sql" (lease 4, zone 5) [TEXT, TEXT, TEXT, FLOAT8, FLOAT8, TEXT];
    5 VACUUM = "vacuum.sql" (lease 1, zone 2) [FLOAT8, FLOAT8];
    6 SWEEP = "sweep.sql" (lease 1, zone 2) [FLOAT8, FLOAT8, INT8, INT8];
    7 CHECK = "check.sql" (lease 0, zone 0) [];
    8 GUARD = "guard.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    9 WAIT = "wait.sql" (lease 3, zone 4)
        [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, INT8, INT8_ARRAY, BOOL];
    10 LEAVE = "leave.sql" (lease 3, zone 4) [TEXT, INT8, FLOAT8, FLOAT8];
    11 LISTEN_KEY = "listen.sql" (lease 0, zone 0) [INT8];
    12 PROVE = "prove.sql" (lease 0, zone 0) [INT8, TEXT];
    16 RETAKE = "retake.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT];
    17 RELEASE_AWAITED = "release_awaited.sql" (lease 3, zone 4)
        [TEXT, TEXT, FLOAT8, FLOAT8];
    18 RELEASE_CALLING = "release_calling.sql" (lease 3, zone 4)
        [TEXT, TEXT, FLOAT8, FLOAT8];
    15 TAKE = "take.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, BOOL];
    19 TAKE_BUSY = "take_busy.sql" (lease 3, zone 4)
        [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, BOOL];
    20 HELD = "held.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    14 PROBE = "probe.sql" (lease 3, zone 2) [TEXT, FLOAT8, FLOAT8];
    13 RENEW = "renew.sql" (lease 0, zone 4) [TEXT_ARRAY, TEXT_ARRAY, FLOAT8_ARRAY, FLOAT8];
}

/// What creates the table or adds what is missing; may be run at any time.
pub const SCHEMA: &str = include_str!("schema.sql");

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<&'static Statement> {
        vec![
            &ACQUIRE,
            &EXTEND,
            &RELEASE,
            &RELEASED,
            &TRANSFER,
            &VACUUM,
            &SWEEP,
            &CHECK,
            &GUARD,
            &WAIT,
            &LEAVE,
            &LISTEN_KEY,
            &PROVE,
            &RENEW,
            &PROBE,
            &TAKE,
            &RETAKE,
            &RELEASE_AWAITED,
            &RELEASE_CALLING,
            &TAKE_BUSY,
            &HELD,
        ]
    }

    #[test]
    fn a_name_means_one_text() {
        let statements = all();
        for (position, statement) in statements.iter().enumerate() {
            let again = Statement::new(statement.text.clone(), statement.types.clone(), 0);
            assert_eq!(again.name, statement.name);
            for other in &statements[..position] {
                assert_ne!(other.name, statement.name);
            }
        }
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for statement in all() {
            // An empty array is no part.
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
