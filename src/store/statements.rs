//! One function for each statement on holds, and the repetition they share.
//!
//! Every statement is safe to repeat, so a connection that breaks is replaced
//! within the call. What is asked for twice is noticed by the token.

use super::budget::Budget;
use super::clock::Clock;
use super::failure::{Failure, ServerError};
use super::insight::About;
use super::pool::{Pool, Settings, result};
use super::schema;
use super::session::{Parameter, Row};
use super::sql::{Sql, Statements};
use super::url::Url;
use crate::engine::{Deadline, Lease, Loss, Moment, Name, Token, VALID};
use crate::error::{Error, Result};
use crate::zone;
use rand::RngExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How the name of the table's primary key begins; a number may follow. That of `name` is
/// no error: the statements that insert expect it.
const PRIMARY: &str = "_score_distlock_pkey";

/// What an attempt to acquire came to.
#[derive(Debug)]
pub enum Answer {
    /// The lock is held.
    Acquired {
        /// The fencing number.
        fence: i64,
        /// Until when.
        deadline: Deadline,
        /// An answer was lost on the way: its statement may take the lock once more.
        unknown: bool,
    },
    /// It could not be taken.
    Refused {
        /// Nobody has it, but its row is locked.
        busy: bool,
        /// An answer was lost on the way: the token may turn out to be that of a hold.
        unknown: bool,
    },
}

/// What a look at a lock found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Look {
    /// Somebody holds it, or others wait for it.
    Held,
    /// It has a row, and nobody holds it.
    Free,
    /// It has no row.
    Missing,
}

/// What came of a release.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Released {
    /// The hold has ended, and nobody waited.
    Quietly,
    /// The hold has ended, and the first who waited was called.
    Calling,
    /// It was lost before.
    Lost,
}

/// What a waiter came to.
#[derive(Debug)]
pub enum Turn {
    /// The lock is held.
    Acquired {
        /// The fencing number.
        fence: i64,
        /// Until when.
        deadline: Deadline,
        /// The ticket is in the queue, at its end.
        queued: bool,
        /// An answer was lost on the way: its statement may take the lock once more.
        unknown: bool,
    },
    /// Not yet.
    Later(Queue),
}

/// The queue of a lock as a waiter found it.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // they are independent of each other
pub struct Queue {
    /// The waiter is in it.
    pub queued: bool,
    /// Somebody holds the lock.
    pub live: bool,
    /// score.distlock 0.2.5 has acquired or extended the hold.
    pub foreign: bool,
    /// The fence of the hold.
    pub fence: Option<i64>,
    /// For how long the hold lasts, in seconds; negative since it has ended.
    pub remaining: f64,
    /// How many other processes come first.
    pub ahead: u32,
    /// All tickets.
    pub tickets: Vec<i64>,
    /// An answer was lost: its statement may have taken the lock, or may yet.
    pub unknown: bool,
}

impl Queue {
    /// Whether something else than a hold or another waiter is in the way: the row is locked.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.live && self.ahead == 0
    }

    /// Nothing was seen of it.
    fn unseen(unknown: bool) -> Queue {
        Queue {
            unknown,
            ..Queue::default()
        }
    }
}

/// Who waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The name of the lock.
    pub name: &'a Name,
    /// The token to take it with.
    pub token: &'a Token,
    /// The lease to take it for.
    pub lease: Lease,
    /// What is to be known about its holder.
    pub about: &'a About,
    /// The waiter's ticket.
    pub ticket: i64,
    /// An earlier one, or 0.
    pub previous: i64,
    /// Others of the process wait: the ticket is to go to the queue's end.
    pub more: bool,
}

/// What came of the attempt to renew a hold along with others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Renewed {
    /// The hold with this fence is extended until this deadline.
    Until(Deadline, Option<i64>),
    /// It is there, but another transaction has locked its row.
    Locked,
    /// The token has no hold.
    Gone,
}

