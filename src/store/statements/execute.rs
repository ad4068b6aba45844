//! The table of locks of one database, and how to execute a statement on it.
//!
//! Every statement is safe to repeat, so a broken connection is replaced within the call. The token
//! identifies a repetition.

use super::super::answer::{Parameter, Row};
use super::super::budget::Budget;
use super::super::clock::Clock;
use super::super::failure::{Failure, ServerError};
use super::super::holder::About;
use super::super::pace::Pace;
use super::super::pool::{Pool, result};
use super::super::schema;
use super::super::session::Session;
use super::super::settings::Settings;
use super::super::sql::{Sql, Statements};
use super::super::url::Url;
use crate::engine::{Lease, Moment, Name, Table, Token, VALID};
use crate::error::{Error, Result};
use crate::zone;
use rand::RngExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// How the name of the primary key begins; a number may follow. A conflict on the key of `name` is
/// no error: the statements that insert expect it.
const PRIMARY: &str = "_score_distlock_pkey";

/// The table of locks of one database.
pub struct Store {
    pool: Pool,
    pub(super) clock: Clock,
    holder: OnceLock<String>,
    /// A table owner to trust in addition to the roles that are always trusted.
    table_owner: Option<String>,
    /// The table, once it is known to be there and complete.
    found: OnceLock<Found>,
    /// We have written once, so the database is the right one.
    written: AtomicBool,
    /// When to remove rows that nobody needs.
    pub(super) pace: Pace,
}

/// The table that was found.
struct Found {
    table: Table,
    statements: Statements,
}

/// The history of the attempts to execute a statement.
struct Attempts {
    /// An attempt may have had an effect: its answer was lost.
    repeated: bool,
    /// How often sequences were repaired, a limit was hit, a session retired.
    repairs: u32,
    limited: u32,
    retired: usize,
    /// Why the last connection broke.
    last: Option<String>,
    pause: Duration,
}

impl Attempts {
    const SHORTEST: Duration = Duration::from_millis(5);

    fn new() -> Attempts {
        Attempts {
            repeated: false,
            repairs: 0,
            limited: 0,
            retired: 0,
            last: None,
            pause: Attempts::SHORTEST,
        }
    }

    /// Waits before the next attempt. The first repetition goes at once, as it is usually an idle
    /// connection that broke.
    fn pause(&mut self, taken: bool, budget: Budget) -> Result<()> {
        if !taken || self.pause > Attempts::SHORTEST {
            budget.pause(self.pause.mul_f64(rand::rng().random_range(0.5..1.5)))?;
        }
        self.pause = (self.pause * 2).min(Duration::from_millis(500));
        Ok(())
    }
}

/// The result of executing a statement, and whether earlier attempts in the same call may have had
/// an effect.
pub(in super::super) struct Outcome {
    pub(in super::super) rows: Vec<Row>,
    /// How many rows the statement changed or returned.
    pub(super) affected: u64,
    pub(super) sent: Moment,
    pub(super) repeated: bool,
}

/// The row or the table was locked for longer than a statement that takes a lock waits.
pub(super) struct Locked {
    /// An answer was lost on the way: its statement may have had an effect.
    pub(super) unknown: bool,
}

/// The answer to a statement that limits its wait for other transactions.
pub(super) fn unless_locked(
    answer: Result<Outcome>,
) -> Result<std::result::Result<Outcome, Locked>> {
    match answer {
        Err(Error::Sql {
            sqlstate, unknown, ..
        }) if is_a_limit(&sqlstate) => Ok(Err(Locked { unknown })),
        answer => answer.map(Ok),
    }
}

/// `lock_not_available` and `query_canceled`: the statement took longer than
/// `lock_timeout` or `statement_timeout` allows, and has done nothing.
fn is_a_limit(sqlstate: &str) -> bool {
    matches!(sqlstate, "55P03" | "57014")
}

/// The first row of the answer to a statement that always returns one.
pub(super) fn only(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| Error::Sql {
        sqlstate: "02000".to_owned(),
        // The statement was executed.
        unknown: true,
        message: "the statement brought no row".to_owned(),
    })
}

impl Store {
    /// A store that opens no connection before its first use.
    #[must_use]
    pub fn new(url: Url, settings: Settings, table_owner: Option<String>) -> Store {
        Store {
            table_owner,
            pool: Pool::new(url, settings),
            clock: Clock::default(),
            holder: OnceLock::new(),
            found: OnceLock::new(),
            written: AtomicBool::new(false),
            pace: Pace::new(),
        }
    }

