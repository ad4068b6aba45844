//! What the tables in `tests/test_configuration_like_libpq.py` do not show: secrets, and wording.

use super::*;
use proptest::prelude::*;

/// Reads a URL with these environment variables, without a home.
fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Url> {
    let variable = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_bytes().to_vec())
    };
    let around = Surroundings {
        variable: &variable,
        home: None,
        user: Some("me".to_owned()),
    };
    Url::read(&Request::new(text), &around)
}

fn read(text: &str) -> Result<Url> {
    read_with(text, &[])
}

fn places(text: &str) -> String {
    let url = read(text).unwrap();
    let places: Vec<String> = url.endpoints.iter().map(ToString::to_string).collect();
    places.join(" ")
}

#[test]
fn sockets_lists_and_ipv6() {
    let socket = "/run/pg/.s.PGSQL.6000";
    assert_eq!(places("postgresql://u@/d?host=/run/pg&port=6000"), socket);
    assert_eq!(places("postgres://u@%2Frun%2Fpg:6000/d"), socket);
    assert_eq!(places("postgres://u@one:1, two/d"), "one:1 two:5432");
    assert_eq!(
        places("postgres://u@/d?host=one:1&host=two:2"),
        "one:1 two:2"
    );
    assert_eq!(places("postgres://u@[::1]:7/d"), "[::1]:7");
    let name = places("postgres://u@/d?host=@name");
    assert_eq!(name, "@name/.s.PGSQL.5432");
}

#[test]
fn what_is_shown_has_no_password_and_no_options() {
    for (text, shown) in [
        (
            "postgresql+psycopg2://a%40b:p%3Aw%2F@db:5433/my%20db",
            "postgresql+psycopg2://a%40b:***@db:5433/my%20db",
        ),
        (
            "postgresql://u@h/d?password=secret&application_name=x",
            "postgresql://u:***@h:5432/d",
        ),
        (
            "postgresql://u@/d?host=/run/pg",
            "postgresql://u@/d (/run/pg/.s.PGSQL.5432)",
        ),
    ] {
        let url = read(text).unwrap();
        assert_eq!(url.to_string(), shown);
        assert_eq!(format!("{url:?}"), format!("Url({shown})"));
    }
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn errors_say_who_is_to_change_what() {
    for (text, variables, expected) in [
        ("", &[][..], "sqlalchemy.url is empty"),
        ("secret", &[], "sqlalchemy.url: it is not a URL"),
        (
            "mysql://u:secret@h/d",
            &[],
            "is not for PostgreSQL, but mysql",
        ),
        ("postgresql://u:secret@h:port/d", &[], "percent-encode"),
        ("postgresql://u:se@secret@h:x/d", &[], "percent-encode"),
        ("postgresql://u:x@secret@h", &[], ""),
        ("postgresql://u:secret/d", &[], "percent-encode"),
        (
            "postgresql://u@h/d?PASSWORD=secret",
            &[],
            "unknown option \"PASSWORD\"",
        ),
        (
            "postgresql://u@h/d?pass%77ord=secret&x=1",
            &[],
            "an unknown option",
        ),
        (
            "postgresql://u@h/d?Pwd=secret",
            &[],
            "unknown option \"Pwd\"",
        ),
        ("postgresql://u@h/d?x=1", &[], "unknown option \"x\""),
        (
            "postgresql://h/d?sslmode=odd",
            &[],
            "sqlalchemy.url: sslmode=odd is not",
        ),
        (
            "postgresql://h",
            &[("PGCONNECT_TIMEOUT", "soon")],
            "the environment variable PGCONNECT_TIMEOUT=soon is not",
        ),
        (
            "postgresql://h",
            &[("PGPORT", "x")],
            "the environment variable PGPORT=x",
        ),
        (
            "postgresql://a,b/d?port=1,2,3",
            &[],
            "has 3 ports for 2 hosts",
        ),
    ] {
        match read_with(text, variables) {
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(expected), "{error}");
                assert!(!error.contains("secret"), "{error}");
            }
            Ok(url) => assert!(expected.is_empty() && !url.to_string().contains("secret")),
        }
    }
}

#[test]
fn an_empty_url_will_do_where_the_environment_says_it() {
    let url = read_with(" ", &[("PGHOST", "h"), ("PGDATABASE", "d")]).unwrap();
    assert_eq!(url.to_string(), "postgresql://me@h:5432/d");
}

/// Pieces that affect how a URL is split.
fn password() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![
            Just("SECRET".to_owned()),
            Just("hush".to_owned()),
            "[A-Z0-9]{4,6}",
            "[@:/?&=#%+,\\[\\] '\"]",
        ],
        1..8,
    )
    .prop_map(|parts| parts.concat())
}

fn around_it() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        Just(("postgresql://u:", "@h/d")),
        Just(("postgresql://u:", "@h:5432/d?application_name=x")),
        Just(("postgresql://u:", "/d")),
        Just(("postgresql://u:", "")),
        Just(("postgresql://u:x@", "@h")),
        Just(("postgresql://u@h/d?password=", "")),
        Just(("postgresql://u@h/d?PASSWORD=", "&x=y")),
        Just(("postgresql://u@h/d?pass%77ord=", "")),
        Just(("postgresql://u@h/d?Pwd=", "&sslmode=x")),
        Just(("postgresql://u@h/d?sslpassword=", "")),
        Just(("postgresql://u@h/d&password=", "")),
        Just(("postgresql://u@h/d;Pwd=", ";x=y")),
        Just(("mysql://u:", "@h/d")),
        Just(("\"postgresql://u:", "@h/d\"")),
        Just(("user=u password=", " host=h")),
    ]
}

