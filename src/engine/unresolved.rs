//! Attempts with an unknown outcome: a statement was sent, and no answer came.
//!
//! An acquire whose caller has stopped waiting and a release that its caller cannot repeat amount
//! to the same: the token must not hold the lock. That release is *owed*.

use super::{Deadline, Due, Late, Lease, Moment, Name, Token, VALID, Watches};
use std::collections::HashMap;
use std::time::Duration;

/// The state of an owed release.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// The attempt's own statement is in flight.
    InFlight,
    /// Due at this moment, and again after growing pauses.
    Pending { next: Moment, pause: Duration },
    /// Done. A caller that tries the same again is told so.
    Settled,
}

/// The kind of attempt.
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
    /// When it no longer matters.
    until: Deadline,
}

impl Owed {
    /// When it no longer matters.
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

/// What remains to be settled for a name.
#[derive(Debug, PartialEq)]
pub struct Unsettled {
    /// The owed releases.
    pub owed: Vec<(Token, Lease)>,
    /// A late statement may have taken the lock, for no longer than this lease.
    pub late: Option<Lease>,
    /// Another attempt's statement is in flight.
    pub in_flight: bool,
}

/// All attempts of one process with an unknown outcome.
#[derive(Debug, Default)]
pub struct Unresolved {
    releases: HashMap<Name, Vec<Owed>>,
    /// Statements that may execute late.
    pub late: Watches,
    /// How many tickets are leaving the queue of a name.
    leaving: HashMap<Name, u32>,
    /// How many attempts have been settled.
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

    /// The statement of an attempt is in flight, and nobody will repeat it.
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

    /// The statement of an attempt is no longer in flight; if it owes a release, that is already
    /// recorded.
    pub fn landed(&mut self, name: &Name, token: &Token) {
        let owed = self.owed(name, token);
        if owed.is_some_and(|owed| owed.state == State::InFlight) {
            self.forget(name, token);
        }
    }

    /// Records an owed release.
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

    /// How many attempts have been settled: a caller refused before the last of them might not be
    /// refused now.
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

    /// What remains to be settled for a name.
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

    /// An owed release, sent at `sent`, was executed: it ended a hold (`found`), or found none.
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
            // Another of its statements may still be in flight, whatever was found.
            let late = Late::Taking {
                token: token.clone(),
                granted: None,
            };
            self.late.add(name, late, lease, sent);
            self.forget(name, token);
        }
    }

    /// A thread has looked for late holds of a name, with statements sent at `sent` or later;
    /// `found` if there was one, which has been ended.
    pub fn looked(&mut self, name: &Name, found: bool, sent: Moment) {
        self.settlements += u64::from(found);
        self.late.looked(name, sent);
    }

    /// Settling a name has failed.
    pub fn failed(&mut self, name: &Name, now: Moment) {
        for owed in self.releases.get_mut(name).into_iter().flatten() {
            if let State::Pending { next, pause } = &mut owed.state {
                *pause = (*pause * 2).min(Unresolved::LONGEST_PAUSE);
                *next = now + *pause;
            }
        }
        self.late.failed(name, now);
    }

    /// What to undo now. Forgets what no longer matters.
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

    /// A ticket is leaving the queue of a name, or has left it.
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

    /// Whether nothing is owed or in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && self.leaving.is_empty() && self.late.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // of constants
mod tests;
