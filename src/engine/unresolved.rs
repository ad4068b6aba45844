//! Attempts whose outcome is unknown: their statement was sent, and no answer came.
//!
//! An acquire that nobody waits for any more, and a release that its caller cannot
//! repeat, come to the same: the token must not hold the lock. That release is *owed*.

mod transfers;

use super::{Deadline, Due, Late, Lease, Moment, Name, Token, VALID, Watches};
use std::collections::HashMap;
use std::time::Duration;
pub use transfers::{Claim, Transfers};

/// A release that is owed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// The statement of the attempt itself is under way.
    InFlight,
    /// To be tried at this moment, after pauses that grow.
    Pending { next: Moment, pause: Duration },
    /// It is done. Whoever tries the same again is told so.
    Settled,
}

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attempt {
    /// To acquire.
    Acquire,
    /// To release.
    Release,
}

#[derive(Clone, Debug)]
struct Owed {
    token: Token,
    attempt: Attempt,
    state: State,
    lease: Lease,
    /// From then on it does not matter any more.
    until: Deadline,
}

impl Owed {
    /// When it does not matter any more.
    fn over(attempt: Attempt, lease: Lease, now: Moment) -> Deadline {
        let latest = match attempt {
            Attempt::Acquire => now + VALID,
            Attempt::Release => now,
        };
        Deadline::new(latest, lease.seconds())
    }

    fn new(token: &Token, attempt: Attempt, lease: Lease, state: State, now: Moment) -> Owed {
        Owed {
            token: token.clone(),
            attempt,
            state,
            lease,
            until: Owed::over(attempt, lease, now),
        }
    }
}

/// What of a name has to be settled.
#[derive(Debug, PartialEq)]
pub struct Unsettled {
    /// The releases that are owed.
    pub owed: Vec<(Token, Lease)>,
    /// Something may have been taken late, for no longer than this lease.
    pub late: Option<Lease>,
    /// The statement of another attempt is under way.
    pub in_flight: bool,
}

/// All attempts of one process whose outcome is unknown.
#[derive(Debug, Default)]
pub struct Unresolved {
    releases: HashMap<Name, Vec<Owed>>,
    /// Statements that may be executed late.
    pub late: Watches,
    /// Transfers that may have succeeded.
    pub transfers: Transfers,
    /// How many tickets are about to leave the queue of a name.
    leaving: HashMap<Name, u32>,
    /// How many attempts have come to an end.
    settlements: u64,
}

