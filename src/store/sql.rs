//! Every SQL statement of the library, by name. Nothing else holds SQL.
//!
//! The statements are files of their own, each with its guarantees above it. What they
//! have in common are fragments, which are filled in here: `{name}`, or `{name argument}`
//! for those that contain `{argument}`. See [`FRAGMENTS`].

use std::sync::LazyLock;
use tokio_postgres::types::Type;

/// A statement and the types of its parameters.
#[derive(Debug)]
pub struct Statement {
    /// The text, with `$n` parameters.
    pub text: String,
    /// What `$1`, `$2`, … are.
    pub types: Vec<Type>,
    /// Its position in a session's list of prepared statements.
    pub slot: usize,
}

/// What `{name}` and `{name argument}` in a statement or a fragment stand for.
const FRAGMENTS: &[(&str, &str)] = &[
    // May nobody else take this row, and for how many seconds?
    ("live", include_str!("live.sql")),
    ("remaining", include_str!("remaining.sql")),
    // The instant `argument` as 0.2.5 writes it.
    (
        "local",
        "({argument} AT TIME ZONE make_interval(secs => {zone}))",
    ),
    // What taking a lock writes, at the instant `argument`; a fence without a row; that
    // the commit waits for the disk.
    ("taking", include_str!("taking.sql")),
    ("drawn", include_str!("drawn.sql")),
    ("durable", include_str!("durable.sql")),
    // The advisory lock of the name $1, and the one that the listening connection of the
    // ticket `argument` holds. Both are hashes of a text. A seed below zero, which no
    // table's number is, keeps a name that reads like a listener's number from having the
    // lock of that listener.
    (
        "key",
        "hashtextextended($1, '_score_distlock'::regclass::oid::bigint)",
    ),
    (
        "listener",
        "hashtextextended(({argument} >> 24)::text, -'_score_distlock'::regclass::oid::bigint)",
    ),
    // The queue: may one of them be about to take its turn? How many processes come
    // before? Is a ticket's process gone? The tickets of the others; what calls the
    // first two; what 0.2.5 sees of a row left to them.
    ("awaited", include_str!("awaited.sql")),
    ("ahead", include_str!("ahead.sql")),
    ("dead", include_str!("dead.sql")),
    ("survivors", include_str!("survivors.sql")),
    ("notified", include_str!("notified.sql")),
    ("yielded", include_str!("yielded.sql")),
];

/// The text without its comments, with all fragments filled in; `lease` and `zone` are the
/// numbers of the parameters that hold the host's `maxtime` and its offset from UTC.
fn fill(text: &str, lease: usize, zone: usize) -> String {
    let code: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .collect();
    let code = code.join("\n");
    let parameter = |number: usize| format!("${number}");
    let mut filled = String::new();
    let mut rest = code.trim();
    while let Some((before, behind)) = rest.split_once('{') {
        let (part, after) = behind.split_once('}').expect("a fragment's name ends");
        rest = after;
        filled.push_str(before);
        let (name, argument) = part.split_once(' ').unwrap_or((part, ""));
        match name {
            // An empty array.
            "" => filled.push_str("{}"),
            "lease" => filled += &parameter(lease),
            "zone" => filled += &parameter(zone),
            _ => {
                let (_, fragment) = FRAGMENTS
                    .iter()
                    .find(|(known, _)| *known == name)
                    .expect("the fragment is known");
                let fragment = fragment.replace("{argument}", argument);
                filled.push_str(&fill(&fragment, lease, zone));
            }
        }
    }
    filled + rest
}

macro_rules! statements {
    ($($name:ident = $file:literal (lease $lease:literal, zone $zone:literal) [$($kind:ident),*];)*) => {
        /// Every statement's place among all, counted by the compiler.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Slot { $($name),* }
        $(
            #[doc = concat!("See `", $file, "`.")]
            pub static $name: LazyLock<Statement> = LazyLock::new(|| {
                let text = fill(include_str!($file), $lease, $zone);
                Statement {
                    text,
                    types: vec![$(Type::$kind),*],
                    slot: Slot::$name as usize,
                }
            });
        )*
        /// How many statements a session may prepare.
        pub const SLOTS: usize = [$(Slot::$name),*].len();

        #[cfg(test)]
        fn all() -> Vec<&'static Statement> {
            vec![$(&$name),*]
        }
    };
}

statements! {
    ACQUIRE = "acquire.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT];
    RETAKE = "retake.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT];
    PROBE = "probe.sql" (lease 3, zone 2) [TEXT, FLOAT8, FLOAT8];
    EXTEND = "extend.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    RENEW = "renew.sql" (lease 0, zone 4) [TEXT_ARRAY, TEXT_ARRAY, FLOAT8_ARRAY, FLOAT8];
    TRANSFER = "transfer.sql" (lease 4, zone 5) [TEXT, TEXT, TEXT, FLOAT8, FLOAT8, TEXT];
    RELEASE = "release.sql" (lease 0, zone 0) [TEXT, TEXT];
    RELEASE_AWAITED = "release_awaited.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    RELEASE_CALLING = "release_calling.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    HELD = "held.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    RELEASED = "released.sql" (lease 0, zone 0) [TEXT, TEXT];
    WAIT = "wait.sql" (lease 3, zone 4)
        [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, INT8, INT8_ARRAY, BOOL];
    TAKE = "take.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, BOOL];
    TAKE_BUSY = "take_busy.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8, TEXT, INT8, BOOL];
    LEAVE = "leave.sql" (lease 3, zone 4) [TEXT, INT8, FLOAT8, FLOAT8];
    LISTEN_KEY = "listen.sql" (lease 0, zone 0) [INT8];
    PROVE = "prove.sql" (lease 0, zone 0) [INT8, TEXT];
    GUARD = "guard.sql" (lease 3, zone 4) [TEXT, TEXT, FLOAT8, FLOAT8];
    VACUUM = "vacuum.sql" (lease 1, zone 2) [FLOAT8, FLOAT8];
    SWEEP = "sweep.sql" (lease 1, zone 2) [FLOAT8, FLOAT8, INT8, INT8];
    REPAIR = "repair.sql" (lease 0, zone 0) [INT8];
    CHECK = "check.sql" (lease 0, zone 0) [];
}

/// What creates the table or adds what is missing; may be run at any time.
pub const SCHEMA: &str = include_str!("schema.sql");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_has_a_slot_of_its_own() {
        let slots: Vec<usize> = all().iter().map(|statement| statement.slot).collect();
        assert_eq!(slots, (0..SLOTS).collect::<Vec<_>>());
    }

    #[test]
    fn a_fragment_gets_its_argument() {
        assert_eq!(
            fill("-- {no}\nSET a = {local now()}, b = '{}'\n", 1, 2),
            "SET a = (now() AT TIME ZONE make_interval(secs => $2)), b = '{}'"
        );
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