/// The table of locks of one database.
pub struct Store {
    pool: Pool,
    clock: Clock,
    holder: OnceLock<String>,
    /// Whose table is to be trusted besides those of roles that need no trust.
    table_owner: Option<String>,
    /// The statements on the table, once it is known to be there and complete.
    statements: OnceLock<Statements>,
    /// Something was written: the database is the right one.
    written: AtomicBool,
    /// Calls since the last sweep, and where that one ended.
    calls: AtomicU32,
    acquisitions: AtomicU32,
    swept: AtomicI64,
    /// When this store was made, and for how many milliseconds from then on no sweep
    /// is worth while.
    made: Instant,
    rest: AtomicU64,
}

/// What became of the attempts to execute a statement.
struct Attempts {
    /// One of them may have had an effect: its answer was lost.
    repeated: bool,
    /// How often the sequences were repaired, a limit was met, a session retired.
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

    /// Waits before the next one. The first repetition goes at once, as an idle connection
    /// that broke is the usual reason.
    fn pause(&mut self, taken: bool, budget: Budget) -> Result<()> {
        if !taken || self.pause > Attempts::SHORTEST {
            budget.pause(self.pause.mul_f64(rand::rng().random_range(0.5..1.5)))?;
        }
        self.pause = (self.pause * 2).min(Duration::from_millis(500));
        Ok(())
    }
}

/// How one execution of a statement went, and whether earlier ones of the same
/// call may have had an effect.
pub(super) struct Outcome {
    pub(super) rows: Vec<Row>,
    /// How many rows the statement changed or returned.
    affected: u64,
    sent: Moment,
    pub(super) repeated: bool,
}

/// The error for a statement that the server refused.
pub(super) fn refused(server_error: ServerError) -> Error {
    let said = server_error.message;
    Error::Sql {
        unknown: false,
        message: match server_error.sqlstate.as_str() {
            "42P01" => format!(
                "{said}; the table is missing: score.distlock.init() creates it, \
                 or an administrator with the output of `python -m score.distlock schema`"
            ),
            "25006" => format!(
                "{said}; it is a standby, or its sessions are read-only by default: \
                 sqlalchemy.url needs the primary, or all hosts of the cluster"
            ),
            "42501" if said.contains("row-level security") => {
                format!("{said}; a policy on the table does not let this role write it")
            }
            "42501" => format!(
                "{said}; `python -m score.distlock schema --grant ROLE` prints what an \
                 administrator must grant"
            ),
            "55P03" | "57014" => format!(
                "{said}; look for who keeps the table locked (pg_locks), or for a \
                 lock_timeout or statement_timeout of the role that is too short"
            ),
            _ => said,
        },
        sqlstate: server_error.sqlstate,
    }
}

/// The answer to a statement that waits for the row only so long: an unseen queue if
/// somebody kept it locked.
fn unless_locked(answer: Result<Outcome>) -> Result<std::result::Result<Outcome, Queue>> {
    match answer {
        Err(Error::Sql {
            sqlstate, unknown, ..
        }) if is_a_limit(&sqlstate) => Ok(Err(Queue::unseen(unknown))),
        answer => answer.map(Ok),
    }
}

/// `lock_not_available` and `query_canceled`: the statement took longer than
/// `lock_timeout` or `statement_timeout` allows, and has done nothing.
fn is_a_limit(sqlstate: &str) -> bool {
    matches!(sqlstate, "55P03" | "57014")
}

