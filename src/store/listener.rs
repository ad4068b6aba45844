//! The connection that receives notifications about whose turn it is.

use super::budget::Budget;
use super::failure::Failure;
use super::session::Session;
use super::sql::Sql;
use super::statements::Store;
use crate::engine::TICKET_BITS;
use rand::RngExt;
use std::time::{Duration, Instant};

/// A notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The lock is free, and it is this ticket's turn.
    Turn(i64),
    /// The lock is free, and this ticket is next, should the first not take it.
    Next(i64),
}

impl Call {
    fn parse(text: &str) -> Option<Call> {
        let (word, ticket) = text.split_once(' ')?;
        let ticket = ticket.parse().ok()?;
        match word {
            "turn" => Some(Call::Turn(ticket)),
            "next" => Some(Call::Next(ticket)),
            _ => None,
        }
    }
}

/// A listening connection, proven to receive what others send.
pub struct Listener {
    connection: Session,
    number: i64,
}

/// Why there is no listener.
pub enum NotListening {
    /// The database cannot be reached, or does not answer in time.
    Unreachable(Failure),
    /// The database is reachable, but notifications do not come through.
    Pooler,
}

impl From<Failure> for NotListening {
    fn from(failure: Failure) -> NotListening {
        NotListening::Unreachable(failure)
    }
}

impl Listener {
    /// How long a notification to ourselves may take.
    const PROOF: Duration = Duration::from_secs(1);

    /// Opens a listening connection and proves it.
    pub fn open(store: &Store, budget: Budget) -> Result<Listener, NotListening> {
        let number = rand::rng().random_range(1..1_i64 << (63 - TICKET_BITS));
        let mut connection = store.connect(budget)?;
        // Behind a pooler, LISTEN would stay on a server process that others use.
        if !connection.is_ours(budget)? {
            return Err(NotListening::Pooler);
        }
        connection.batch(&format!("LISTEN score_distlock_{number:x}"), budget)?;
        let proof = format!("proof {}", rand::rng().random::<u64>());
        if let Err(error) = store.tell(number, &proof, budget) {
            return Err(Failure::Stopped(error).into());
        }
        let until = Instant::now() + Listener::PROOF;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if connection.listen(left)?.contains(&proof) {
                break;
            }
            if left.is_zero() {
                return Err(NotListening::Pooler);
            }
        }
        let statements = store.statements(budget).map_err(Failure::Stopped)?;
        let process = store.process(budget);
        connection.query_unprepared(&statements[Sql::Process], &[&process], budget)?;
        let answer =
            connection.query_unprepared(&statements[Sql::ListenKey], &[&number], budget)?;
        let alone = answer.rows.first().map(|row| row.get("alone")).transpose();
        if alone.map_err(Failure::Stopped)? != Some(true) {
            let reason = "another listener has the same number".to_owned();
            return Err(Failure::Broken(reason).into());
        }
        Ok(Listener { connection, number })
    }

    /// The number that its tickets begin with; every connection has a different one.
    #[must_use]
    pub fn number(&self) -> i64 {
        self.number
    }

    /// Waits for calls, no longer than `slice`.
    pub fn hear(&mut self, slice: Duration) -> Result<Vec<Call>, Failure> {
        let heard = self.connection.listen(slice)?;
        Ok(heard.iter().filter_map(|text| Call::parse(text)).collect())
    }

    /// Checks that the server is still there, without executing a statement.
    pub fn ping(&mut self, budget: Budget) -> Result<(), Failure> {
        self.connection.ping(budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_understood_and_nothing_else() {
        assert_eq!(Call::parse("turn 17"), Some(Call::Turn(17)));
        assert_eq!(Call::parse("next 17"), Some(Call::Next(17)));
        for other in ["", "turn", "turn x", "proof 1", "Turn 1"] {
            assert_eq!(Call::parse(other), None);
        }
    }
}
