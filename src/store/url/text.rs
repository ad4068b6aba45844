//! Splits the text of a URL, before any part of it may be shown.
//!
//! SQLAlchemy has always read `sqlalchemy.url`, so its reading applies wherever it is usable; where
//! it is not (host lists, percent-encoded hosts, `postgres:`), libpq's does. Where the two differ
//! and either could be meant, the URL is rejected: a wrong guess would send a part of the password
//! to a name server.

use super::options;
use std::borrow::Cow;

/// What is wrong, in words that contain no part of the password.
pub type Problem = String;

/// An option after `?`.
#[derive(Clone)]
pub struct Given {
    /// Its name, decoded.
    pub name: String,
    /// Its value, decoded.
    pub value: Vec<u8>,
    /// Whether name and value may be shown: text after a password may belong to it.
    pub harmless: bool,
}

/// The parts of a URL, decoded. Missing or empty parts are `None`.
#[derive(Default)]
pub struct Parts {
    /// `postgresql+psycopg2`, for instance.
    pub scheme: String,
    pub user: Option<String>,
    pub password: Option<Vec<u8>>,
    /// Several are separated by commas.
    pub host: Option<String>,
    /// As many as there are hosts.
    pub port: Option<String>,
    pub database: Option<String>,
    pub options: Vec<Given>,
}

pub const FORMS: &str = "allowed are postgresql://…, postgres://…, postgresql+DRIVER://…, \
                     embedded: and embedded:/folder";

const AMBIGUOUS: &str = "can be read in two ways; percent-encode special characters in user, \
                         password and options: @ as %40, / as %2F, ? as %3F";

/// Schemes that users try; only these are shown.
const OTHERS: &[&str] = &[
    "cockroachdb",
    "file",
    "http",
    "https",
    "jdbc:postgresql",
    "mariadb",
    "mssql",
    "mysql",
    "oracle",
    "redis",
    "sqlite",
];

/// Splits a URL.
pub fn split(text: &str) -> Result<Parts, Problem> {
    let text = text.trim();
    if text.starts_with(['"', '\'']) {
        return Err(format!(
            "is not a URL: it begins with a quotation mark, which does not belong to it; {FORMS}"
        ));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("is not a URL; {FORMS}"));
    };
    let (dialect, driver) = scheme.split_once('+').unwrap_or((scheme, "driver"));
    if !["postgresql", "postgres"].contains(&dialect) {
        let shown = if OTHERS.contains(&dialect) {
            dialect
        } else {
            "what it begins with"
        };
        return Err(format!("is not for PostgreSQL, but {shown}; {FORMS}"));
    }
    if driver.is_empty() || !driver.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return Err(format!("has no driver's name after {dialect}+; {FORMS}"));
    }
    let (user, rest) = user_and_rest(rest)?;
    let mut parts = Parts {
        scheme: scheme.to_owned(),
        ..Parts::default()
    };
    if let Some((user, password)) = user {
        parts.user = some(text_of(user, "user")?);
        parts.password = password
            .map(|text| bytes_of(text, "password"))
            .transpose()?;
        parts.password = parts.password.filter(|password| !password.is_empty());
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    if database.contains('=') {
        // The server would repeat it, and it may be a password.
        return Err(
            "has an = in the database's name: options begin with ?, and an = is written %3D"
                .to_owned(),
        );
    }
    (parts.host, parts.port) = hosts_and_ports(hosts)?;
    parts.database = some(text_of(database, "database")?);
    parts.options = given(query)?;
    Ok(parts)
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// User and password, and the text after the `@` that follows them.
type UserAndRest<'a> = (Option<(&'a str, Option<&'a str>)>, &'a str);

/// As in SQLAlchemy, a user may contain a raw `@`, and a password anything; the last `@` ends them.
/// (Newer versions take the first `@`; what follows then cannot be a host.)
fn user_and_rest(text: &str) -> Result<UserAndRest<'_>, Problem> {
    let user = text.find([':', '/', '?']).unwrap_or(text.len());
    let Some((colon, last)) = text
        .rfind('@')
        .filter(|at| *at > user && text[user..].starts_with(':'))
        .map(|at| (user, at))
    else {
        // Without a password: the last @ before the end of the host.
        return Ok(match text[..user].rfind('@') {
            Some(at) => (Some((&text[..at], None)), &text[at + 1..]),
            None => (None, text),
        });
    };
    let (password, rest) = (&text[colon + 1..last], &text[last + 1..]);
    // The first @ would leave a host and more; the last puts that into the password.
    let first = password.find('@').unwrap_or(password.len());
    let first_has_more = password[first..].contains(['/', '?']);
    if first_has_more && ends_in_options(&text[colon + 2 + first..]) {
        let password = &password[..first];
        return Ok((
            Some((&text[..colon], Some(password))),
            &text[colon + 2 + first..],
        ));
    }
    if first_has_more || text.starts_with('[') || is_port_and_options(password) {
        return Err(AMBIGUOUS.to_owned());
    }
    Ok((Some((&text[..colon], Some(password))), rest))
}

