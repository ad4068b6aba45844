//! What is told about holds, and their end by force.

use super::budget::Budget;
use super::session::{Parameter, Row};
use super::sql::Sql;
use super::statements::Store;
use crate::engine::{Lease, Name};
use crate::error::Result;
use crate::zone;
use std::sync::Arc;

/// What is known about a hold; never its token.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The name of the lock.
    pub name: String,
    /// The fencing number; score.distlock 0.2.5 draws none.
    pub fence: Option<i64>,
    /// Which machine and process took it.
    pub host: Option<String>,
    /// The number of that process there.
    pub process: Option<i64>,
    /// Which of its threads, by the number that the operating system gave it.
    pub thread: Option<i64>,
    /// What the holder said about it.
    pub note: Option<String>,
    /// When it was acquired, in seconds since 1970.
    pub acquired: f64,
    /// When it ends unless it is extended.
    pub expires: f64,
    /// How many processes wait for it.
    pub waiters: i64,
}

/// What came of the attempt to end a hold by force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// It has ended, and nobody waited.
    Quietly,
    /// It has ended, and who waits first was called.
    Calling,
    /// The token has no hold.
    Not,
    /// It has none now, but an answer was lost, which may have been that of the end.
    Perhaps,
}

/// Who holds, from the column `holder`: `host:process`, then perhaps `:thread`, then perhaps a
/// blank and a note. Whatever else is there has no meaning.
#[derive(Debug, Default, PartialEq)]
struct Holder {
    host: Option<String>,
    process: Option<i64>,
    thread: Option<i64>,
    note: Option<String>,
}

/// What a holder says about itself, besides where it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    /// Its thread, by the number that the operating system gave it.
    pub thread: Option<i64>,
    /// What it holds the lock for.
    pub note: Option<Arc<str>>,
}

impl About {
    /// What goes into the column `holder`.
    pub(super) fn of(&self, host: &str, process: u32) -> String {
        let place = match self.thread {
            Some(thread) => format!("{host}:{process}:{thread}"),
            None => format!("{host}:{process}"),
        };
        match &self.note {
            Some(note) => format!("{place} {note}"),
            None => place,
        }
    }
}

/// A number of a process or a thread.
fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

impl Holder {
    fn parse(text: &str) -> Holder {
        let (place, note) = match text.split_once(' ') {
            Some((place, note)) => (place, Some(note.to_owned())),
            None => (text, None),
        };
        let mut parts = place.split(':');
        let host = parts.next().filter(|host| !host.is_empty());
        let (process, thread) = (parts.next(), parts.next());
        let understood = Holder {
            host: host.map(str::to_owned),
            process: process.and_then(number),
            thread: thread.and_then(number),
            note,
        };
        let whole = understood.host.is_some()
            && understood.process.is_some()
            && understood.thread.is_some() == thread.is_some()
            && parts.next().is_none();
        if whole { understood } else { Holder::default() }
    }
}

/// How far a host's clock was from UTC, in seconds, if it is what the row shows.
///
/// It is not if the last extension was for a shorter time than the lease that stands. Zones
/// differ by whole minutes, and such an extension comes at any moment.
fn zone_of(shown: Option<f64>, own: f64) -> f64 {
    const FARTHEST: f64 = 26.0 * 3600.0;
    let minutes = |seconds: f64| (seconds / 60.0).round() * 60.0;
    shown
        .filter(|shown| shown.abs() <= FARTHEST && (shown - minutes(*shown)).abs() < 1e-3)
        .map_or(own, minutes)
}

impl Record {
    /// Whether both are of one hold, however often it was extended or transferred.
    #[must_use]
    pub fn is_of(&self, other: &Record) -> bool {
        match (self.fence, other.fence) {
            (None, None) => self.acquired.to_bits() == other.acquired.to_bits(),
            (one, other) => one == other,
        }
    }

    fn read(row: &Row) -> Result<Record> {
        let holder: Option<&str> = row.get("holder")?;
        let holder = holder.map(Holder::parse).unwrap_or_default();
        let zone = zone_of(row.get("shown")?, zone::offset());
        Ok(Record {
            name: row.get("name")?,
            fence: row.get("fence")?,
            host: holder.host,
            process: holder.process,
            thread: holder.thread,
            note: holder.note,
            acquired: row.get::<f64>("acquired")? - zone,
            expires: row.get("ends")?,
            waiters: row.get("waiting")?,
        })
    }
}

impl Store {
    /// All holds, by name.
    pub fn holders(&self, lease: Lease, budget: Budget) -> Result<Vec<Record>> {
        let parameters: [Parameter; 2] = [&lease.seconds(), &zone::offset()];
        let answer = self.execute(Sql::Holders, &parameters, budget)?;
        let records = answer.rows.iter().map(Record::read);
        let mut records = records.collect::<Result<Vec<Record>>>()?;
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    }

