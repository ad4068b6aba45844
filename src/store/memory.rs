//! A table of locks in memory, in the place of [`super::statements`] in the tests of
//! `make threads`: what its statements promise, and no more. Each happens at one moment. The
//! database is another process, so a fork stops nothing in it.

// Of what has the same name there.
#![allow(missing_docs, clippy::missing_panics_doc, clippy::must_use_candidate)]

use super::budget::Budget;
use super::failure::Failure;
use super::listener::{Call, NotListening};
use super::sql::Statements;
use super::statements::{Answer, Candidate, Look, Queue, Released, Renewed, Turn};
use crate::engine::{Deadline, Lease, Loss, Moment, Name, TICKET_BITS, Token, VALID};
use crate::error::{Error, Result};
use crate::sync::simulated::{Sleeper, once_in, step};
use crate::sync::{process_id, thread};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A free lock is left to the first in the queue for so long; see `wait.sql`.
const TURN: Duration = Duration::from_millis(500);

/// The row of a lock.
pub struct Row {
    /// Of the hold that there is, or was.
    token: Token,
    fence: i64,
    /// When the hold ends, or has ended.
    expires: Moment,
    /// It was ended by a release.
    released: bool,
    waiters: Vec<i64>,
}

impl Row {
    /// Whether there is a hold.
    pub fn is_live(&self) -> bool {
        !self.released && self.expires > Moment::now()
    }

    /// Whether the token has it.
    pub fn is_held(&self, token: &Token) -> bool {
        self.is_live() && self.token == *token
    }

    fn take(&mut self, token: &Token, lease: Lease) -> (i64, Deadline) {
        let now = Moment::now();
        self.token = token.clone();
        self.fence += 1;
        self.expires = now + Duration::from_secs_f64(lease.seconds());
        self.released = false;
        (self.fence, Deadline::new(now, lease.seconds()))
    }

    /// How many other processes come before a ticket, or are in the queue at all.
    fn ahead(&self, ticket: i64) -> u32 {
        let before = self.waiters.iter().take_while(|other| **other != ticket);
        let processes: HashSet<i64> = before.map(|other| other >> TICKET_BITS).collect();
        let others = processes
            .iter()
            .filter(|other| **other != ticket >> TICKET_BITS);
        u32::try_from(others.count()).unwrap()
    }

    fn is_free_after(&self, ahead: u32) -> bool {
        !self.is_live() && self.expires + TURN * ahead <= Moment::now()
    }
}

/// Where notifications lie until they are read, and who sleeps until there are some.
#[derive(Default)]
struct Mailbox {
    calls: Vec<Call>,
    sleeper: Option<Arc<Sleeper>>,
}

/// All rows and listeners.
#[derive(Default)]
pub struct Database {
    rows: HashMap<Name, Row>,
    listeners: BTreeMap<i64, Mailbox>,
    latest_listener: i64,
    /// Who has got a notification, and is still to be woken.
    woken: Vec<Arc<Sleeper>>,
}

impl Database {
    /// Deletes all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// The row of a lock.
    pub fn row(&mut self, name: &Name) -> &mut Row {
        self.rows.entry(name.clone()).or_insert_with(|| Row {
            token: Token::random(),
            fence: 0,
            expires: Moment::now(),
            released: true,
            waiters: Vec::new(),
        })
    }

    fn acquire(&mut self, name: &Name, token: &Token, lease: Lease) -> Answer {
        let row = self.row(name);
        if row.is_held(token) {
            return Answer::Acquired {
                fence: row.fence,
                deadline: Deadline::new(Moment::now(), 0.0),
                unknown: false,
            };
        }
        if !row.is_free_after(row.ahead(0).min(2)) {
            // Its row may be locked by somebody else.
            let (busy, unknown) = (once_in(2), false);
            return Answer::Refused { busy, unknown };
        }
        let (fence, deadline) = row.take(token, lease);
        Answer::Acquired {
            fence,
            deadline,
            unknown: false,
        }
    }

    fn notify(&mut self, call: Call) {
        let (Call::Turn(ticket) | Call::Next(ticket)) = call;
        if let Some(mailbox) = self.listeners.get_mut(&(ticket >> TICKET_BITS)) {
            mailbox.calls.push(call);
            self.woken.extend(mailbox.sleeper.take());
        }
    }

    /// Calls the first in the queue of a free lock, and tells the next process.
    fn call(&mut self, name: &Name) -> Released {
        let listeners: Vec<i64> = self.listeners.keys().copied().collect();
        let row = self.row(name);
        row.waiters
            .retain(|ticket| listeners.contains(&(ticket >> TICKET_BITS)));
        let waiters = row.waiters.clone();
        let Some(first) = waiters.first() else {
            return Released::Quietly;
        };
        self.notify(Call::Turn(*first));
        let of_another = |ticket: &&i64| **ticket >> TICKET_BITS != first >> TICKET_BITS;
        if let Some(next) = waiters.iter().find(of_another) {
            self.notify(Call::Next(*next));
        }
        Released::Calling
    }