/// Whether this can only be hosts, a database and options, with a raw `@` in their values.
fn ends_in_options(text: &str) -> bool {
    let (place, query) = text.split_once('?').unwrap_or((text, "nonsense"));
    let usual = |c: char| c.is_ascii_alphanumeric() || "-_.:,/%[]".contains(c);
    let known = |item: &str| {
        let name = item.split_once('=').map_or("", |(name, _)| name);
        options::find(name).is_some()
    };
    place.chars().all(usual) && query.split('&').all(known)
}

/// Whether this may be the port of a URL without a password: `5432/database?name=`.
fn is_port_and_options(password: &str) -> bool {
    let more = password.trim_start_matches(|c: char| c.is_ascii_digit());
    let has_port = more.len() < password.len();
    let goes_on = more.starts_with(['/', '?']) || (has_port && more.starts_with([',', '&', ';']));
    goes_on && more.contains('=')
}

/// Both lists, joined with commas.
fn hosts_and_ports(text: &str) -> Result<(Option<String>, Option<String>), Problem> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for (index, item) in text.split(',').enumerate() {
        // `one:1, two:2`
        let item = if index > 0 { item.trim_start() } else { item };
        let (host, port) = match item.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest
                    .split_once(']')
                    .ok_or("has a [ without the ] after its IPv6 address")?;
                let port = rest.strip_prefix(':');
                if host.is_empty() || (port.is_none() && !rest.is_empty()) {
                    return Err("has something other than an IPv6 address in brackets".to_owned());
                }
                (host, port.unwrap_or_default())
            }
            None => item.split_once(':').unwrap_or((item, "")),
        };
        hosts.push(text_of(host, "host")?);
        ports.push(port.to_owned());
    }
    if ports.iter().any(|port| !is_port(port)) {
        return Err(
            "is not understood: what follows the host's : is not a port; percent-encode special \
             characters, as in postgresql://user:p%40ss@host:5432/database, and write IPv6 \
             addresses in brackets"
                .to_owned(),
        );
    }
    let given = |list: Vec<String>| {
        list.iter()
            .any(|item| !item.is_empty())
            .then(|| list.join(","))
    };
    // Several empty hosts still form a list: libpq tries its default twice.
    if hosts.len() > 1 {
        return Ok((Some(hosts.join(",")), given(ports)));
    }
    Ok((given(hosts), given(ports)))
}

/// Whether this is a port, or empty.
pub fn is_port(text: &str) -> bool {
    text.is_empty() || text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn given(query: &str) -> Result<Vec<Given>, Problem> {
    let mut found: Vec<Given> = Vec::new();
    let mut harmless = true;
    for item in query.split('&').filter(|item| !item.is_empty()) {
        let Some((name, value)) = item.split_once('=') else {
            return Err(
                "has an option without =; options are written ?name=value&name=value, and & and # \
                 in a value as %26 and %23"
                    .to_owned(),
            );
        };
        let name = plus(name);
        let name = text_of(name.trim(), "name of an option")?;
        let value = plus(value);
        let value = bytes_of(&value, "value of an option")?;
        // SQLAlchemy drops blank values.
        if !value.is_empty() {
            found.push(Given {
                name: name.clone(),
                value,
                harmless,
            });
        }
        harmless &= !is_secret(&name);
    }
    Ok(found)
}

/// Whether the value of an option of this (perhaps misspelt) name is secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    ["pass", "pw", "secret", "key", "token"]
        .iter()
        .any(|part| name.contains(part))
}

/// SQLAlchemy reads a plus after the question mark as a space.
fn plus(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        Cow::Owned(text.replace('+', " "))
    } else {
        Cow::Borrowed(text)
    }
}

/// Decodes percent-encoding; other percent signs stay, as in SQLAlchemy.
fn bytes_of(text: &str, what: &str) -> Result<Vec<u8>, Problem> {
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(text).collect();
    if bytes.contains(&0) {
        return Err(format!("has a NUL in the {what}"));
    }
    Ok(bytes)
}

fn text_of(text: &str, what: &str) -> Result<String, Problem> {
    String::from_utf8(bytes_of(text, what)?).map_err(|_| format!("has a {what} that is not UTF-8"))
}
