//! An in-memory table of locks that replaces [`super::statements`] in the tests of `make threads`:
//! it keeps the promises of the statements, and no more. Each statement is atomic. The database is
//! another process, so a fork stops nothing in it.

// See the items of the same name there.
#![allow(missing_docs, clippy::missing_panics_doc, clippy::must_use_candidate)]

mod table;

use super::budget::Budget;
use super::failure::Failure;
use super::holder::About;
use super::listener::{Call, NotListening};
use super::sql::Statements;
use super::statements::{Answer, Candidate, Ended, Look, Queue, Record, Released, Renewed, Turn};
use crate::engine::{Deadline, Lease, Loss, Moment, Name, Table, Token, VALID};
use crate::error::{Error, Result};
use crate::sync::simulated::{Sleeper, once_in, step};
use crate::sync::{process_id, thread};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use table::{Database, Mailbox};

/// Like the PostgreSQL store. Clones share the table.
#[derive(Clone)]
pub struct Store {
    database: Arc<Mutex<Database>>,
    table: Table,
    /// Some statements fail, before or after execution.
    faulty: Arc<AtomicBool>,
    /// Some execute after their callers have given up.
    late: Arc<AtomicBool>,
}

impl Default for Store {
    fn default() -> Store {
        let database = Arc::default();
        let table = Table::new(&format!("{:p}", Arc::as_ptr(&database)));
        Store {
            database,
            table,
            faulty: Arc::default(),
            late: Arc::default(),
        }
    }
}

