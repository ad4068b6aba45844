//! Attempts whose outcome is unknown: their statement was sent, and no answer came.
//!
//! An acquire that nobody waits for any more, and a release that its caller cannot
//! repeat, come to the same: the token must not hold the lock. That release is *owed*.

use super::{Deadline, Lease, Moment, Name, Token};
use std::collections::HashMap;
use std::time::Duration;

/// A release that is owed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// The statement of the attempt itself is under way.
    InFlight,
    /// To be tried at this moment, after pauses that grow.
    Pending { next: Moment, pause: Duration },
    /// No hold was found, but the statement of an acquire may come late: to be tried once more.
    Checked { next: Moment },
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

/// All attempts of one process whose outcome is unknown.
#[derive(Debug, Default)]
pub struct Unresolved {
    releases: HashMap<Name, Vec<Owed>>,
    /// The token that the hold of another may have.
    transfers: HashMap<Token, (Token, Deadline)>,
    /// How many tickets are about to leave the queue of a name.
    leaving: HashMap<Name, u32>,
    /// How many attempts have come to an end.
    settlements: u64,
}

impl Unresolved {
    const PAUSE: Duration = Duration::from_millis(100);
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    /// When to look once more for a statement that came late.
    const LATE: Duration = Duration::from_secs(1);

    fn owed(&mut self, name: &Name, token: &Token) -> Option<&mut Owed> {
        let owed = self.releases.get_mut(name)?;
        owed.iter_mut().find(|owed| owed.token == *token)
    }

    fn put(&mut self, name: &Name, token: &Token, attempt: Attempt, lease: Lease, state: State) {
        let until = Deadline::new(Moment::now(), lease.seconds());
        if let Some(owed) = self.owed(name, token) {
            owed.state = state;
            owed.until = until;
            return;
        }
        self.releases.entry(name.clone()).or_default().push(Owed {
            token: token.clone(),
            attempt,
            state,
            lease,
            until,
        });
    }

    /// The statement of an attempt is under way, and nobody is going to repeat it.
    pub fn begin(&mut self, name: &Name, token: &Token, attempt: Attempt, lease: Lease) {
        if self.owed(name, token).is_none() {
            self.put(name, token, attempt, lease, State::InFlight);
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
    pub fn owe(&mut self, name: &Name, token: &Token, attempt: Attempt, lease: Lease) {
        let state = State::Pending {
            next: Moment::now(),
            pause: Unresolved::PAUSE,
        };
        self.put(name, token, attempt, lease, state);
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

    /// The tokens whose releases are owed for a name, with their leases; and whether the
    /// statement of another attempt is under way.
    #[must_use]
    pub fn of(&mut self, name: &Name) -> (Vec<(Token, Lease)>, bool) {
        let owed = self.releases.get(name).map_or(&[][..], Vec::as_slice);
        let tokens = owed
            .iter()
            .filter(|owed| matches!(owed.state, State::Pending { .. } | State::Checked { .. }))
            .map(|owed| (owed.token.clone(), owed.lease));
        let in_flight = owed.iter().any(|owed| owed.state == State::InFlight)
            || self.leaving.contains_key(name);
        (tokens.collect(), in_flight)
    }

    /// A release that was owed was executed: it ended a hold (`found`), or found none.
    pub fn executed(&mut self, name: &Name, token: &Token, found: bool) {
        let Some(owed) = self.owed(name, token) else {
            self.settlements += 1;
            return;
        };
        let early = matches!(owed.state, State::Checked { next } if Moment::now() < next);
        if early && !found {
            return;
        }
        owed.state = match (owed.attempt, owed.state) {
            (Attempt::Acquire, State::Pending { .. }) if !found => State::Checked {
                next: Moment::now() + Unresolved::LATE,
            },
            _ => State::Settled,
        };
        let over = owed.state == State::Settled && owed.attempt == Attempt::Acquire;
        self.settlements += 1;
        if over {
            self.forget(name, token);
        }
    }

    /// A release that was owed failed.
    pub fn failed(&mut self, name: &Name, token: &Token) {
        if let Some(owed) = self.owed(name, token) {
            let pause = match owed.state {
                State::Pending { pause, .. } => (pause * 2).min(Unresolved::LONGEST_PAUSE),
                _ => Unresolved::PAUSE,
            };
            let next = Moment::now() + pause;
            owed.state = State::Pending { next, pause };
        }
    }

    /// What is to be released now, and when to look again. Forgets what does not matter
    /// any more.
    pub fn due(&mut self, now: Moment) -> (Vec<(Name, Token, Lease)>, Option<Moment>) {
        let (mut due, mut next_due): (Vec<_>, Option<Moment>) = (Vec::new(), None);
        self.releases.retain(|name, owed| {
            owed.retain(|owed| owed.state == State::InFlight || !owed.until.passed(now));
            for owed in owed.iter() {
                if let State::Pending { next, .. } | State::Checked { next } = owed.state {
                    if next <= now {
                        due.push((name.clone(), owed.token.clone(), owed.lease));
                    }
                    next_due = Some(next_due.map_or(next, |other| other.min(next)));
                }
            }
            !owed.is_empty()
        });
        self.transfers.retain(|_, (_, until)| !until.passed(now));
        (due, next_due)
    }

    /// The hold of `old` may have the token `new`.
    pub fn transferring(&mut self, old: &Token, new: &Token, lease: Lease) {
        let until = Deadline::new(Moment::now(), lease.seconds());
        self.transfers.insert(old.clone(), (new.clone(), until));
    }

    /// The token that the hold of `old` may have.
    #[must_use]
    pub fn transfer(&self, old: &Token) -> Option<Token> {
        let (new, until) = self.transfers.get(old)?;
        (!until.passed(Moment::now())).then(|| new.clone())
    }

    /// It is known what became of a transfer.
    pub fn transferred(&mut self, old: &Token) {
        self.transfers.remove(old);
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
        self.releases.is_empty() && self.leaving.is_empty()
    }
}
