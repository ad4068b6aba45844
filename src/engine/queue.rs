//! The waiters of one process for one lock, in order of arrival: a state machine without I/O. It is
//! told what happened and says who should do what.
//!
//! The process has one entry in the database's queue, its *ticket*, however many of its own wait.
//! The first waiter that is able to run, the *leader*, acts for it:
//!
//! | ticket     | event                             | next                                  |
//! |------------|-----------------------------------|---------------------------------------|
//! | none       | the leader plans                  | in flight: take the lock, or else     |
//! |            |                                   | enter the queue                       |
//! | in flight  | found in the queue                | queued, the leader sleeps until `due` |
//! | in flight  | the row was locked                | backoff, then in flight again         |
//! | queued     | called, or `due` has come         | in flight: take the lock              |
//! | in flight  | acquired                          | the next one leads; the statement has |
//! |            |                                   | put the ticket to the queue's end     |
//! | any        | the leader gives up               | the next one leads, the ticket stays  |
//! | any        | the last one leaves               | none: the ticket is to leave          |
//!
//! A leader that was woken and does not come, because its event loop is busy with something else,
//! is *stalled*: the next one leads until it comes.

use super::plan::{Ask, Outcome, Plan, Seen};
use crate::sync::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// The bits of a ticket that its listener assigns.
pub const TICKET_BITS: u32 = 24;

#[derive(Debug)]
struct Waiter<W> {
    wakeup: W,
    /// It was woken, and no longer sleeps.
    woken: bool,
    /// Since when it could have planned, as the leader.
    expected: Option<Instant>,
    stalled: bool,
}

/// The waiters for one lock; `W` is how to wake one.
#[derive(Debug)]
pub struct Line<W> {
    /// By number, which is the order of arrival.
    waiters: BTreeMap<u64, Waiter<W>>,
    ticket: i64,
    previous: i64,
    queued: bool,
    called: bool,
    /// How many calls it followed since it last acquired the lock, and when to follow the next.
    heeded: u32,
    heed: Instant,
    /// The process was told that it is next, should the first not come: when to look then.
    next: Option<Instant>,
    /// A waiter has asked for the lock without entering the queue.
    tried: bool,
    in_flight: Option<u64>,
    /// The row was locked when it was the process's turn: when to ask again.
    again: Option<Instant>,
    due: Instant,
    /// How often in a row it could neither enter the queue nor get the lock.
    tries: u32,
    /// How often in a row the row was locked when it was the process's turn.
    busy: i32,
    /// The tickets in the database's queue, as last seen.
    known: Vec<i64>,
    /// The hold last seen: its fence and when it was to expire.
    pub seen: Option<(Option<i64>, Instant)>,
}

impl<W: Clone> Line<W> {
    /// An empty line.
    #[must_use]
    pub fn new(now: Instant) -> Line<W> {
        Line {
            waiters: BTreeMap::new(),
            ticket: 0,
            previous: 0,
            queued: false,
            called: false,
            heeded: 0,
            heed: now,
            next: None,
            tried: false,
            in_flight: None,
            again: None,
            due: now,
            tries: 0,
            busy: 0,
            known: Vec::new(),
            seen: None,
        }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Whether the ticket is in the database's queue.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.queued
    }

    /// The ticket, 0 if there is none.
    #[must_use]
    pub fn ticket(&self) -> i64 {
        self.ticket
    }

    /// How often in a row the row was locked when it was the process's turn.
    #[must_use]
    pub fn busy(&self) -> i32 {
        self.busy
    }

    /// Adds a waiter; numbers only grow.
    pub fn join(&mut self, number: u64, wakeup: W, now: Instant) {
        let leads = self.leader().is_none();
        let waiter = Waiter {
            wakeup,
            woken: false,
            expected: leads.then_some(now),
            stalled: false,
        };
        self.waiters.insert(number, waiter);
    }

    /// Who acts: the waiter whose statement is in flight, or the first that is not stalled.
    fn leader(&self) -> Option<u64> {
        self.in_flight.or_else(|| {
            let mut able = self.waiters.iter().filter(|(_, waiter)| !waiter.stalled);
            able.next().map(|(number, _)| *number)
        })
    }

    /// Wakes the leader, if it sleeps.
    #[must_use]
    pub fn wake(&mut self, now: Instant) -> Option<W> {
        let leader = self.leader()?;
        let in_flight = self.in_flight == Some(leader);
        let waiter = self.waiters.get_mut(&leader)?;
        waiter.woken = true;
        if !in_flight {
            let expected = waiter.expected.map_or(now, |expected| expected.min(now));
            waiter.expected = Some(expected);
        }
        Some(waiter.wakeup.clone())
    }

