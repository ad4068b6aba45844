//! Shows a URL in messages and tests, without its passwords.

use super::endpoints::{Endpoint, Place};
use super::settings::{attributes_word, binding_word, mode_word};
use super::{Url, settings};
use crate::store::tls::Roots;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_postgres::Config;

/// Characters that stay readable.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'/');

/// An ordinary user or database name; anything else may contain more than a name.
fn clean(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    if text.contains(['=', '?', '&', ':', ';', '\n', '\'']) || text.len() > 63 {
        return "…".to_owned();
    }
    utf8_percent_encode(text, ENCODED).to_string()
}

/// The URL as we understand it, without password and options.
pub fn redacted(
    scheme: &str,
    explicit: &[(&'static str, Vec<u8>)],
    config: &Config,
    endpoints: &[Endpoint],
) -> String {
    let password = explicit.iter().any(|(name, _)| *name == "password");
    let password = if password { ":***" } else { "" };
    let user = clean(config.get_user());
    let database = clean(config.get_dbname());
    let places: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let places = places.join(",");
    if endpoints
        .iter()
        .all(|endpoint| matches!(endpoint.place, Place::Tcp(..)))
    {
        format!("{scheme}://{user}{password}@{places}/{database}")
    } else {
        format!("{scheme}://{user}{password}@/{database} ({places})")
    }
}

impl Url {
    /// How we understand the URL, for tests; without the password.
    #[must_use]
    #[allow(clippy::too_many_lines)] // a table
    pub fn explain(&self) -> Vec<(&'static str, String)> {
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let seconds = |time: Option<std::time::Duration>| {
            time.map_or(String::new(), |time| time.as_secs().to_string())
        };
        let keepalives = &self.keepalives;
        let places = self.endpoints.iter().map(ToString::to_string);
        let addresses = self.endpoints.iter();
        let addresses = addresses.map(|endpoint| endpoint.address.clone().unwrap_or_default());
        vec![
            ("user", text(self.config.get_user())),
            ("dbname", text(self.config.get_dbname())),
            ("options", text(self.config.get_options())),
            ("application_name", text(self.config.get_application_name())),
            ("endpoints", places.collect::<Vec<_>>().join(" ")),
            ("hostaddr", addresses.collect::<Vec<_>>().join(",")),
            ("sslmode", mode_word(self.tls.mode).to_owned()),
            (
                "sslrootcert",
                match &self.tls.roots {
                    Roots::Default => String::new(),
                    Roots::System => "system".to_owned(),
                    Roots::File(path) => path.display().to_string(),
                },
            ),
            ("sslcert", shown_path(self.tls.certificate.as_deref())),
            ("sslkey", shown_path(self.tls.key.as_deref())),
            (
                "channel_binding",
                binding_word(self.tls.channel_binding).to_owned(),
            ),
            (
                "require_auth",
                settings::auth_words(self.require_auth.as_ref()),
            ),
            (
                "target_session_attrs",
                attributes_word(self.target_session_attrs).to_owned(),
            ),
            (
                "load_balance_hosts",
                if self.load_balance_hosts {
                    "random"
                } else {
                    "disable"
                }
                .to_owned(),
            ),
            ("connect_timeout", seconds(self.connect_timeout)),
            (
                "tcp_user_timeout",
                self.tcp_user_timeout
                    .map_or(String::new(), |time| time.as_millis().to_string()),
            ),
            ("keepalives", u8::from(keepalives.enabled).to_string()),
            ("keepalives_idle", seconds(keepalives.idle)),
            ("keepalives_interval", seconds(keepalives.interval)),
            (
                "keepalives_count",
                keepalives
                    .count
                    .map_or(String::new(), |count| count.to_string()),
            ),
            ("shown", self.to_string()),
        ]
    }

    /// The password for each endpoint, for tests that know it.
    #[must_use]
    pub fn passwords(&self) -> Vec<Option<&[u8]>> {
        let own = self.config.get_password();
        let endpoints = self.endpoints.iter();
        endpoints
            .map(|endpoint| own.or(endpoint.password.as_ref().map(|password| &*password.0)))
            .collect()
    }
}

fn shown_path(path: Option<&std::path::Path>) -> String {
    path.map_or(String::new(), |path| path.display().to_string())
}
