//! Hosts, addresses and ports of the servers.

use super::found::Found;
use super::text::{Problem, is_port};
use std::fmt::{Debug, Display, Formatter, Result as Formatted};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// One place where the server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name in the URL.
    pub place: Place,
    /// `hostaddr`: where to connect instead of looking up the host's name; an IPv6 address may have
    /// a zone.
    pub address: Option<String>,
    /// The password from the password file for this host, if the URL has none.
    pub password: Option<Password>,
}

/// A socket's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket. An abstract one begins with NUL.
    Unix(PathBuf),
}

/// A password; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub Vec<u8>);

impl Debug for Password {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        f.write_str("***")
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        match &self.place {
            Place::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Place::Tcp(host, port) => write!(f, "{host}:{port}"),
            Place::Unix(path) => f.write_str(&path.to_string_lossy().replace('\0', "@")),
        }
    }
}

/// The folder for sockets that is compiled into libpq: /tmp, or on Debian and Red Hat
/// /var/run/postgresql.
pub fn default_folder() -> &'static str {
    let debian = "/var/run/postgresql";
    if Path::new(debian).is_dir() {
        debian
    } else {
        "/tmp"
    }
}

/// The hosts, each with its address and port.
pub struct Spot {
    pub host: String,
    pub address: Option<String>,
    pub port: u16,
}

impl Spot {
    /// The socket.
    pub fn place(&self) -> Place {
        if self.host.starts_with(['/', '@']) {
            let folder = match self.host.strip_prefix('@') {
                Some(name) => format!("\0{name}"),
                None => self.host.clone(),
            };
            return Place::Unix(Path::new(&folder).join(format!(".s.PGSQL.{}", self.port)));
        }
        Place::Tcp(self.host.clone(), self.port)
    }

    /// The host's name in a password file.
    pub fn name_in_passfile(&self) -> &str {
        match self.host.as_str() {
            host if host == default_folder() => "localhost",
            host => host,
        }
    }
}

/// Pairs the lists as libpq does.
pub fn spots(found: &Found<'_>) -> Result<Vec<Spot>, Problem> {
    let list = |name| -> Result<Vec<String>, Problem> {
        let text = found.filled(name)?.unwrap_or_default();
        Ok(text.split(',').map(|item| item.trim().to_owned()).collect())
    };
    let (hosts, addresses, ports) = (list("host")?, list("hostaddr")?, list("port")?);
    let named = found.filled("host")?.is_some();
    let addressed = found.filled("hostaddr")?.is_some();
    let count = if addressed {
        addresses.len()
    } else {
        hosts.len()
    };
    if named && hosts.len() != count {
        let why = format!("has {count} addresses for {} hosts", hosts.len());
        return Err(found.complaint("hostaddr", &why));
    }
    if ports.len() != 1 && ports.len() != count {
        let why = format!("has {} ports for {count} hosts", ports.len());
        return Err(found.complaint("port", &why));
    }
    let empty = String::new();
    (0..count)
        .map(|index| {
            let host = hosts.get(index).unwrap_or(&empty);
            let address = addresses.get(index).unwrap_or(&empty);
            let port = ports.get(index).unwrap_or(&ports[0]);
            spot(found, host, address, port)
        })
        .collect()
}

fn spot(found: &Found<'_>, host: &str, address: &str, port: &str) -> Result<Spot, Problem> {
    if !is_port(port) {
        return Err(found.complaint("port", "is not understood; ports are 1 to 65535"));
    }
    if !address.is_empty() && !is_address(address) {
        let why = "is not understood; allowed are IPv4 and IPv6 addresses";
        return Err(found.complaint("hostaddr", why));
    }
    let host = match (host, address) {
        ("", "") => default_folder(),
        ("", address) => address,
        (host, _) => host,
    };
    if !host.starts_with(['/', '@']) && !is_name(host) && !is_address(host) {
        return Err(format!(
            "{}: what stands where the host is expected is neither a host's name nor an address; \
             percent-encode special characters in user and password",
            found.label()
        ));
    }
    Ok(Spot {
        host: host.to_owned(),
        address: Some(address.to_owned()).filter(|address| !address.is_empty()),
        // libpq's default.
        port: port.parse().unwrap_or(5432),
    })
}

fn is_name(host: &str) -> bool {
    let usual = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    !host.is_empty() && host.len() <= 255 && host.chars().all(usual)
}

fn is_address(text: &str) -> bool {
    let address = text.split_once('%').map_or(text, |(address, _)| address);
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => address == text,
        Ok(IpAddr::V6(_)) => true,
        Err(_) => false,
    }
}