impl Store {
    /// The table, for inspection.
    pub fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap()
    }

    /// Whether from now on some statements fail, and some are late.
    pub fn set_faults(&self, faulty: bool, late: bool) {
        self.faulty.store(faulty, SeqCst);
        self.late.store(late, SeqCst);
    }

    fn fails(&self, once_in_so_many: u32) -> bool {
        self.faulty.load(SeqCst) && once_in(once_in_so_many)
    }

    fn execute<T>(&self, budget: Budget, work: impl FnOnce(&mut Database) -> T) -> Result<T> {
        step();
        // Like the pool: a forked child does nothing.
        if process_id() != budget.process {
            return Err(Error::Forked);
        }
        budget.check()?;
        if budget.over() {
            return Err(Error::Unavailable("no time is left".to_owned()));
        }
        let lost = || Err(Error::Unavailable("lost on the way".to_owned()));
        if self.fails(8) {
            return lost();
        }
        let mut database = self.database();
        let answer = work(&mut database);
        let woken = std::mem::take(&mut database.woken);
        // No other thread may run while this mutex is locked: shuttle does not know about it.
        drop(database);
        for sleeper in woken {
            sleeper.wake();
        }
        step();
        budget.check()?;
        if self.fails(8) {
            return lost();
        }
        Ok(answer)
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    pub fn connections(&self) -> usize {
        2
    }

    pub fn close(&self, _: Budget) -> Result<()> {
        Ok(())
    }

    pub fn table(&self, _: Budget) -> Result<&Table> {
        Ok(&self.table)
    }

    pub fn known_table(&self) -> Option<&Table> {
        Some(&self.table)
    }

    pub fn statements(&self, _: Budget) -> Result<&Statements> {
        Err(Error::Unavailable("there are none".to_owned()))
    }

    pub fn vacuum(&self, _: Lease, _: Budget) -> Result<()> {
        Ok(())
    }

    pub fn facts(&self, budget: Budget) -> Result<Vec<(String, Option<String>)>> {
        self.execute(budget, |_| Vec::new())
    }

    pub fn waits(&self, _: Lease, budget: Budget) -> Result<Vec<(String, String)>> {
        self.execute(budget, |_| Vec::new())
    }

    pub fn busy(&self, budget: Budget) -> Result<Vec<i64>> {
        self.execute(budget, |_| Vec::new())
    }

    pub fn acquire(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        _: (&About, bool),
        budget: Budget,
    ) -> Result<Answer> {
        let lost = self.late.load(SeqCst) && process_id() == budget.process && self.fails(4);
        if lost {
            let (database, name, token) = (self.database.clone(), name.clone(), token.clone());
            let last = Moment::now() + VALID;
            thread::spawn(move || {
                thread::sleep(VALID.mul_f64(crate::sync::random(0.0..1.0)));
                if Moment::now() < last {
                    database.lock().unwrap().acquire(&name, &token, lease);
                }
            });
            if once_in(2) {
                return Err(Error::Unavailable("late".to_owned()));
            }
        }
        // The statement is sent again.
        let mut answer: Result<Answer> =
            self.execute(budget, |all| all.acquire(name, token, lease));
        if let Ok(Answer::Acquired { unknown, .. } | Answer::Refused { unknown, .. }) = &mut answer
        {
            *unknown = lost;
        }
        answer
    }

    pub fn take(&self, waiter: Candidate, budget: Budget) -> Result<Turn> {
        self.execute(budget, |all| {
            let row = all.row(waiter.name);
            if row.is_live() || row.waiters.first() != Some(&waiter.ticket) {
                return Turn::Later(Queue::default());
            }
            all.wait(waiter)
        })
    }

    pub fn wait(&self, waiter: Candidate, _: &[i64], budget: Budget) -> Result<Turn> {
        self.execute(budget, |all| all.wait(waiter))
    }

    pub fn leave(&self, name: &Name, ticket: i64, _: Lease, budget: Budget) -> Result<()> {
        self.execute(budget, |all| {
            let row = all.row(name);
            let first = row.waiters.first() == Some(&ticket);
            row.waiters.retain(|other| *other != ticket);
            if first && !row.is_live() {
                all.call(name);
            }
        })
    }

    pub fn renew(&self, holds: &[(Name, Token, Lease)], budget: Budget) -> Result<Vec<Renewed>> {
        self.execute(budget, |all| {
            let renewed = holds.iter().map(|(name, token, lease)| {
                let extended = all.extend(name, token, *lease);
                extended.map_or(Renewed::Gone, |(fence, deadline)| {
                    Renewed::Until(deadline, Some(fence))
                })
            });
            renewed.collect()
        })
    }

    pub fn is_held(&self, name: &Name, token: &Token, _: Lease, call: Budget) -> Result<bool> {
        self.execute(call, |all| all.row(name).is_held(token))
    }

    pub fn holder_of(
        &self,
        name: &Name,
        _: Lease,
        budget: Budget,
    ) -> Result<Option<(Token, Option<i64>)>> {
        self.execute(budget, |all| {
            let row = all.row(name);
            let holder = (row.token.clone(), Some(row.fence));
            row.is_live().then_some(holder)
        })
    }

    pub fn why_lost(&self, name: &Name, token: &Token, budget: Budget) -> Loss {
        let told = self.execute(budget, |all| {
            let row = all.row(name);
            if row.token != *token || row.is_live() {
                Loss::Unknown
            } else if row.released {
                Loss::Released
            } else {
                Loss::Expired
            }
        });
        told.unwrap_or(Loss::Unknown)
    }

    pub fn look(&self, name: &Name, _: Lease, budget: Budget) -> Result<Look> {
        self.execute(budget, |all| {
            let row = all.row(name);
            if row.is_live() || !row.waiters.is_empty() {
                Look::Held
            } else {
                Look::Free
            }
        })
    }

    pub fn extend(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<Option<(Option<i64>, Deadline)>> {
        let extended = self.execute(budget, |all| all.extend(name, token, lease))?;
        Ok(extended.map(|(fence, deadline)| (Some(fence), deadline)))
    }

    pub fn release(
        &self,
        name: &Name,
        token: &Token,
        _: Lease,
        (_, again, _): (bool, bool, bool),
        budget: Budget,
    ) -> Result<Released> {
        self.execute(budget, |all| all.release(name, token, again))
    }

    pub fn holders(&self, _: Lease, budget: Budget) -> Result<Vec<Record>> {
        self.execute(budget, table::Database::records)
    }

    pub fn info(&self, name: &Name, lease: Lease, budget: Budget) -> Result<Option<Record>> {
        let found = self.revocable(name, lease, budget)?;
        Ok(found.map(|(record, _)| record))
    }

    pub fn revocable(
        &self,
        name: &Name,
        _: Lease,
        budget: Budget,
    ) -> Result<Option<(Record, String)>> {
        self.execute(budget, |all| all.revocable(name))
    }

    pub fn end(&self, name: &Name, token: &str, _: Lease, budget: Budget) -> Result<Ended> {
        let token = Token::parse(token).expect("nobody else writes tokens here");
        let ended = self.execute(budget, |all| all.release(name, &token, false))?;
        Ok(match ended {
            Released::Lost => Ended::Not,
            Released::Quietly => Ended::Quietly,
            Released::Calling => Ended::Calling,
        })
    }

    pub fn transfer(
        &self,
        name: &Name,
        old: &Token,
        new: &Token,
        _: Lease,
        budget: Budget,
    ) -> Result<Option<(Option<i64>, Deadline)>> {
        if self.fails(8) {
            return Err(Error::Sql {
                sqlstate: "57014".to_owned(),
                unknown: false,
                message: "refused".to_owned(),
            });
        }
        self.execute(budget, |all| {
            let row = all.row(name);
            (row.is_held(old) || row.is_held(new)).then(|| {
                let now = Moment::now();
                row.token = new.clone();
                let left = row.expires.since(now).as_secs_f64();
                (Some(row.fence), Deadline::new(now, left))
            })
        })
    }
}

/// Like the listener on PostgreSQL.
pub struct Listener {
    store: Store,
    number: i64,
}

impl Listener {
    pub fn open(store: &Store, budget: Budget) -> std::result::Result<Listener, NotListening> {
        let opened = store.execute(budget, |all| {
            all.latest_listener += 1;
            all.listeners
                .insert(all.latest_listener, Mailbox::default());
            all.latest_listener
        });
        let number = opened.map_err(Failure::Stopped)?;
        let store = store.clone();
        Ok(Listener { store, number })
    }

    pub fn number(&self) -> i64 {
        self.number
    }

    pub fn hear(&mut self, slice: Duration) -> std::result::Result<Vec<Call>, Failure> {
        step();
        if self.store.fails(32) {
            return Err(Failure::TimedOut);
        }
        let mut asleep = None;
        loop {
            let mut database = self.store.database();
            let mailbox = database.listeners.entry(self.number).or_default();
            if !mailbox.calls.is_empty() || asleep.is_some() {
                mailbox.sleeper = None;
                return Ok(std::mem::take(&mut mailbox.calls));
            }
            let sleeper = Sleeper::new(slice);
            mailbox.sleeper = Some(sleeper.clone());
            drop(database);
            sleeper.sleep();
            asleep = Some(sleeper);
        }
    }

    pub fn ping(&mut self, budget: Budget) -> std::result::Result<(), Failure> {
        self.store.execute(budget, |_| ()).map_err(Failure::Stopped)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.store.database().listeners.remove(&self.number);
    }
}
