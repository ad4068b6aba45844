//! `pg_service.conf` and `.pgpass`, as libpq reads them.

use super::Surroundings;
use super::text::Problem;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where distributors put `pg_service.conf`; libpq has one of these compiled in.
const SYSTEM: &[&str] = &["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc"];

/// The lines of a service: names and values.
type Lines = Vec<(String, Vec<u8>)>;

/// Looks up a service; also returns the file it was found in.
pub fn service(name: &str, around: &Surroundings<'_>) -> Result<(PathBuf, Lines), Problem> {
    let own = match around.text("PGSERVICEFILE") {
        Some(path) => Some(PathBuf::from(path)),
        None => around
            .home
            .as_ref()
            .map(|home| home.join(".pg_service.conf")),
    };
    let demanded = around.text("PGSERVICEFILE").is_some();
    let mut paths: Vec<(PathBuf, bool)> = own.into_iter().map(|path| (path, demanded)).collect();
    match around.text("PGSYSCONFDIR") {
        Some(folder) => paths.push((Path::new(&folder).join("pg_service.conf"), false)),
        None => paths.extend(
            SYSTEM
                .iter()
                .map(|folder| (Path::new(folder).join("pg_service.conf"), false)),
        ),
    }
    for (path, demanded) in &paths {
        if !demanded && !path.exists() {
            continue;
        }
        let bytes = fs::read(path)
            .map_err(|error| format!("the service file {}: {error}", path.display()))?;
        if let Some(lines) = section(&bytes, name, path)? {
            return Ok((path.clone(), lines));
        }
    }
    let paths: Vec<String> = paths
        .iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    Err(format!(
        "the service {name:?} (service, PGSERVICE) is in none of the service files {}",
        paths.join(", ")
    ))
}

/// The section with this name, if there is one.
fn section(bytes: &[u8], name: &str, path: &Path) -> Result<Option<Lines>, Problem> {
    let wrong = |number: usize| {
        Err(format!(
            "the service file {}: line {} is neither name=value nor [section] nor a comment",
            path.display(),
            number + 1
        ))
    };
    let mut found: Option<Lines> = None;
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if let Some(rest) = line.strip_prefix(b"[") {
            if found.is_some() {
                break;
            }
            if rest
                .strip_prefix(name.as_bytes())
                .is_some_and(|rest| rest.starts_with(b"]"))
            {
                found = Some(Vec::new());
            }
        } else if let Some(lines) = &mut found {
            let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
                return wrong(number);
            };
            let (key, value) = (&line[..equals], &line[equals + 1..]);
            let Ok(key) = std::str::from_utf8(key) else {
                return wrong(number);
            };
            if !lines.iter().any(|(known, _)| known == key) {
                lines.push((key.to_owned(), value.to_vec()));
            }
        }
    }
    Ok(found)
}

/// A file with passwords: `host:port:database:user:password`.
pub struct Passwords(Vec<[Vec<u8>; 5]>);

impl Passwords {
    /// Reads it; like libpq, ignores a file that is not its owner's alone.
    pub fn read(path: &Path) -> Option<Passwords> {
        let metadata = fs::metadata(path).ok()?;
        let shown = path.display();
        if !metadata.is_file() {
            // /dev/null is the usual way to say that there is none.
            log::debug!("the password file {shown} is not a file and is not used");
            return None;
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            log::warn!(
                "the password file {shown} is not used, because others may read it: chmod 600 {shown}"
            );
            return None;
        }
        match fs::read(path) {
            Ok(bytes) => Some(Passwords::parse(&bytes)),
            Err(error) => {
                log::warn!("the password file {shown} cannot be read: {error}");
                None
            }
        }
    }

    fn parse(bytes: &[u8]) -> Passwords {
        let lines = bytes.split(|byte| *byte == b'\n');
        let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
        Passwords(lines.filter_map(fields).collect())
    }

    /// The password on the first matching line.
    pub fn find(&self, host: &str, port: u16, database: &str, user: &str) -> Option<Vec<u8>> {
        let port = port.to_string();
        let wanted = [host, &port, database, user];
        let line = self.0.iter().find(|line| {
            let pairs = line.iter().zip(wanted);
            pairs
                .into_iter()
                .all(|(field, wanted)| field == b"*" || unescaped(field) == wanted.as_bytes())
        })?;
        Some(unescaped(&line[4])).filter(|password| !password.is_empty())
    }
}

/// The fields of a line, still escaped: a lone `*` differs from `\*`.
fn fields(line: &[u8]) -> Option<[Vec<u8>; 5]> {
    let mut fields = vec![Vec::new()];
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => fields.push(Vec::new()),
            b'\\' => {
                let last = fields.last_mut()?;
                last.push(b'\\');
                last.extend(bytes.next());
            }
            _ => fields.last_mut()?.push(*byte),
        }
    }
    // Ignore anything after the password.
    fields.truncate(5);
    fields.try_into().ok()
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'\\' => bytes.next().unwrap_or(byte),
            _ => byte,
        };
        plain.push(*byte);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_files_as_libpq_reads_them() {
        let file = Passwords::parse(
            b"# comment\n\nnonsense\nh:5432:d:u:plain\nh\\:x:*:*:u:a\\:b\\\\c:rest\r\n*:*:*:\\*:star\n*:1:*:*:\n",
        );
        let find = |host, port, user| file.find(host, port, "d", user);
        assert_eq!(find("h", 5432, "u"), Some(b"plain".to_vec()));
        assert_eq!(find("h:x", 1, "u"), Some(b"a:b\\c".to_vec()));
        assert_eq!(find("any", 7, "*"), Some(b"star".to_vec()));
        assert_eq!(find("any", 1, "v"), None);
        assert_eq!(find("any", 2, "v"), None);
    }

    #[test]
    fn sections_of_a_service_file() {
        let path = Path::new("file");
        let text =
            b"# c\n[one]\nhost=a\n\n[two]\n host=b\nport=1\nhost=c\n[three]\nhost=d\nnonsense\n";
        let of = |name| section(text, name, path);
        let two = of("two").unwrap().unwrap();
        assert_eq!(two[0], ("host".to_owned(), b"b".to_vec()));
        assert_eq!(two.len(), 2);
        assert!(of("four").unwrap().is_none());
        assert!(of("three").unwrap_err().contains("line 11"));
    }
}