    /// Whether a waiter was woken or is gone, and so no longer sleeps.
    pub fn sleeps_no_longer(&mut self, number: u64) -> bool {
        self.waiters
            .get_mut(&number)
            .is_none_or(|waiter| std::mem::take(&mut waiter.woken))
    }

    /// Whether this waiter, which is able to run, acts for the line now.
    pub fn leads(&mut self, number: u64) -> bool {
        if let Some(waiter) = self.waiters.get_mut(&number) {
            waiter.stalled = false;
        }
        let leads = self.leader() == Some(number);
        if let Some(waiter) = self.waiters.get_mut(&number).filter(|_| !leads) {
            waiter.expected = None;
        }
        leads
    }

    /// Whether a waiter is about to look for itself: a caller that does not wait may not get ahead
    /// of it. A leader that is late by `limit` loses that claim.
    #[must_use]
    pub fn comes_first(&self, now: Instant, limit: Duration) -> bool {
        !self.waiters.is_empty() && (self.in_flight.is_some() || now < self.due + limit)
    }

    /// The lock may just have become free.
    pub fn look_at_once(&mut self, now: Instant) {
        self.due = now;
        self.again = None;
    }

    /// Whether there is a call to follow now.
    fn is_called(&self, now: Instant) -> bool {
        self.called && now >= self.heed
    }

    /// When to act if no call comes.
    fn wakes(&self) -> Instant {
        if self.called {
            self.due.min(self.heed)
        } else {
            self.due
        }
    }

    /// What a waiter should do now. `listener` is the number that the tickets of this process begin
    /// with, while notifications get through.
    pub fn plan(
        &mut self,
        number: u64,
        now: Instant,
        listener: Option<i64>,
        fresh_ticket: impl FnOnce() -> i64,
    ) -> Plan {
        let Some(waiter) = self.waiters.get_mut(&number) else {
            return Plan::Sleep(None);
        };
        waiter.stalled = false;
        waiter.expected = None;
        if self.leader() != Some(number) || self.in_flight.is_some() {
            return Plan::Sleep(None);
        }
        if !std::mem::replace(&mut self.tried, true) {
            self.in_flight = Some(number);
            return Plan::Try;
        }
        if let Some(until) = self.sleeps_until(listener, now) {
            if let Some(waiter) = self.waiters.get_mut(&number) {
                waiter.expected = Some(until);
            }
            return Plan::Sleep(Some(until));
        }
        self.in_flight = Some(number);
        let Some(listener) = listener else {
            self.called = false;
            return Plan::Try;
        };
        if self.again.is_none() && self.ticket >> TICKET_BITS != listener {
            self.previous = self.ticket;
            self.ticket = listener << TICKET_BITS | fresh_ticket();
            self.queued = false;
        }
        Plan::Ask(self.ask(now))
    }

    /// Until when the leader has nothing to do unless it is called.
    fn sleeps_until(&self, listener: Option<i64>, now: Instant) -> Option<Instant> {
        let unless_called = || (!self.is_called(now) && now < self.due).then(|| self.wakes());
        match (listener, self.again) {
            (None, _) => unless_called(),
            (Some(_), Some(again)) => (now < again).then_some(again),
            (Some(listener), None) if self.queued_at(listener) => unless_called(),
            (Some(_), None) => (self.tries > 1 && now < self.due).then_some(self.due),
        }
    }

    /// The arguments for asking now.
    fn ask(&mut self, now: Instant) -> Ask {
        // Before the statement is sent: a later call is a new one.
        let called = std::mem::take(&mut self.called) && self.queued;
        if called {
            self.heeded += 1;
            self.heed = now + Line::<W>::deafness(self.heeded);
        }
        self.next = None;
        self.again = None;
        let (ticket, previous) = (self.ticket, self.previous);
        let others = self.known.iter().copied();
        Ask {
            ticket,
            previous,
            known: others
                .filter(|other| ![ticket, previous].contains(other))
                .collect(),
            called,
            more: self.waiters.len() > 1,
        }
    }

    fn queued_at(&self, listener: i64) -> bool {
        self.queued && self.ticket >> TICKET_BITS == listener
    }

    fn landed(&mut self, number: u64) {
        if self.in_flight == Some(number) {
            self.in_flight = None;
        }
    }