/// The first column-set of an answer; statements that always bring a row.
fn only(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| Error::Sql {
        sqlstate: "02000".to_owned(),
        // It was executed.
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
            statements: OnceLock::new(),
            written: AtomicBool::new(false),
            calls: AtomicU32::new(0),
            acquisitions: AtomicU32::new(0),
            swept: AtomicI64::new(i64::MIN),
            made: Instant::now(),
            rest: AtomicU64::new(0),
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

    /// What the holds of this process begin with.
    pub(super) fn process(&self, budget: Budget) -> String {
        self.holder(budget.process, &About::default())
    }

    /// Who holds, for people: see [`About`].
    fn holder(&self, process: u32, about: &About) -> String {
        let host = self.holder.get_or_init(|| {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        });
        about.of(host, process)
    }

    /// Creates or upgrades the table over a connection of its own, which is
    /// closed again.
    pub fn ensure_schema(&self, budget: Budget) -> Result<()> {
        let outcome = self.pool.connect(budget).and_then(|mut connection| {
            let owner = self.table_owner.as_deref();
            let options = self.pool.url().config.get_options();
            schema::ensure(&mut connection, owner, options, budget)
        });
        let schema = result(outcome, &self.pool)?;
        self.statements.get_or_init(|| Statements::new(&schema));
        Ok(())
    }

    /// The statements on the table; makes sure that it is there if that is not known.
    pub fn statements(&self, budget: Budget) -> Result<&Statements> {
        loop {
            match self.statements.get() {
                Some(statements) => return Ok(statements),
                None => self.ensure_schema(budget)?,
            }
        }
    }

    /// Closes all sessions that are not in use; the next call opens new ones.
    pub fn close(&self, budget: Budget) -> Result<()> {
        self.pool.close(budget)
    }

    /// Executes a statement, on as many connections as it takes.
    pub(super) fn execute(
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
                    // A firewall may have dropped it, or the server stand still.
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

    /// Waits for the next attempt, or tells why there is none. A session was `taken` for the
    /// one that failed.
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
                    return Err(refused(server_error).after(attempts.repeated));
                }
            }
            // Nothing answers at an address that never did: a mistake
            // rather than a restart, so say so at once.
            Failure::Broken(_) if !taken && !self.pool.was_reached() => {
                return result(Err(failure), &self.pool);
            }
            Failure::Broken(reason) if !budget.over() && !self.pool.is_given_up() => {
                log::debug!("repeating on a fresh connection: {reason}");
                attempts.repeated |= taken;
                attempts.last = Some(reason);
            }
            // The session gives no answer: another one may.
            Failure::TimedOut if taken && !budget.over() => {
                attempts.repeated = true;
                attempts.last = Some("no answer in time".to_owned());
            }
            // The time ended between two attempts: tell how they failed.
            Failure::TimedOut if !taken && attempts.last.is_some() => {
                let reason = attempts.last.take().unwrap_or_default();
                return result(Err(Failure::Broken(reason)), &self.pool);
            }
            failure => return result(Err(failure), &self.pool),
        }
        attempts.pause(taken, budget)
    }

    /// Whether the statement may succeed if it is repeated.
    fn may_repeat(
        &self,
        sql: Sql,
        server_error: &ServerError,
        attempts: &mut Attempts,
        budget: Budget,
    ) -> Result<bool> {
        Ok(match server_error.sqlstate.as_str() {
            _ if budget.over() => false,
            // A primary that was demoted. Another host may be the primary now, or this
            // one may become it.
            _ if server_error.is_read_only() => {
                attempts.last = Some(server_error.message.clone());
                self.written.load(Relaxed)
            }
            // The session has ended by that. There may be others like it in the pool.
            _ if server_error.ends_session() => {
                attempts.retired += 1;
                attempts.retired <= self.connections()
            }
            // Serialization failure, deadlock: only where the database's
            // default isolation is stricter than ours needs to be.
            "40001" | "40P01" => true,
            // A limit that the role or the server has set. Statements that set one
            // themselves are not repeated because of a lock, and not for long.
            state if is_a_limit(state) => {
                attempts.limited += 1;
                !sql.is_limited() || state != "55P03" && attempts.limited <= Store::TRIES_LIMITED
            }
            // An `id` that a row has already: the sequence was set back.
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

    /// How long a session that was used before may take for an answer, at least and at most,
    /// before another one is asked.
    const SILENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

    /// How often a statement that should not take long is repeated when it did.
    const TRIES_LIMITED: u32 = 3;

    /// How often one call repairs the sequences: others may insert rows meanwhile.
    const REPAIRS: u32 = 5;
    /// How many numbers one statement of a repair draws at most, which takes it less than
    /// half a second. What was drawn stays drawn, so a call that finds no time for all of
    /// them leaves less to do for the next.
    const NUMBERS_PER_REPAIR: i64 = 200_000;

    /// Advances the sequences of a table that was restored, or switched over to, without
    /// them. Every new name would meet a taken `id` until they have caught up, so whoever
    /// is the first to meet one does this, and then repeats what it was about to do.
    fn repair(&self, budget: Budget) -> Result<()> {
        log::warn!("the sequences of _score_distlock were set back: advancing them");
        loop {
            let answer = self.execute(Sql::Repair, &[&Store::NUMBERS_PER_REPAIR], budget)?;
            if only(&answer.rows)?.get::<bool>("done")? || budget.over() {
                return Ok(());
            }
        }
    }

    /// Acquires `name` with a token made by the caller. An earlier attempt with
    /// the same token that succeeded unknown to the caller is found.
    ///
    /// If it is `likely` that the lock's row is there and free, a statement that can do
    /// no more than take it goes first.
    pub fn acquire(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        (about, likely): (&About, bool),
        budget: Budget,
    ) -> Result<Answer> {
        let holder = self.holder(budget.process, about);
        let parameters: [Parameter; 5] = [
            &name.as_str(),
            &token.as_str(),
            &lease.seconds(),
            &zone::offset(),
            &holder,
        ];
        let mut unknown = false;
        // What is asked otherwise tells what the clock says.
        if likely && self.clock.is_recent(Moment::now()) {
            match unless_locked(self.execute(Sql::Retake, &parameters, budget))? {
                Ok(answer) => {
                    if let Some(row) = answer.rows.first() {
                        let deadline = Deadline::new(answer.sent, lease.seconds());
                        self.catch_up(row, budget)?;
                        self.sweep_if_nothing_else_does(lease, budget)?;
                        return Ok(Answer::Acquired {
                            fence: row.get("fence")?,
                            deadline,
                            unknown: answer.repeated,
                        });
                    }
                    unknown = answer.repeated;
                }
                Err(seen) => unknown = seen.unknown,
            }
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = self
                .execute(Sql::Acquire, &parameters, budget)
                .map_err(|error| error.after(unknown).about(name));
            // Nobody holds it, but its row is locked: by another taker who is
            // about to commit, by a guard, or by 0.2.5 cleaning up.
            let mut busy = true;
            match unless_locked(answer)? {
                Ok(answer) => {
                    if let Some((fence, deadline)) =
                        self.taken(name, token, lease, &answer, budget)?
                    {
                        self.sweep_if_nothing_else_does(lease, budget)?;
                        return Ok(Answer::Acquired {
                            fence,
                            deadline,
                            unknown: unknown || answer.repeated,
                        });
                    }
                    busy = only(&answer.rows)?.get::<Option<bool>>("held")? != Some(true);
                    unknown |= answer.repeated;
                }
                Err(seen) => {
                    unknown |= seen.unknown;
                    // It has waited already.
                    tries = Store::TRIES_WHILE_BUSY;
                }
            }
            if !busy || tries == Store::TRIES_WHILE_BUSY || budget.over() {
                self.sweep_now_and_then(lease, budget)?;
                return Ok(Answer::Refused { busy, unknown });
            }
            let limit = Duration::from_millis(1 << tries);
            budget.pause(limit.mul_f64(rand::rng().random_range(0.5..1.0)))?;
        }
    }

    /// Lets the sequence catch up with the fence of a row that was taken, or a part of the
    /// way: who takes it next goes on.
    fn catch_up(&self, taken: &Row, budget: Budget) -> Result<()> {
        if taken.get::<Option<bool>>("beyond")? != Some(true) {
            return Ok(());
        }
        match self.execute(Sql::Repair, &[&Store::NUMBERS_PER_REPAIR], budget) {
            Err(error @ (Error::Interrupted | Error::Forked)) => Err(error),
            Err(error) => {
                log::debug!("the sequence of fences could not be advanced: {error}");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// What acquire.sql or wait.sql has taken, if it has: the fence and the deadline.
    ///
    /// If the fence may be older than another of the same name, a new one is drawn. So it
    /// is for a hold that an earlier statement took whose answer was lost.
    fn taken(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        answer: &Outcome,
        budget: Budget,
    ) -> Result<Option<(i64, Deadline)>> {
        let row = only(&answer.rows)?;
        self.clock.learn(row.get("instant")?, Moment::now());
        let deadline = |seconds| Deadline::new(answer.sent, seconds);
        let fence = row.get::<Option<i64>>("fence")?;
        let (before, deadline) = match fence {
            Some(fence) if row.get("newest")? => {
                self.catch_up(row, budget)?;
                return Ok(Some((fence, deadline(lease.seconds()))));
            }
            Some(fence) => (fence, deadline(lease.seconds())),
            None if row.get::<Option<bool>>("mine")? == Some(true) => {
                let before = row.get::<Option<i64>>("seen_fence")?.unwrap_or_default();
                (before, deadline(row.get("remaining")?))
            }
            None => return Ok(None),
        };
        let parameters: [Parameter; 5] = [
            &name.as_str(),
            &token.as_str(),
            &lease.seconds(),
            &zone::offset(),
            &before,
        ];
        let numbered = self
            .execute(Sql::Number, &parameters, budget)
            .map_err(|error| error.after(true).about(name))?;
        match numbered.rows.first() {
            Some(row) => Ok(Some((row.get("fence")?, deadline))),
            // It has ended meanwhile.
            None => Ok(None),
        }
    }

    /// Takes the lock for a waiter that was called. "Later" if something is
    /// otherwise than expected: [`Store::wait`] finds out.
    pub fn take(&self, waiter: Candidate, budget: Budget) -> Result<Turn> {
        let lease = waiter.lease.seconds();
        let holder = self.holder(budget.process, waiter.about);
        let answer = self.execute(
            Sql::Take,
            &[
                &waiter.name.as_str(),
                &waiter.token.as_str(),
                &lease,
                &zone::offset(),
                &holder,
                &waiter.ticket,
                &waiter.more,
            ],
            budget,
        );
        let answer = match unless_locked(answer)? {
            Ok(answer) => answer,
            Err(unseen) => return Ok(Turn::Later(unseen)),
        };
        let unknown = answer.repeated;
        Ok(match answer.rows.first() {
            Some(row) => {
                self.catch_up(row, budget)?;
                Turn::Acquired {
                    fence: row.get("fence")?,
                    deadline: Deadline::new(answer.sent, lease),
                    queued: waiter.more,
                    unknown,
                }
            }
            None => Turn::Later(Queue::unseen(unknown)),
        })
    }

    /// Takes the lock if it is the waiter's turn, or puts the waiter into the
    /// queue. `known` is the queue as last seen, without the waiter.
    pub fn wait(&self, waiter: Candidate, known: &[i64], budget: Budget) -> Result<Turn> {
        let answer = self.execute(
            Sql::Wait,
            &[
                &waiter.name.as_str(),
                &waiter.token.as_str(),
                &waiter.lease.seconds(),
                &zone::offset(),
                &self.holder(budget.process, waiter.about),
                &waiter.ticket,
                &waiter.previous,
                &known,
                &waiter.more,
            ],
            budget,
        );
        let answer = match unless_locked(answer.map_err(|error| error.about(waiter.name)))? {
            Ok(answer) => answer,
            Err(unseen) => return Ok(Turn::Later(unseen)),
        };
        let row = only(&answer.rows)?;
        let (name, token) = (waiter.name, waiter.token);
        let taken = self.taken(name, token, waiter.lease, &answer, budget)?;
        let remaining = row.get::<Option<f64>>("remaining")?.unwrap_or_default();
        let tickets: Vec<i64> = row.get::<Option<_>>("waiters")?.unwrap_or_default();
        if let Some((fence, deadline)) = taken {
            let mine = row.get::<Option<i64>>("fence")?.is_none();
            return Ok(Turn::Acquired {
                fence,
                deadline,
                queued: if mine {
                    tickets.contains(&waiter.ticket)
                } else {
                    waiter.more
                },
                unknown: answer.repeated,
            });
        }
        Ok(Turn::Later(Queue {
            queued: tickets.contains(&waiter.ticket),
            live: row.get::<Option<bool>>("live")? == Some(true),
            foreign: row.get::<Option<bool>>("foreign_hold")? == Some(true),
            fence: row.get("seen_fence")?,
            remaining,
            ahead: u32::try_from(row.get::<i64>("ahead")?).unwrap_or(u32::MAX),
            tickets,
            unknown: answer.repeated,
        }))
    }

    /// Takes a waiter out of the queue; the next one is notified if need be.
    pub fn leave(&self, name: &Name, ticket: i64, lease: Lease, budget: Budget) -> Result<()> {
        self.execute(
            Sql::Leave,
            &[&name.as_str(), &ticket, &lease.seconds(), &zone::offset()],
            budget,
        )
        .map(drop)
    }

    /// Extends many holds in one statement, which waits for no row.
    pub fn renew(&self, holds: &[(Name, Token, Lease)], budget: Budget) -> Result<Vec<Renewed>> {
        let names: Vec<&str> = holds.iter().map(|(name, _, _)| name.as_str()).collect();
        let tokens: Vec<&str> = holds.iter().map(|(_, token, _)| token.as_str()).collect();
        let leases: Vec<f64> = holds.iter().map(|(_, _, lease)| lease.seconds()).collect();
        let answer = self.execute(
            Sql::Renew,
            &[&names, &tokens, &leases, &zone::offset()],
            budget,
        )?;
        let mut renewed = vec![Renewed::Gone; holds.len()];
        for row in &answer.rows {
            // Positions count from 1.
            let position = usize::try_from(row.get::<i64>("position")?).unwrap_or_default();
            let position = position.wrapping_sub(1);
            if let Some(lease) = leases.get(position) {
                renewed[position] = if row.get("extended")? {
                    Renewed::Until(Deadline::new(answer.sent, *lease), row.get("fence")?)
                } else {
                    Renewed::Locked
                };
            }
        }
        Ok(renewed)
    }

    /// Whether the token has a hold. It reads and writes nothing.
    pub fn is_held(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<bool> {
        let answer = self.execute_for(Sql::Held, name, token, lease, budget)?;
        Ok(!answer.rows.is_empty())
    }

    /// The token and the fence of the hold of a lock, if there is one.
    pub fn holder_of(
        &self,
        name: &Name,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Token, Option<i64>)>> {
        let parameters: [Parameter; 3] = [&name.as_str(), &lease.seconds(), &zone::offset()];
        let answer = self
            .execute(Sql::Holder, &parameters, budget)
            .map_err(|error| error.about(name))?;
        let Some(row) = answer.rows.first() else {
            return Ok(None);
        };
        // That of 0.2.5 may be none of ours.
        let token = Token::parse(row.get("token")?);
        Ok(match token {
            Some(token) => Some((token, row.get("fence")?)),
            None => None,
        })
    }

    /// Executes a statement about the hold of a token.
    fn execute_for(
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

    /// What has ended the hold of a token, as far as the row tells.
    fn ended_by(&self, name: &Name, token: &Token, budget: Budget) -> Result<Loss> {
        let parameters: [Parameter; 2] = [&name.as_str(), &token.as_str()];
        let answer = self.execute(Sql::Released, &parameters, budget)?;
        Ok(match answer.rows.first() {
            None => Loss::Unknown,
            Some(row) if row.get("released")? => Loss::Released,
            Some(_) => Loss::Expired,
        })
    }

    /// Why a hold that should stand is not there.
    pub fn why_lost(&self, name: &Name, token: &Token, budget: Budget) -> Loss {
        // It is only about the words of an exception.
        self.ended_by(name, token, budget).unwrap_or(Loss::Unknown)
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

    /// A connection that is not in the pool.
    pub(super) fn connect(
        &self,
        budget: Budget,
    ) -> std::result::Result<super::session::Session, Failure> {
        self.pool.connect(budget)
    }

    /// Sends a listener a message over a connection of the pool.
    pub(super) fn tell(&self, listener: i64, message: &str, budget: Budget) -> Result<()> {
        self.execute(Sql::Prove, &[&listener, &message], budget)
            .map(drop)
    }

    /// Looks at a lock without touching it.
    pub fn look(&self, name: &Name, lease: Lease, budget: Budget) -> Result<Look> {
        let parameters: [Parameter; 3] = [&name.as_str(), &zone::offset(), &lease.seconds()];
        let answer = unless_locked(self.execute(Sql::Probe, &parameters, budget))?;
        let Ok(answer) = answer else {
            // Somebody keeps the table locked: who tries to take it is told who.
            return Ok(Look::Free);
        };
        Ok(match answer.rows.first() {
            None => Look::Missing,
            Some(row) if row.get::<Option<bool>>("held")? == Some(true) => Look::Held,
            Some(_) => Look::Free,
        })
    }

    /// After these many tries, about 50 ms, a locked row counts as held: that
    /// is what a guard means by its lock.
    const TRIES_WHILE_BUSY: u32 = 6;

    /// Extends the hold; tells its fence and new deadline, `None` if it is lost.
    pub fn extend(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Option<i64>, Deadline)>> {
        let answer = self.execute_for(Sql::Extend, name, token, lease, budget)?;
        let Some(row) = answer.rows.first() else {
            return Ok(None);
        };
        let extended = (
            row.get("fence")?,
            Deadline::new(answer.sent, lease.seconds()),
        );
        self.sweep_now_and_then(lease, budget)?;
        Ok(Some(extended))
    }

    /// Ends the hold.
    ///
    /// If the caller's own deadline has not passed (`held`), a hold that is not found
    /// after an answer was lost was ended by ourselves; so it may be if an earlier call has
    /// tried (`again`). `awaited`: others are likely to wait for the lock.
    pub fn release(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        (held, again, awaited): (bool, bool, bool),
        budget: Budget,
    ) -> Result<Released> {
        let mut unknown = again;
        let mut released = Released::Lost;
        if !awaited {
            let parameters: [Parameter; 2] = [&name.as_str(), &token.as_str()];
            let answer = self
                .execute(Sql::Release, &parameters, budget)
                .map_err(|error| error.after(unknown).about(name))?;
            unknown |= answer.repeated;
            if answer.affected == 1 {
                released = Released::Quietly;
            }
        }
        if released == Released::Lost {
            let answer = self
                .execute_for(Sql::ReleaseAwaited, name, token, lease, budget)
                .map_err(|error| error.after(unknown))?;
            unknown |= answer.repeated;
            if let Some(row) = answer.rows.first() {
                released = match row.get::<Option<&str>>("notified")? {
                    Some(_) => Released::Calling,
                    None => Released::Quietly,
                };
            }
        }
        if released == Released::Lost && unknown {
            let ended = held
                || Loss::Released
                    == self
                        .ended_by(name, token, budget)
                        .map_err(|error| error.after(true))?;
            if ended {
                released = Released::Quietly;
            }
        }
        match self.sweep_now_and_then(lease, budget) {
            Err(Error::Forked) => Err(Error::Forked),
            // The release is done; what interrupts the caller is its own business.
            _ => Ok(released),
        }
    }

    /// Gives the hold the token `new`; tells its fence and deadline, `None` if
    /// it is lost.
    pub fn transfer(
        &self,
        name: &Name,
        old: &Token,
        new: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Option<i64>, Deadline)>> {
        let answer = self.execute(
            Sql::Transfer,
            &[
                &name.as_str(),
                &old.as_str(),
                &new.as_str(),
                &lease.seconds(),
                &zone::offset(),
                &self.holder(budget.process, &About::default()),
            ],
            budget,
        )?;
        let Some(row) = answer.rows.first() else {
            return Ok(None);
        };
        let deadline = Deadline::new(answer.sent, row.get("remaining")?);
        Ok(Some((row.get("fence")?, deadline)))
    }

    /// Which server processes may have locked the row of a lock that nobody holds.
    pub fn busy(&self, budget: Budget) -> Result<Vec<i64>> {
        let answer = self.execute(Sql::Busy, &[], budget)?;
        answer.rows.iter().map(|row| row.get("pid")).collect()
    }

    /// Removes all expired and free rows, in as many steps as it takes. The time that
    /// `budget` has left is that of each step.
    pub fn vacuum(&self, lease: Lease, budget: Budget) -> Result<()> {
        let mut after = Some(i64::MIN);
        while let Some(start) = after {
            let budget = budget.renewed(self.timeout());
            after = self.sweep(lease, start, Store::ROWS_PER_STEP, 0.0, budget)?;
        }
        Ok(())
    }

    /// How many rows one step of a vacuum looks at: some hundred milliseconds.
    const ROWS_PER_STEP: i64 = 10_000;

    /// Removes what has been out of use for so many seconds from the rows after an id.
    /// Tells the last one's if there may be more.
    fn sweep(
        &self,
        lease: Lease,
        after: i64,
        rows: i64,
        seconds: f64,
        budget: Budget,
    ) -> Result<Option<i64>> {
        let parameters: [Parameter; 5] =
            [&lease.seconds(), &zone::offset(), &after, &rows, &seconds];
        let answer = self.execute(Sql::Sweep, &parameters, budget)?;
        let row = only(&answer.rows)?;
        let more = row.get::<i64>("seen")? == rows;
        Ok(row.get::<Option<i64>>("last")?.filter(|_| more))
    }

    /// How many calls pass between two sweeps, and how many rows one looks at.
    const CALLS_PER_SWEEP: u32 = 64;
    const ROWS_PER_SWEEP: i64 = 200;
    /// How long to rest after reaching the end of the table, in milliseconds. What is to
    /// be removed has been out of use for a minute: little is missed.
    const REST_AFTER_SWEEPING: u64 = 10_000;
    /// An application that only acquires, and lets its holds expire, sweeps so
    /// rarely that it does not matter.
    const ACQUISITIONS_PER_SWEEP: u32 = 16 * Store::CALLS_PER_SWEEP;

    fn sweep_if_nothing_else_does(&self, lease: Lease, budget: Budget) -> Result<()> {
        if self.acquisitions.fetch_add(1, Relaxed) >= Store::ACQUISITIONS_PER_SWEEP {
            self.calls.store(Store::CALLS_PER_SWEEP, Relaxed);
            self.sweep_now_and_then(lease, budget)?;
        }
        Ok(())
    }

    /// Removes some rows that nobody needs any more, every so many calls.
    ///
    /// It is not on the way to a lock, and its failure is nobody's business; but an error
    /// tells if the caller was interrupted meanwhile.
    fn sweep_now_and_then(&self, lease: Lease, budget: Budget) -> Result<()> {
        if self.calls.fetch_add(1, Relaxed) < Store::CALLS_PER_SWEEP {
            return Ok(());
        }
        self.calls.store(0, Relaxed);
        self.acquisitions.store(0, Relaxed);
        let age = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        if age < self.rest.load(Relaxed) {
            return Ok(());
        }
        let after = self.swept.load(Relaxed);
        match self.sweep(lease, after, Store::ROWS_PER_SWEEP, 60.0, budget) {
            Ok(last) => {
                self.swept.store(last.unwrap_or(i64::MIN), Relaxed);
                if last.is_none() {
                    self.rest.store(age + Store::REST_AFTER_SWEEPING, Relaxed);
                }
            }
            Err(error @ (Error::Interrupted | Error::Forked)) => return Err(error),
            Err(error) => log::debug!("sweeping expired rows failed: {error}"),
        }
        Ok(())
    }
}
