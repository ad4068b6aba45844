//! The options from the URL, the service file and the environment, and their sources.

use super::options::{self, Fate};
use super::text::{Given, Parts, Problem};
use super::{Surroundings, files};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Where an option was set, and has to be changed if it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The URL.
    Url,
    /// `sqlalchemy.connect_args`.
    ConnectArgs,
    /// The service file and section.
    Service(String),
    /// An environment variable.
    Variable(&'static str),
}

/// A value of an option.
#[derive(Clone)]
pub struct Value {
    pub bytes: Vec<u8>,
    pub source: Source,
    /// Whether it may be shown.
    pub harmless: bool,
}

/// All options found, by libpq's names.
pub struct Found<'a> {
    values: BTreeMap<&'static str, Value>,
    /// What to call the URL in messages.
    label: &'a str,
}

/// Names of secret options; never shown.
fn is_secret(name: &str) -> bool {
    ["password", "sslpassword", "oauth_client_secret"].contains(&name) || name.starts_with("scram_")
}

impl<'a> Found<'a> {
    /// Reads the URL, the arguments beside it, the service that either names, and the environment;
    /// the first to set an option wins.
    pub fn new(
        label: &'a str,
        parts: &Parts,
        arguments: &[(String, String)],
        around: &Surroundings<'_>,
    ) -> Result<Found<'a>, Problem> {
        let values = BTreeMap::new();
        let mut found = Found { values, label };
        found.add_url(parts)?;
        for (name, value) in arguments {
            let given = Given {
                name: name.clone(),
                value: value.as_bytes().to_vec(),
                harmless: true,
            };
            found.add(&given, Source::ConnectArgs)?;
        }
        let service = found.text("service")?;
        let service = service.or_else(|| around.text("PGSERVICE"));
        if let Some(service) = service.filter(|name| !name.is_empty()) {
            found.add_service(&service, around)?;
        }
        found.add_environment(around)?;
        found.root_of_the_system()?;
        Ok(found)
    }

    fn add_url(&mut self, parts: &Parts) -> Result<(), Problem> {
        let text = |text: &Option<String>| text.as_ref().map(|text| text.as_bytes().to_vec());
        for (name, value) in [
            ("user", text(&parts.user)),
            ("password", parts.password.clone()),
            ("host", text(&parts.host)),
            ("port", text(&parts.port)),
            ("dbname", text(&parts.database)),
        ] {
            if let Some(value) = value {
                self.set(name, value, Source::Url, true)?;
            }
        }
        let (lists, others): (Vec<&Given>, Vec<&Given>) = parts
            .options
            .iter()
            .partition(|given| ["host", "port"].contains(&given.name.as_str()));
        for given in others {
            self.add(given, Source::Url)?;
        }
        self.add_lists(&lists)
    }

    /// `host=` and `port=`, which may occur several times: SQLAlchemy's way to write a list, also
    /// as `host=name:port`. As in libpq they replace those before the `?`.
    fn add_lists(&mut self, lists: &[&Given]) -> Result<(), Problem> {
        let of = |name: &str| {
            let found = lists.iter().filter(|given| given.name == name);
            let texts = found.map(|given| String::from_utf8_lossy(&given.value).into_owned());
            texts.collect::<Vec<_>>().join(",")
        };
        let (hosts, mut ports) = (of("host"), of("port"));
        if !hosts.is_empty() {
            let items: Vec<_> = hosts
                .split(',')
                .map(|host| with_port(host.trim()))
                .collect();
            if items.iter().any(|(_, port)| port.is_some()) {
                let own = items.iter().map(|(_, port)| port.unwrap_or_default());
                ports = own.collect::<Vec<_>>().join(",");
            }
            let names: Vec<&str> = items.iter().map(|(host, _)| *host).collect();
            self.set("host", names.join(",").into_bytes(), Source::Url, true)?;
        }
        if !ports.is_empty() {
            let harmless = lists.iter().all(|given| given.harmless);
            self.set("port", ports.into_bytes(), Source::Url, harmless)?;
        }
        Ok(())
    }

    /// Adds an option under any of its names.
    fn add(&mut self, given: &Given, source: Source) -> Result<(), Problem> {
        let text = String::from_utf8_lossy(&given.value);
        let (name, value): (&str, Cow<'_, [u8]>) = match (given.name.as_str(), &*text) {
            // JDBC's spelling, which libpq understands, and asyncpg's.
            ("ssl", "true") => ("sslmode", Cow::Borrowed(b"require")),
            ("ssl", _) => ("sslmode", Cow::Borrowed(&given.value)),
            ("requiressl", text) if text.starts_with('1') => ("sslmode", Cow::Borrowed(b"require")),
            ("requiressl", _) => ("sslmode", Cow::Borrowed(b"prefer")),
            (name, _) if options::DRIVERS.contains(&name) => return Ok(()),
            (name, _) => (name, Cow::Borrowed(&given.value)),
        };
        let Some(option) = options::find(name) else {
            return Err(self.unknown(given, &source));
        };
        self.set(option.name, value.into_owned(), source, given.harmless)
    }

    fn unknown(&self, given: &Given, source: &Source) -> Problem {
        let clean = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let shown = if given.harmless && given.name.len() < 40 && given.name.chars().all(clean) {
            format!("the unknown option {:?}", given.name)
        } else {
            "an unknown option".to_owned()
        };
        let place = match source {
            Source::Url => self.label.to_owned(),
            source => self.place(source),
        };
        let allowed = options::allowed();
        format!("{place}: there is {shown}; allowed are {allowed}")
    }

    fn add_service(&mut self, service: &str, around: &Surroundings<'_>) -> Result<(), Problem> {
        let (path, lines) = files::service(service, around)?;
        let source = Source::Service(format!("{}, [{service}]", path.display()));
        for (name, value) in lines {
            let Some(option) = options::find(&name).filter(|option| option.name != "service")
            else {
                return Err(format!(
                    "{}: there is something other than an option of a connection",
                    self.place(&source)
                ));
            };
            if !self.values.contains_key(option.name) {
                self.set(option.name, value, source.clone(), true)?;
            }
        }
        Ok(())
    }

    fn add_environment(&mut self, around: &Surroundings<'_>) -> Result<(), Problem> {
        for option in options::OPTIONS {
            if option.variable.is_empty() || self.values.contains_key(option.name) {
                continue;
            }
            if let Some(value) = (around.variable)(option.variable) {
                self.set(option.name, value, Source::Variable(option.variable), true)?;
            }
        }
        // Deprecated, but libpq still demands TLS if it is set.
        let required = around.text("PGREQUIRESSL");
        if required.is_some_and(|text| text.starts_with('1'))
            && !self.values.contains_key("sslmode")
        {
            let source = Source::Variable("PGREQUIRESSL");
            self.set("sslmode", b"require".to_vec(), source, true)?;
        }
        Ok(())
    }

    /// `sslrootcert=system` implies verify-full, and rejects anything less.
    fn root_of_the_system(&mut self) -> Result<(), Problem> {
        let Some(value) = self.values.get("sslrootcert").cloned() else {
            return Ok(());
        };
        if value.bytes != b"system" {
            return Ok(());
        }
        match self.text("sslmode")?.as_deref() {
            Some("verify-full") => Ok(()),
            None => self.set("sslmode", b"verify-full".to_vec(), value.source, true),
            Some(_) => Err(self.complaint(
                "sslmode",
                "is too weak for sslrootcert=system; only verify-full goes with it",
            )),
        }
    }

    /// Sets a value, if we support what it asks for.
    fn set(
        &mut self,
        name: &'static str,
        bytes: Vec<u8>,
        source: Source,
        harmless: bool,
    ) -> Result<(), Problem> {
        let fate = options::find(name).map_or(Fate::Honoured, |option| option.fate);
        let harmless = harmless && !is_secret(name);
        let value = Value {
            bytes,
            source,
            harmless,
        };
        let blank = value.bytes.is_empty();
        let text = String::from_utf8_lossy(&value.bytes).into_owned();
        self.values.insert(name, value);
        match fate {
            Fate::Refused(why) if !blank => {
                Err(self.complaint(name, &format!("cannot be honoured: {why}")))
            }
            Fate::Only(usable) if !is_one_of(name, &text, usable) => {
                let usable: Vec<_> = usable
                    .iter()
                    .copied()
                    .filter(|word| !word.is_empty())
                    .collect();
                let usable = usable.join(", ");
                Err(self.complaint(name, &format!("cannot be honoured; allowed are {usable}")))
            }
            _ => Ok(()),
        }
    }

    /// The value of an option.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// The value of an option as text.
    pub fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        let Some(value) = self.values.get(name) else {
            return Ok(None);
        };
        match String::from_utf8(value.bytes.clone()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(format!(
                "{}: {name} is not UTF-8",
                self.place(&value.source)
            )),
        }
    }

    /// The same; `None` if it is blank.
    pub fn filled(&self, name: &str) -> Result<Option<String>, Problem> {
        Ok(self.text(name)?.filter(|text| !text.is_empty()))
    }

    /// What is wrong with the value of an option, and where to change it.
    pub fn complaint(&self, name: &str, why: &str) -> Problem {
        format!("{} {why}", self.said(name))
    }

    /// Where an option was set, and to what.
    pub fn said(&self, name: &str) -> String {
        let Some(value) = self.values.get(name) else {
            return format!("{}: {name}", self.label);
        };
        let said = String::from_utf8_lossy(&value.bytes);
        let said = said.escape_debug();
        match (
            &value.source,
            value.harmless && !self.tells_a_password(value),
        ) {
            (Source::Variable(variable), true) => {
                format!("the environment variable {variable}={said}")
            }
            (Source::Variable(variable), false) => {
                format!("the environment variable {variable}")
            }
            (source, true) => format!("{}: {name}={said}", self.place(source)),
            (source, false) => format!("{}: {name}", self.place(source)),
        }
    }

    /// Whether it contains the password, which the user may have put in the wrong place.
    fn tells_a_password(&self, value: &Value) -> bool {
        ["password", "sslpassword"].iter().any(|name| {
            let secret = self
                .values
                .get(name)
                .map_or(&[][..], |secret| &secret.bytes);
            !secret.is_empty() && value.bytes.windows(secret.len()).any(|part| part == secret)
        })
    }

    /// What to call the URL.
    pub fn label(&self) -> &str {
        self.label
    }

    fn place(&self, source: &Source) -> String {
        match source {
            Source::Url => self.label.to_owned(),
            Source::ConnectArgs if self.label.contains("Engine") => self.label.to_owned(),
            Source::ConnectArgs => "sqlalchemy.connect_args".to_owned(),
            Source::Service(section) => format!("the service file {section}"),
            Source::Variable(name) => format!("the environment variable {name}"),
        }
    }

    /// The options of the URL and its arguments, for clients that read the environment themselves.
    pub fn explicit(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let ours = self
            .values
            .iter()
            .filter(|(_, value)| matches!(value.source, Source::Url | Source::ConnectArgs));
        ours.map(|(name, value)| (*name, value.bytes.as_slice()))
    }

    /// The file with the passwords.
    pub fn passfile(&self, around: &Surroundings<'_>) -> Result<Option<files::Passwords>, Problem> {
        let path = match self.filled("passfile")? {
            Some(path) => Path::new(&path).to_owned(),
            None => match &around.home {
                Some(home) => home.join(".pgpass"),
                None => return Ok(None),
            },
        };
        Ok(files::Passwords::read(&path))
    }
}

/// Splits `name:port`, unless it is an IPv6 address or a folder.
fn with_port(host: &str) -> (&str, Option<&str>) {
    if host.starts_with(['/', '@']) {
        return (host, None);
    }
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        if let Some(port) = rest.strip_prefix(':') {
            return (address, Some(port));
        }
        if rest.is_empty() {
            return (address, None);
        }
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether a value is one of those, compared as in libpq.
fn is_one_of(name: &str, text: &str, usable: &[&str]) -> bool {
    let any_case = |word: &&str| word.eq_ignore_ascii_case(text);
    usable.contains(&text) || (name == "replication" && usable.iter().any(any_case))
}
