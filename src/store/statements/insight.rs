//! Statements that report holds, and that end one by force.

use super::super::answer::{Parameter, Row};
use super::super::budget::Budget;
use super::super::holder::Holder;
use super::super::sql::Sql;
use super::execute::Store;
use crate::engine::{Lease, Name};
use crate::error::Result;
use crate::zone;

/// Everything known about a hold, except its token.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The name of the lock.
    pub name: String,
    /// The fencing number; score.distlock 0.2.5 draws none.
    pub fence: Option<i64>,
    /// The machine of the process that took it.
    pub host: Option<String>,
    /// The number of that process there.
    pub process: Option<i64>,
    /// Its thread, by the operating system's number.
    pub thread: Option<i64>,
    /// The holder's note.
    pub note: Option<String>,
    /// When it was acquired, in seconds since 1970.
    pub acquired: f64,
    /// When it ends unless it is extended.
    pub expires: f64,
    /// How many processes wait for it.
    pub waiters: i64,
}

/// The outcome of ending a hold by force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// It has ended, and nobody was waiting.
    Quietly,
    /// It has ended, and the first waiter was called.
    Calling,
    /// The token has no hold.
    Not,
    /// It has none now, but an answer was lost that may have reported the end.
    Perhaps,
}

/// The writing host's offset from UTC, in seconds, if the row shows it.
///
/// It does not if the last extension was for a shorter time than the current lease. Zones differ by
/// whole minutes, while such an extension comes at any moment.
fn zone_of(shown: Option<f64>, own: f64) -> f64 {
    const FARTHEST: f64 = 26.0 * 3600.0;
    let minutes = |seconds: f64| (seconds / 60.0).round() * 60.0;
    shown
        .filter(|shown| shown.abs() <= FARTHEST && (shown - minutes(*shown)).abs() < 1e-3)
        .map_or(own, minutes)
}

impl Record {
    /// Whether both describe the same hold, even if extended or transferred in between.
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

    /// The same, and its token, which may have a foreign format.
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

    /// Facts that affect how reliable the locks are here: names and values.
    pub fn facts(&self, budget: Budget) -> Result<Vec<(String, Option<String>)>> {
        let answer = self.execute(Sql::Facts, &[], budget)?;
        let facts = answer.rows.iter();
        facts
            .map(|row| Ok((row.get("fact")?, row.get("value")?)))
            .collect()
    }

    /// Pairs of locks: the holder of the first waits for the second.
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

    /// Ends the hold with this token, whatever its format, as a release does.
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
}