    /// The waiter asked and found this queue.
    pub fn found(&mut self, number: u64, seen: Seen, now: Instant, again: Duration) {
        self.landed(number);
        if !self.waiters.contains_key(&number) {
            return;
        }
        self.queued = seen.queued;
        self.due = seen.due;
        if !seen.queued {
            // Another transaction had locked the row: try again in a moment.
            self.tries = self.tries.max(1) + 1;
            return;
        }
        self.tries = 0;
        if let Some(next) = self.next.take() {
            self.due = self.due.min(next);
        }
        self.again = None;
        if seen.busy {
            // Others are entering or leaving the queue, or a guard holds the row for longer.
            self.busy = (self.busy + 1).min(50);
            self.again = Some(now + again);
        } else {
            self.busy = 0;
        }
        self.known = seen.tickets;
    }

    /// The waiter's attempt without the queue failed: try again at `due`.
    pub fn refused(&mut self, number: u64, due: Instant) {
        self.landed(number);
        self.tries = 1;
        self.due = due;
    }

    /// The waiter's statement failed.
    pub fn failed(&mut self, number: u64) {
        self.landed(number);
    }

    /// Whether the leader's attempt without the queue failed.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.tries > 0
    }

    /// A waiter's wait has ended. Returns the ticket if it may be in the database's queue with no
    /// waiter left to use it.
    pub fn left(&mut self, number: u64, outcome: Outcome, now: Instant) -> Option<i64> {
        let led = self.leader() == Some(number);
        self.landed(number);
        self.waiters.remove(&number)?;
        match outcome {
            Outcome::Acquired { lease, queued } => {
                self.queued = queued == Some(true);
                self.again = None;
                self.busy = 0;
                self.tries = 0;
                self.seen = None;
                self.called = false;
                self.heeded = 0;
                self.heed = now;
                self.known.retain(|ticket| *ticket != self.ticket);
                self.due = match queued {
                    Some(true) => {
                        self.known.push(self.ticket);
                        // Nobody needs to look before the lease ends.
                        now + lease + Duration::from_millis(2)
                    }
                    // The next waiter enters the queue at once.
                    Some(false) | None => now,
                };
                if queued.is_some() {
                    self.previous = 0;
                } else {
                    // If refused, the next one starts the listening thread.
                    self.tried = false;
                }
                if queued == Some(false) {
                    self.ticket = 0;
                }
            }
            // Another waiter may have to do at once what this one was about to do.
            Outcome::GaveUp if led => self.due = self.due.min(now),
            Outcome::GaveUp => {}
        }
        (self.waiters.is_empty() && self.ticket != 0).then_some(self.ticket)
    }

    /// The ticket was called: the lock is free, and it is its turn. Returns whether to tell the
    /// leader.
    pub fn call(&mut self, now: Instant) -> bool {
        !std::mem::replace(&mut self.called, true) || now >= self.heed
    }

    /// How long to ignore calls after this many that did not lead to the lock. A few are nobody's
    /// fault: score.distlock 0.2.5 takes a lock out of turn. Many come from a client that wants to
    /// keep the database busy; anybody can send them.
    fn deafness(heeded: u32) -> Duration {
        match heeded {
            0..=3 => Duration::ZERO,
            more => Duration::from_millis(10 << (more - 4).min(6)).min(Duration::from_millis(500)),
        }
    }

    /// The ticket is next, should the first not come by `due`. Returns whether to tell the leader.
    pub fn call_next(&mut self, due: Instant) -> bool {
        // The first of several counts, or else the time would never come.
        let due = *self.next.get_or_insert(due);
        let sooner = due < self.due;
        self.due = self.due.min(due);
        sooner
    }

    /// Notifications no longer get through: ask at that time.
    pub fn poll_at(&mut self, due: Instant) {
        self.due = self.due.min(due);
    }

    /// Passes over a leader that should have come `limit` ago. Returns whom to wake instead.
    pub fn pass_by(&mut self, now: Instant, limit: Duration) -> Option<W> {
        let leader = self.leader().filter(|_| self.in_flight.is_none())?;
        let waiter = self.waiters.get_mut(&leader)?;
        let expected = waiter.expected?;
        if now <= expected + limit {
            return None;
        }
        waiter.stalled = true;
        if self.leader().is_none() {
            // All are stalled: start over with the first.
            for waiter in self.waiters.values_mut() {
                waiter.stalled = false;
                waiter.expected = Some(now);
            }
        } else {
            self.due = self.due.min(now);
        }
        self.wake(now)
    }
}

#[cfg(test)]
mod tests;