    fn release(&mut self, name: &Name, token: &Token, again: bool) -> Released {
        let row = self.row(name);
        if !row.is_held(token) {
            let ended = again && row.released && row.token == *token;
            return if ended {
                Released::Quietly
            } else {
                Released::Lost
            };
        }
        row.released = true;
        row.expires = Moment::now();
        self.call(name)
    }

    fn extend(&mut self, name: &Name, token: &Token, lease: Lease) -> Option<(i64, Deadline)> {
        let row = self.row(name);
        row.is_held(token).then(|| {
            let now = Moment::now();
            let expires = now + Duration::from_secs_f64(lease.seconds());
            row.expires = row.expires.max(expires);
            (row.fence, Deadline::new(now, lease.seconds()))
        })
    }

    fn wait(&mut self, waiter: Candidate) -> Turn {
        let row = self.row(waiter.name);
        let mine = row.is_held(waiter.token);
        if mine || row.is_free_after(row.ahead(waiter.ticket)) {
            let (fence, deadline) = row.take(waiter.token, waiter.lease);
            row.waiters
                .retain(|other| ![waiter.ticket, waiter.previous].contains(other));
            row.waiters.extend(waiter.more.then_some(waiter.ticket));
            return Turn::Acquired {
                fence,
                deadline,
                queued: waiter.more,
                unknown: false,
            };
        }
        if !row.waiters.contains(&waiter.ticket) {
            match row
                .waiters
                .iter_mut()
                .find(|other| **other == waiter.previous)
            {
                Some(previous) => *previous = waiter.ticket,
                None => row.waiters.push(waiter.ticket),
            }
        }
        let now = Moment::now();
        Turn::Later(Queue {
            queued: true,
            live: row.is_live(),
            foreign: false,
            fence: Some(row.fence),
            remaining: row.expires.since(now).as_secs_f64() - now.since(row.expires).as_secs_f64(),
            ahead: row.ahead(waiter.ticket),
            tickets: row.waiters.clone(),
            unknown: false,
        })
    }
}

/// As the store that is on PostgreSQL. Clones have the same table.
#[derive(Clone, Default)]
pub struct Store {
    database: Arc<Mutex<Database>>,
    /// Some statements fail, before or after they are executed.
    faulty: Arc<AtomicBool>,
    /// Some are executed when their callers have given up.
    late: Arc<AtomicBool>,
}

impl Store {
    /// The table, for a look into it.
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
        // As the pool: nothing is done in a forked child.
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
        // No other thread may run while this mutex is locked: shuttle does not know it.
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

    pub fn statements(&self, _: Budget) -> Result<&Statements> {
        Err(Error::Unavailable("there are none".to_owned()))
    }

    pub fn vacuum(&self, _: Lease, _: Budget) -> Result<()> {
        Ok(())
    }

    pub fn busy(&self, budget: Budget) -> Result<Vec<i64>> {
        self.execute(budget, |_| Vec::new())
    }

    pub fn acquire(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        _: bool,
        budget: Budget,
    ) -> Result<Answer> {
        if self.late.load(SeqCst) && process_id() == budget.process && self.fails(4) {
            let (database, name, token) = (self.database.clone(), name.clone(), token.clone());
            thread::spawn(move || {
                let last = Moment::now() + VALID;
                thread::sleep(VALID.mul_f64(crate::sync::random(0.0..1.0)));
                if Moment::now() < last {
                    database.lock().unwrap().acquire(&name, &token, lease);
                }
            });
            return Err(Error::Unavailable("late".to_owned()));
        }
        self.execute(budget, |all| all.acquire(name, token, lease))
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
        let released = self.execute(budget, |all| {
            let row = all.row(name);
            row.released && row.token == *token
        });
        match released {
            Ok(true) => Loss::Released,
            _ => Loss::Unknown,
        }
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
        lease: Lease,
        awaited: bool,
        budget: Budget,
    ) -> Result<Released> {
        self.release_again(name, token, lease, (false, false, awaited), budget)
    }

    pub fn release_again(
        &self,
        name: &Name,
        token: &Token,
        _: Lease,
        (_, again, _): (bool, bool, bool),
        budget: Budget,
    ) -> Result<Released> {
        self.execute(budget, |all| all.release(name, token, again))
    }

    pub fn transfer(
        &self,
        name: &Name,
        old: &Token,
        new: &Token,
        _: Lease,
        budget: Budget,
    ) -> Result<Option<(Option<i64>, Deadline)>> {
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

/// As the listener that is a connection to PostgreSQL.
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