    /// Where the database is.
    #[must_use]
    pub fn url(&self) -> &Url {
        self.pool.url()
    }

    /// How long one call may take: `pool_timeout`.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.pool.settings.timeout
    }

    /// How many connections there may be at once.
    #[must_use]
    pub fn connections(&self) -> usize {
        let settings = &self.pool.settings;
        let most = settings
            .overflow
            .map_or(64, |overflow| settings.size + overflow);
        most.clamp(1, 256)
    }

    /// What the `holder` of this process's holds begins with.
    pub(in crate::store) fn process(&self, budget: Budget) -> String {
        self.holder(budget.process, &About::default())
    }

    /// The holder, for people to read: see [`About`].
    pub(super) fn holder(&self, process: u32, about: &About) -> String {
        let host = self.holder.get_or_init(|| {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        });
        about.of(host, process)
    }

    /// Creates or upgrades the table over a separate connection, which is then closed.
    pub fn ensure_schema(&self, budget: Budget) -> Result<()> {
        let outcome = self.pool.connect(budget).and_then(|mut connection| {
            let owner = self.table_owner.as_deref();
            let options = self.pool.url().config.get_options();
            schema::ensure(&mut connection, owner, options, budget)
        });
        let (schema, table) = result(outcome, &self.pool)?;
        self.found.get_or_init(|| Found {
            table,
            statements: Statements::new(&schema),
        });
        Ok(())
    }

    /// The table; makes sure that it exists if that is not known yet.
    fn found(&self, budget: Budget) -> Result<&Found> {
        loop {
            match self.found.get() {
                Some(found) => return Ok(found),
                None => self.ensure_schema(budget)?,
            }
        }
    }

    /// The statements on the table.
    pub fn statements(&self, budget: Budget) -> Result<&Statements> {
        Ok(&self.found(budget)?.statements)
    }

    /// Which table it is.
    pub fn table(&self, budget: Budget) -> Result<&Table> {
        Ok(&self.found(budget)?.table)
    }

    /// Which table it is, if that is known.
    #[must_use]
    pub fn known_table(&self) -> Option<&Table> {
        self.found.get().map(|found| &found.table)
    }

    /// Closes all sessions that are not in use; the next call opens new ones.
    pub fn close(&self, budget: Budget) -> Result<()> {
        self.pool.close(budget)
    }

    /// A connection outside the pool.
    pub(in super::super) fn connect(
        &self,
        budget: Budget,
    ) -> std::result::Result<Session, Failure> {
        self.pool.connect(budget)
    }

    /// Executes a statement, on as many connections as it takes.
    pub(in super::super) fn execute(
        &self,
        sql: Sql,
        parameters: &[Parameter],
        budget: Budget,
    ) -> Result<Outcome> {
        let statement = &self.statements(budget)?[sql];
        let mut attempts = Attempts::new();
        loop {
            let mut taken = false;
            let mut sent = Moment::now();
            let outcome = self.pool.take(budget).and_then(|mut session| {
                taken = true;
                sent = Moment::now();
                let mut attempt = budget;
                if !session.is_fresh() {
                    // A firewall may have dropped it, or the server may have stalled.
                    let silence = budget.left() / 2;
                    attempt = attempt.at_most(silence.clamp(Store::SILENCE.0, Store::SILENCE.1));
                }
                let until = self.clock.after(attempt.left().min(VALID), sent);
                let limit: [Parameter; 1] = [&until];
                let limit = if sql.takes() { &limit[..] } else { &[] };
                let answer = session.query(statement, &[parameters, limit].concat(), attempt);
                if !session.is_fresh() && matches!(answer, Err(Failure::TimedOut)) {
                    session.suspect();
                }
                answer
            });
            match outcome {
                Ok(answer) => {
                    self.pool.answered();
                    if let Some(instant) = answer.instant {
                        self.clock.learn(instant, Moment::now());
                    }
                    if !sql.only_reads() {
                        self.written.store(true, Relaxed);
                    }
                    return Ok(Outcome {
                        rows: answer.rows,
                        affected: answer.affected,
                        sent,
                        repeated: attempts.repeated,
                    });
                }
                Err(failure) => self.try_again(sql, failure, taken, &mut attempts, budget)?,
            }
        }
    }

    /// Executes a statement about the hold of a token.
    pub(super) fn execute_for(
        &self,
        sql: Sql,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<Outcome> {
        let parameters: [Parameter; 4] = [
            &name.as_str(),
            &token.as_str(),
            &lease.seconds(),
            &zone::offset(),
        ];
        self.execute(sql, &parameters, budget)
            .map_err(|error| error.about(name))
    }

    /// Waits for the next attempt, or returns why there is none. `taken`: the failed one had a
    /// session.
    fn try_again(
        &self,
        sql: Sql,
        failure: Failure,
        taken: bool,
        attempts: &mut Attempts,
        budget: Budget,
    ) -> Result<()> {
        match failure {
            Failure::Server(server_error) => {
                if !self.may_repeat(sql, &server_error, attempts, budget)? {
                    return Err(server_error.refused().after(attempts.repeated));
                }
            }
            // The address has never answered: a mistake rather than a restart, so report it at
            // once.
            Failure::Broken(_) if !taken && !self.pool.was_reached() => {
                return result(Err(failure), &self.pool);
            }
            Failure::Broken(reason) if !budget.over() && !self.pool.is_given_up() => {
                log::debug!("repeating on a fresh connection: {reason}");
                attempts.repeated |= taken;
                attempts.last = Some(reason);
            }
            // The session does not answer: another one may.
            Failure::TimedOut if taken && !budget.over() => {
                attempts.repeated = true;
                attempts.last = Some("no answer in time".to_owned());
            }
            // The time ran out between two attempts: report how they failed.
            Failure::TimedOut if !taken && attempts.last.is_some() => {
                let reason = attempts.last.take().unwrap_or_default();
                return result(Err(Failure::Broken(reason)), &self.pool);
            }
            failure => return result(Err(failure), &self.pool),
        }
        attempts.pause(taken, budget)
    }

    /// Whether the statement may succeed if repeated.
    fn may_repeat(
        &self,
        sql: Sql,
        server_error: &ServerError,
        attempts: &mut Attempts,
        budget: Budget,
    ) -> Result<bool> {
        Ok(match server_error.sqlstate.as_str() {
            _ if budget.over() => false,
            // A demoted primary. Another host may be the primary now, or this one may become it.
            _ if server_error.is_read_only() => {
                attempts.last = Some(server_error.message.clone());
                self.written.load(Relaxed)
            }
            // That ends the session. The pool may hold others like it.
            _ if server_error.ends_session() => {
                attempts.retired += 1;
                attempts.retired <= self.connections()
            }
            // Serialization failure, deadlock: only where the database's default isolation is
            // stricter than we need.
            "40001" | "40P01" => true,
            // A limit set by the role or the server. Statements that set one themselves are not
            // repeated after a lock timeout, and after others only a few times.
            state if is_a_limit(state) => {
                attempts.limited += 1;
                !sql.is_limited() || state != "55P03" && attempts.limited <= Store::TRIES_LIMITED
            }
            // A duplicate `id`: the sequence was set back.
            "23505"
                if attempts.repairs < Store::REPAIRS
                    && server_error.constraint.starts_with(PRIMARY) =>
            {
                attempts.repairs += 1;
                self.repair(budget)
                    .map_err(|error| error.after(attempts.repeated))?;
                true
            }
            _ => false,
        })
    }

    /// The least and most time that a session used before may take to answer before we try another
    /// one.
    const SILENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

    /// How often to repeat a statement that exceeded its time limit.
    const TRIES_LIMITED: u32 = 3;

    /// How often one call repairs the sequences: others may insert rows meanwhile.
    const REPAIRS: u32 = 5;
    /// How many numbers one repair statement draws at most, in less than half a second. Drawn
    /// numbers stay drawn, so a call that runs out of time leaves less for the next.
    pub(super) const NUMBERS_PER_REPAIR: i64 = 200_000;

    /// Advances the sequences of a table that was restored, or switched over to, without them.
    /// Until they have caught up, every new name meets a taken `id`; so the first caller to meet
    /// one does this, and then repeats its statement.
    fn repair(&self, budget: Budget) -> Result<()> {
        log::warn!("the sequences of _score_distlock were set back: advancing them");
        loop {
            let answer = self.execute(Sql::Repair, &[&Store::NUMBERS_PER_REPAIR], budget)?;
            if only(&answer.rows)?.get::<bool>("done")? || budget.over() {
                return Ok(());
            }
        }
    }
}