    /// The hold of a lock, if there is one.
    pub fn info(&self, name: &Name, lease: Lease, budget: Budget) -> Result<Option<Record>> {
        let found = self.look_at(Sql::Info, name, lease, budget)?;
        found.as_ref().map(Record::read).transpose()
    }

    /// The same and its token, which may be none of ours.
    pub fn revocable(
        &self,
        name: &Name,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Record, String)>> {
        let found = self.look_at(Sql::Revocable, name, lease, budget)?;
        found
            .map(|row| Ok((Record::read(&row)?, row.get("token")?)))
            .transpose()
    }

    /// What decides about how well locks are kept here: names and values.
    pub fn facts(&self, budget: Budget) -> Result<Vec<(String, Option<String>)>> {
        let answer = self.execute(Sql::Facts, &[], budget)?;
        let facts = answer.rows.iter();
        facts
            .map(|row| Ok((row.get("fact")?, row.get("value")?)))
            .collect()
    }

    /// Pairs of locks: who holds the first waits for the second.
    pub fn waits(&self, lease: Lease, budget: Budget) -> Result<Vec<(String, String)>> {
        let parameters: [Parameter; 2] = [&lease.seconds(), &zone::offset()];
        let answer = self.execute(Sql::Waits, &parameters, budget)?;
        let waits = answer.rows.iter();
        waits
            .map(|row| Ok((row.get("held")?, row.get("awaited")?)))
            .collect()
    }

    fn look_at(&self, sql: Sql, name: &Name, lease: Lease, budget: Budget) -> Result<Option<Row>> {
        let parameters: [Parameter; 3] = [&name.as_str(), &lease.seconds(), &zone::offset()];
        let answer = self
            .execute(sql, &parameters, budget)
            .map_err(|error| error.about(name))?;
        Ok(answer.rows.into_iter().next())
    }

    /// Ends the hold that has this token, whatever it looks like, as a release does.
    pub fn end(&self, name: &Name, token: &str, lease: Lease, budget: Budget) -> Result<Ended> {
        let parameters: [Parameter; 4] =
            [&name.as_str(), &token, &lease.seconds(), &zone::offset()];
        let answer = self
            .execute(Sql::ReleaseAwaited, &parameters, budget)
            .map_err(|error| error.about(name))?;
        Ok(match answer.rows.first() {
            Some(row) if row.get::<Option<&str>>("notified")?.is_some() => Ended::Calling,
            Some(_) => Ended::Quietly,
            None if answer.repeated => Ended::Perhaps,
            None => Ended::Not,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(host: &str, process: i64, thread: Option<i64>, note: Option<&str>) -> Holder {
        Holder {
            host: Some(host.to_owned()),
            process: Some(process),
            thread,
            note: note.map(str::to_owned),
        }
    }

    #[test]
    fn a_holder_is_read() {
        assert_eq!(Holder::parse("web1:17"), holder("web1", 17, None, None));
        assert_eq!(
            Holder::parse("web1:17:18"),
            holder("web1", 17, Some(18), None)
        );
        assert_eq!(
            Holder::parse("web1:17:18 a: note: 5"),
            holder("web1", 17, Some(18), Some("a: note: 5"))
        );
        assert_eq!(
            Holder::parse("web1:17 note"),
            holder("web1", 17, None, Some("note"))
        );
    }

    #[test]
    fn what_is_no_holder_says_nothing() {
        for text in [
            "",
            ":",
            ":17",
            "web1",
            "web1:",
            "web1:x",
            "web1:-1",
            "web1:+1",
            "web1:17:",
            "web1:17:x",
            "web1:1:2:3",
            "web1:99999999999999999999",
            " web1:17",
            "a b:17",
        ] {
            assert_eq!(Holder::parse(text), Holder::default(), "{text}");
        }
    }

    #[test]
    fn a_zone_is_read_off_the_row_only_if_it_can_be_one() {
        for (shown, zone) in [
            (Some(7200.0), 7200.0),
            (Some(-34_200.000_1), -34_200.0),
            (Some(0.0), 0.0),
            (Some(7217.3), 1.0),
            (Some(100.0 * 3600.0), 1.0),
            (Some(f64::NAN), 1.0),
            (Some(f64::INFINITY), 1.0),
            (None, 1.0),
        ] {
            assert!((zone_of(shown, 1.0) - zone).abs() < 1e-9, "{shown:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(
            host in "[a-zA-Z0-9._-]{1,20}", process: u32, thread: Option<u32>,
            note in proptest::option::of("\\PC{1,20}"),
        ) {
            let thread = thread.map(i64::from);
            let about = About { thread, note: note.clone().map(Arc::from) };
            let read = Holder::parse(&about.of(&host, process));
            proptest::prop_assert_eq!(read, holder(&host, i64::from(process), thread, note.as_deref()));
        }

        #[test]
        fn any_text_is_read(text in "\\PC{0,40}") {
            let _ = Holder::parse(&text);
        }
    }
}