impl Unresolved {
    const PAUSE: Duration = Duration::from_millis(100);
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);

    fn owed(&mut self, name: &Name, token: &Token) -> Option<&mut Owed> {
        let owed = self.releases.get_mut(name)?;
        owed.iter_mut().find(|owed| owed.token == *token)
    }

    fn add(&mut self, name: &Name, owed: Owed) {
        self.releases.entry(name.clone()).or_default().push(owed);
    }

    /// The statement of an attempt is under way, and nobody is going to repeat it.
    pub fn begin(
        &mut self,
        name: &Name,
        token: &Token,
        attempt: Attempt,
        lease: Lease,
        now: Moment,
    ) {
        if self.owed(name, token).is_none() {
            self.add(name, Owed::new(token, attempt, lease, State::InFlight, now));
        }
    }

    /// The statement of an attempt is not under way any more; if it owes something, that is
    /// recorded already.
    pub fn landed(&mut self, name: &Name, token: &Token) {
        let owed = self.owed(name, token);
        if owed.is_some_and(|owed| owed.state == State::InFlight) {
            self.forget(name, token);
        }
    }

    /// A release is owed from now on.
    pub fn owe(&mut self, name: &Name, token: &Token, attempt: Attempt, lease: Lease, now: Moment) {
        let state = State::Pending {
            next: now,
            pause: Unresolved::PAUSE,
        };
        if let Some(owed) = self.owed(name, token) {
            owed.state = state;
            owed.until = Owed::over(owed.attempt, lease, now);
        } else {
            self.add(name, Owed::new(token, attempt, lease, state, now));
        }
    }

    /// How many attempts have come to an end: whoever was refused before the last of them
    /// may not be refused now.
    #[must_use]
    pub fn settlements(&self) -> u64 {
        self.settlements
    }

    /// The attempt turned out to owe nothing.
    pub fn forget(&mut self, name: &Name, token: &Token) {
        self.settlements += 1;
        if let Some(owed) = self.releases.get_mut(name) {
            owed.retain(|owed| owed.token != *token);
            if owed.is_empty() {
                self.releases.remove(name);
            }
        }
    }

    /// Whether the hold of this token may have been released, or has been.
    #[must_use]
    pub fn may_be_released(&mut self, name: &Name, token: &Token) -> Option<bool> {
        let owed = self.owed(name, token)?;
        (owed.attempt == Attempt::Release && owed.state != State::InFlight)
            .then_some(owed.state == State::Settled)
    }

    /// What of a name has to be settled.
    #[must_use]
    pub fn of(&self, name: &Name) -> Unsettled {
        let owed = self.releases.get(name).map_or(&[][..], Vec::as_slice);
        let pending = owed
            .iter()
            .filter(|owed| matches!(owed.state, State::Pending { .. }));
        Unsettled {
            owed: pending
                .map(|owed| (owed.token.clone(), owed.lease))
                .collect(),
            late: self.late.lease_of(name),
            in_flight: owed.iter().any(|owed| owed.state == State::InFlight)
                || self.leaving.contains_key(name),
        }
    }

    /// A release that was owed was executed: it ended a hold (`found`), or found none. It was
    /// sent at `sent`.
    pub fn executed(&mut self, name: &Name, token: &Token, found: bool, sent: Moment) {
        let owed = self.owed(name, token);
        let Some(owed) = owed.filter(|owed| matches!(owed.state, State::Pending { .. })) else {
            self.settlements += u64::from(found);
            return;
        };
        owed.state = State::Settled;
        let (attempt, lease) = (owed.attempt, owed.lease);
        self.settlements += 1;
        if attempt == Attempt::Acquire {
            // One of its statements may be under way yet, whatever was found.
            let late = Late::Taking {
                token: token.clone(),
                granted: None,
            };
            self.late.add(name, late, lease, sent);
            self.forget(name, token);
        }
    }

    /// Somebody has looked for what was taken late of a name; `found` if there was something,
    /// which was ended. The statements were sent at `sent` or later.
    pub fn looked(&mut self, name: &Name, found: bool, sent: Moment) {
        self.settlements += u64::from(found);
        self.late.looked(name, sent);
    }

    /// What is to be settled of a name could not be.
    pub fn failed(&mut self, name: &Name, now: Moment) {
        for owed in self.releases.get_mut(name).into_iter().flatten() {
            if let State::Pending { next, pause } = &mut owed.state {
                *pause = (*pause * 2).min(Unresolved::LONGEST_PAUSE);
                *next = now + *pause;
            }
        }
        self.late.failed(name, now);
    }

    /// What is to be undone now. Forgets what does not matter any more.
    pub fn due(&mut self, now: Moment) -> Due {
        let mut due = self.late.due(now);
        self.releases.retain(|name, owed| {
            owed.retain(|owed| owed.state == State::InFlight || !owed.until.passed(now));
            for owed in owed.iter() {
                if let State::Pending { next, .. } = owed.state {
                    due.at(next);
                    if next <= now {
                        due.names.insert(name.clone());
                    }
                }
            }
            !owed.is_empty()
        });
        due
    }

    /// A ticket is about to leave the queue of a name, or has left it.
    pub fn leaving(&mut self, name: &Name, begins: bool) {
        let count = self.leaving.entry(name.clone()).or_default();
        *count = if begins {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            self.leaving.remove(name);
            self.settlements += 1;
        }
    }

    /// Whether nothing is owed or under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && self.leaving.is_empty() && self.late.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // of constants
mod tests;
