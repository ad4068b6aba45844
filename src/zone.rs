//! The host's time zone.
//!
//! No decision about a hold depends on it; but score.distlock 0.2.5 reads and writes naive
//! timestamps in the zone of its host, as found by the C library. So `TZ` means the same here.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::cell::RefCell;
use std::env::var_os;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a reading stays valid: the host's zone may change.
const GOOD: Duration = Duration::from_secs(1);
/// The zone of hosts on which `TZ` is not set.
const HOST: &str = "/etc/localtime";
/// Where the common C libraries look for zones by name.
const FOLDERS: [&str; 3] = ["/usr/share/zoneinfo", "/share/zoneinfo", "/etc/zoneinfo"];
/// The dates of summer time if `TZ` only names it, as in `PST8PDT7`.
const SUMMER: &str = ",M3.2.0,M11.1.0";

struct Known {
    name: Option<OsString>,
    read: Instant,
    zone: TimeZone,
}

thread_local! {
    // Per thread: after a fork, a mutex might stay locked for ever.
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// The host's current offset from UTC, in seconds, east positive.
#[must_use]
pub fn offset() -> f64 {
    let name = var_os("TZ");
    KNOWN.with_borrow_mut(|known| {
        let known = match known {
            Some(known) if known.name == name && known.read.elapsed() < GOOD => known,
            _ => known.insert(Known {
                zone: zone(name.as_deref()),
                name,
                read: Instant::now(),
            }),
        };
        f64::from(known.zone.to_offset(Timestamp::now()).seconds())
    })
}

/// The zone that a value of `TZ` means to the C library: a file takes precedence over a rule, and
/// anything else is UTC.
fn zone(name: Option<&OsStr>) -> TimeZone {
    let Some(name) = name else {
        return file(Path::new(HOST)).unwrap_or(TimeZone::UTC);
    };
    let Some(name) = name.to_str() else {
        return TimeZone::UTC;
    };
    let name = name.strip_prefix(':').unwrap_or(name);
    if name.is_empty() {
        return TimeZone::UTC;
    }
    let named = match var_os("TZDIR").filter(|folder| !folder.is_empty()) {
        // An absolute path replaces the folder.
        Some(folder) => file(&PathBuf::from(folder).join(name)),
        None => FOLDERS
            .iter()
            .find_map(|folder| file(&Path::new(folder).join(name))),
    };
    named
        .or_else(|| rule(name))
        .or_else(|| rule(&format!("{}{SUMMER}", name.trim_end_matches(','))))
        // If the end of a rule is invalid, use its valid beginning.
        .or_else(|| {
            name.char_indices()
                .rev()
                .find_map(|(end, _)| rule(&name[..end]))
        })
        .unwrap_or(TimeZone::UTC)
}

fn rule(text: &str) -> Option<TimeZone> {
    TimeZone::posix(text).ok()
}

fn file(path: &Path) -> Option<TimeZone> {
    TimeZone::tzif("", &std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const VALUES: &[&str] = &[
        "",
        ":",
        "UTC",
        "UTC0",
        "Europe/Vienna",
        ":Europe/Vienna",
        "/usr/share/zoneinfo/Asia/Kolkata",
        ":/usr/share/zoneinfo/Asia/Kolkata",
        "Australia/Lord_Howe",
        "America/Nuuk",
        "Africa/Casablanca",
        "Europe/Dublin",
        "EST5EDT",
        "GMT+5",
        "AEST-10AEDT",
        "AEST-10AEDT,",
        "PST8PDT7",
        "NZST-12NZDT-13:30",
        "IST-2IDT,M3.4.4/26,M10.5.0",
        "<-02>2<-01>,M3.5.0/-1,M10.5.0/0",
        "IST-1GMT0,M10.5.0,M3.5.0/1",
        "AEST-10AEDT,M10.1.0,M4.1.0/3",
        "XXX-5:30:15YYY,J60/0,J300/23:59:59",
        "XXX3YYY,59,299/4",
        "<+0330>-3:30",
        "No/Such_Zone",
        "nonsense",
        "/no/such/file",
        "AB3",
        "ABC",
        "<A>3",
        "XXX-24:59:59",
        "localtime",
        "PST8PDT7,",
        "xxx-3yyy",
        "XXX5:30",
        "UTC-5:30",
        "../../../etc/localtime",
        "::Europe/Vienna",
    ];

    /// The C library's answer, through `date`.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn every_tz_means_what_it_means_to_the_c_library() {
        let mut wrong = std::collections::BTreeSet::new();
        for name in VALUES {
            for step in 0..53 {
                let second = 1_767_225_600 + step * 7 * 86_400;
                let output = Command::new("date")
                    .env("TZ", name)
                    .args(["-d", &format!("@{second}"), "+%::z"])
                    .output()
                    .expect("date runs");
                let text = String::from_utf8(output.stdout).expect("digits");
                let digits = text.trim().trim_start_matches(['+', '-']).split(':');
                let size = digits.fold(0, |sum, part| sum * 60 + part.parse::<i32>().unwrap());
                let sign = if text.starts_with('-') { -1 } else { 1 };
                let moment = Timestamp::from_second(second).unwrap();
                let ours = zone(Some(OsStr::new(name))).to_offset(moment).seconds();
                if ours != sign * size {
                    wrong.insert(*name);
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn a_host_without_tz_has_a_zone() {
        assert!(offset().abs() < 86400.0);
        assert!(zone(None).to_offset(Timestamp::now()).seconds().abs() < 86400);
    }
}
