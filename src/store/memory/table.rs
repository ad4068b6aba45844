//! The table, and what the statements do to it, each atomically.

use super::super::listener::Call;
use super::super::statements::{Answer, Candidate, Queue, Record, Released, Turn};
use crate::engine::{Deadline, Lease, Moment, Name, TICKET_BITS, Token};
use crate::sync::simulated::{Sleeper, once_in};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a free lock is reserved for the first in the queue; see `wait.sql`.
const TURN: Duration = Duration::from_millis(500);

/// The row of a lock.
pub struct Row {
    /// The token of the current hold, or of the last one.
    pub(super) token: Token,
    pub(super) fence: i64,
    /// When the hold ends, or has ended.
    pub(super) expires: Moment,
    /// Whether a release ended it.
    pub(super) released: bool,
    pub(super) waiters: Vec<i64>,
}

impl Row {
    /// Whether there is a hold.
    pub fn is_live(&self) -> bool {
        !self.released && self.expires > Moment::now()
    }

    /// Whether the token has the hold.
    pub fn is_held(&self, token: &Token) -> bool {
        self.is_live() && self.token == *token
    }

    pub(super) fn take(&mut self, token: &Token, lease: Lease) -> (i64, Deadline) {
        let now = Moment::now();
        self.token = token.clone();
        self.fence += 1;
        self.expires = now + Duration::from_secs_f64(lease.seconds());
        self.released = false;
        (self.fence, Deadline::new(now, lease.seconds()))
    }

    /// How many other processes are ahead of a ticket, or in the queue at all if it is not.
    pub(super) fn ahead(&self, ticket: i64) -> u32 {
        let before = self.waiters.iter().take_while(|other| **other != ticket);
        let processes: HashSet<i64> = before.map(|other| other >> TICKET_BITS).collect();
        let others = processes
            .iter()
            .filter(|other| **other != ticket >> TICKET_BITS);
        u32::try_from(others.count()).unwrap()
    }

    pub(super) fn is_free_after(&self, ahead: u32) -> bool {
        !self.is_live() && self.expires + TURN * ahead <= Moment::now()
    }
}

/// Stores notifications until they are read, and who sleeps until there are some.
#[derive(Default)]
pub(super) struct Mailbox {
    pub(super) calls: Vec<Call>,
    pub(super) sleeper: Option<Arc<Sleeper>>,
}

/// All rows and listeners.
#[derive(Default)]
pub struct Database {
    rows: HashMap<Name, Row>,
    pub(super) listeners: BTreeMap<i64, Mailbox>,
    pub(super) latest_listener: i64,
    /// Sleepers that have a notification and are still to be woken.
    pub(super) woken: Vec<Arc<Sleeper>>,
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

    pub(super) fn acquire(&mut self, name: &Name, token: &Token, lease: Lease) -> Answer {
        let row = self.row(name);
        if row.is_held(token) {
            return Answer::Acquired {
                fence: row.fence,
                deadline: Deadline::new(Moment::now(), 0.0),
                unknown: false,
            };
        }
        if !row.is_free_after(row.ahead(0).min(2)) {
            // Another transaction may have locked its row.
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

    pub(super) fn notify(&mut self, call: Call) {
        let (Call::Turn(ticket) | Call::Next(ticket)) = call;
        if let Some(mailbox) = self.listeners.get_mut(&(ticket >> TICKET_BITS)) {
            mailbox.calls.push(call);
            self.woken.extend(mailbox.sleeper.take());
        }
    }

    /// Calls the first in the queue of a free lock, and notifies the next process.
    pub(super) fn call(&mut self, name: &Name) -> Released {
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

    pub(super) fn release(&mut self, name: &Name, token: &Token, again: bool) -> Released {
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

    /// The record of a lock's hold, and its token.
    pub(super) fn revocable(&mut self, name: &Name) -> Option<(Record, String)> {
        let row = self.row(name);
        row.is_live().then(|| {
            let record = Record {
                name: name.as_str().to_owned(),
                fence: Some(row.fence),
                host: None,
                process: None,
                thread: None,
                note: None,
                acquired: 0.0,
                expires: 0.0,
                waiters: 0,
            };
            (record, row.token.as_str().to_owned())
        })
    }

    pub(super) fn records(&mut self) -> Vec<Record> {
        let names: Vec<Name> = self.rows.keys().cloned().collect();
        let found = names.iter().filter_map(|name| self.revocable(name));
        found.map(|(record, _)| record).collect()
    }

    pub(super) fn extend(
        &mut self,
        name: &Name,
        token: &Token,
        lease: Lease,
    ) -> Option<(i64, Deadline)> {
        let row = self.row(name);
        row.is_held(token).then(|| {
            let now = Moment::now();
            let expires = now + Duration::from_secs_f64(lease.seconds());
            row.expires = row.expires.max(expires);
            (row.fence, Deadline::new(now, lease.seconds()))
        })
    }

    pub(super) fn wait(&mut self, waiter: Candidate) -> Turn {
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