/// URLs of arbitrary pieces, many of which are accepted.
fn url_of_pieces() -> impl Strategy<Value = String> {
    let names = options::OPTIONS.iter().map(|option| option.name);
    let option = proptest::sample::select(names.collect::<Vec<_>>());
    let value = proptest::sample::select(vec![
        "",
        "h",
        "1",
        "0",
        "-1",
        "on",
        "require",
        "disable",
        "any",
        "read-write",
        "%C3%A9",
        "/run",
        "[::1]",
        "a,b",
        "1,2",
        "127.0.0.1",
        "%00",
        "%zz",
        "SECRET",
        "a b",
        "-c%20a=b",
        "::1",
    ]);
    let piece = prop_oneof![
        3 => "[@:/?&=#%+,\\[\\] '\"\\\\]",
        3 => value.clone().prop_map(str::to_owned),
        1 => "\\PC{0,3}",
        3 => (option, value).prop_map(|(name, value)| format!("{name}={value}&")),
    ];
    let pieces = prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    let begin = proptest::sample::select(vec![
        "postgresql://",
        "postgres://u@h/d?",
        "postgresql+psycopg2://u:SECRET@h/d?",
        "postgresql:///?",
        "",
    ]);
    (begin, pieces).prop_map(|(begin, pieces)| format!("{begin}{pieces}"))
}

/// An equivalent URL, with everything encoded and written as an option.
fn written(url: &Url) -> String {
    let (_, explicit) = url.explicit();
    let encoded = |value: &[u8]| {
        percent_encoding::percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let options = explicit
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)));
    format!(
        "{}:///?{}",
        url.scheme,
        options.collect::<Vec<_>>().join("&")
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever we accept, we understand: written down again it means the same.
    #[test]
    fn what_is_accepted_can_be_written_down(given in url_of_pieces()) {
        if let Ok(url) = read(&given) {
            let text = written(&url);
            let again = read(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
            prop_assert_eq!(again.explain(), url.explain());
            prop_assert_eq!(again.passwords(), url.passwords());
            let secret = url.passwords().contains(&Some(b"SECRET"));
            // It may be the value of another option, too.
            let shown = given.matches("SECRET").count() > 1;
            prop_assert!(!secret || shown || !url.to_string().contains("SECRET"));
        }
    }

    /// Also for passwords from the environment and the arguments.
    #[test]
    fn no_part_of_a_password_from_elsewhere_is_shown(
        // No four of these letters occur in the name of an option or a variable.
        secret in "[QXZ]{4,9}",
        text in url_of_pieces(),
        argument in any::<bool>(),
    ) {
        let arguments = [("password".to_owned(), secret.clone())];
        let variable = |name: &str| {
            (name == "PGPASSWORD" && !argument).then(|| secret.clone().into_bytes())
        };
        let around = Surroundings { variable: &variable, home: None, user: None };
        let request = Request {
            text: &text,
            label: "sqlalchemy.url",
            arguments: if argument { &arguments } else { &[] },
        };
        prop_assume!(!text.contains(&secret[..4]));
        let shown = match Url::read(&request, &around) {
            Ok(url) => format!("{url} {url:?} {}", url.said("password")),
            Err(error) => format!("{error} {error:?}"),
        };
        for start in 0..=secret.len() - 4 {
            let run = &secret[start..start + 4];
            prop_assert!(!shown.contains(run), "{text}: {shown}");
        }
    }
}

proptest! {
    /// No four consecutive letters or digits of the password, which occurs nowhere else.
    #[test]
    fn no_part_of_a_password_is_shown(secret in password(), (before, after) in around_it()) {
        // Without a host after it, `u:1,more` and `u:1/more` are a host, its port, and more, and
        // `u:@more` is a user and a host.
        let port = secret.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_more = port.is_empty() || port.starts_with([',', '/', '?']) || secret.contains('@');
        prop_assume!(before != "postgresql://u:" || after.contains('@') || !is_more);
        let text = format!("{before}{secret}{after}");
        let shown = match read(&text) {
            Ok(url) => format!("{url} {url:?}"),
            Err(error) => error.to_string(),
        };
        let letters: Vec<char> = secret.chars().collect();
        for run in letters.windows(4) {
            let run: String = run.iter().collect();
            let told = run.chars().all(char::is_alphanumeric) && shown.contains(&run);
            // The default port is always shown.
            let told = told && run != "5432";
            prop_assert!(!told, "{text}: {shown}");
        }
    }

    #[test]
    fn whatever_is_given_is_read_or_refused(text in "\\PC*", rest in "\\PC*") {
        let _ = read(&text);
        let _ = read(&format!("postgresql://{text}@{rest}"));
    }

    /// A percent-encoded password arrives intact.
    #[test]
    fn a_password_of_any_characters_arrives(password in "[^\0]{1,20}") {
        let encoded = percent_encoding::utf8_percent_encode(
            &password, percent_encoding::NON_ALPHANUMERIC,
        );
        let url = read(&format!("postgresql://u:{encoded}@h/d")).unwrap();
        prop_assert_eq!(url.config.get_password(), Some(password.as_bytes()));
    }
}
