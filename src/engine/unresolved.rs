//! Attempts whose outcome is unknown: their statement was sent, and no answer came.
//!
//! An acquire that nobody waits for any more, and a release that its caller cannot
//! repeat, come to the same: the token must not hold the lock. That release is *owed*.

use super::late::{Due, Watches};
use super::{Deadline, Late, Lease, Moment, Name, Token, VALID};
use std::collections::HashMap;
use std::time::Duration;

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
    late: Watches,
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

    /// A statement may be executed late, which was sent before `now`.
    pub fn may_come_late(&mut self, name: &Name, late: Late, lease: Lease, now: Moment) {
        self.late.add(name, late, lease, now);
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
        self.settlements += u64::from(found);
        let Some(owed) = self.owed(name, token) else {
            return;
        };
        let State::Pending { .. } = owed.state else {
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

    /// Whether the hold of a name was taken late: its lease.
    #[must_use]
    pub fn is_late(&self, name: &Name, token: &Token, fence: Option<i64>) -> Option<Lease> {
        self.late.is_late(name, token, fence)
    }

    /// Somebody has looked for what was taken late of a name; `found` if there was something,
    /// which was ended. The statements were sent at `sent` or later.
    pub fn looked(&mut self, name: &Name, found: bool, sent: Moment) {
        self.settlements += u64::from(found);
        self.late.looked(name, sent);
    }

    /// A ticket was taken out of the queue, by a statement that was sent at `sent`.
    pub fn left(&mut self, ticket: i64, sent: Moment) {
        self.late.left(ticket, sent);
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

    /// What may have been done late is looked for once more, at once.
    pub fn hurry(&mut self, now: Moment) {
        self.late.hurry(now);
    }

    /// What may be done late is left alone: its lease ends it.
    pub fn give_up_late(&mut self) {
        self.late.clear();
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
        self.transfers.retain(|_, (_, until)| !until.passed(now));
        due
    }

    /// The hold of `old` may have the token `new`.
    pub fn transferring(&mut self, old: &Token, new: &Token, lease: Lease, now: Moment) {
        let until = Deadline::new(now, lease.seconds());
        self.transfers.insert(old.clone(), (new.clone(), until));
    }

    /// The token that the hold of `old` may have.
    #[must_use]
    pub fn transfer(&self, old: &Token, now: Moment) -> Option<Token> {
        let (new, until) = self.transfers.get(old)?;
        (!until.passed(now)).then(|| new.clone())
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
        self.releases.is_empty() && self.leaving.is_empty() && self.late.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // of constants
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MILLISECOND: Duration = Duration::from_millis(1);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn lease(seconds: f64) -> Lease {
        Lease::from_seconds(seconds).unwrap()
    }

    struct Test {
        all: Unresolved,
        name: Name,
        token: Token,
        start: Moment,
    }

    impl Test {
        fn new() -> Test {
            Test {
                all: Unresolved::default(),
                name: name("name"),
                token: Token::random(),
                start: Moment::now(),
            }
        }

        /// An acquire or release that owes a release for a lease of a minute.
        fn owing(attempt: Attempt) -> Test {
            let mut test = Test::new();
            let minute = lease(60.0);
            test.all
                .owe(&test.name, &test.token, attempt, minute, test.start);
            test
        }

        fn executed(&mut self, found: bool, after: Duration) {
            let sent = self.start + after;
            self.all.executed(&self.name, &self.token, found, sent);
        }

        fn looked(&mut self, found: bool, after: Duration) {
            self.all.looked(&self.name, found, self.start + after);
        }

        fn failed(&mut self, after: Duration) {
            self.all.failed(&self.name, self.start + after);
        }

        /// Whether something of the name is due then, and how long until it is to be looked at.
        fn due(&mut self, after: Duration) -> (bool, Option<Duration>) {
            let due = self.all.due(self.start + after);
            assert!(due.names.iter().all(|name| *name == self.name));
            assert!(due.tickets.is_empty());
            assert_eq!(due.is_empty(), due.names.is_empty());
            let next = due.next.map(|next| next.since(self.start));
            (!due.names.is_empty(), next)
        }

        /// Whose releases are owed.
        fn owed(&self) -> Vec<Token> {
            let owed = self.all.of(&self.name).owed.into_iter();
            owed.map(|(token, _)| token).collect()
        }

        /// Whether there is nothing to settle of a name.
        fn settled(&self, name: &Name) -> bool {
            let nothing = Unsettled {
                owed: vec![],
                late: None,
                in_flight: false,
            };
            self.all.of(name) == nothing
        }
    }

    #[test]
    fn a_release_that_is_owed_is_due_at_once_and_belongs_to_its_name() {
        let mut test = Test::owing(Attempt::Release);
        assert_eq!(test.due(Duration::ZERO), (true, Some(Duration::ZERO)));
        let expected = Unsettled {
            owed: vec![(test.token.clone(), lease(60.0))],
            late: None,
            in_flight: false,
        };
        assert_eq!(test.all.of(&test.name), expected);
        assert!(test.settled(&name("other")));
        assert!(!test.all.is_empty());
    }

    #[test]
    fn the_next_of_several_is_the_earliest() {
        let mut test = Test::owing(Attempt::Release);
        let other = Token::random();
        let later = test.start + SECOND;
        test.all
            .owe(&test.name, &other, Attempt::Release, lease(60.0), later);
        assert_eq!(test.due(Duration::ZERO), (true, Some(Duration::ZERO)));
        test.executed(true, Duration::ZERO);
        assert_eq!(test.due(Duration::ZERO), (false, Some(SECOND)));
        assert_eq!(test.owed(), [other]);
    }

    #[test]
    fn what_fails_is_tried_again_after_pauses_that_double_up_to_five_seconds() {
        let mut test = Test::owing(Attempt::Release);
        for pause in [200, 400, 800, 1600, 3200, 5000, 5000] {
            test.failed(Duration::ZERO);
            let pause = Duration::from_millis(pause);
            assert_eq!(test.due(pause - MILLISECOND), (false, Some(pause)));
            assert_eq!(test.due(pause), (true, Some(pause)));
        }
        // What is asked for anew begins anew.
        test.all.owe(
            &test.name,
            &test.token,
            Attempt::Release,
            lease(60.0),
            test.start,
        );
        test.failed(Duration::ZERO);
        assert_eq!(test.due(Duration::ZERO).1, Some(2 * Unresolved::PAUSE));
    }

    #[test]
    fn a_release_that_was_done_is_told_to_whoever_repeats_it_for_as_long_as_it_matters() {
        let mut test = Test::owing(Attempt::Release);
        let told = |test: &mut Test| test.all.may_be_released(&test.name, &test.token);
        assert_eq!(told(&mut test), Some(false));
        let before = test.all.settlements();
        test.executed(true, Duration::ZERO);
        assert!(test.all.settlements() > before);
        assert_eq!(told(&mut test), Some(true));
        assert!(test.settled(&test.name));
        assert_eq!(test.due(59 * SECOND), (false, None));
        assert_eq!(told(&mut test), Some(true));
        assert_eq!(test.due(60 * SECOND), (false, None));
        assert_eq!(told(&mut test), None);
        assert!(test.all.is_empty());
    }

    #[test]
    fn a_release_that_found_nothing_is_done_too() {
        let mut test = Test::owing(Attempt::Release);
        let before = test.all.settlements();
        test.executed(false, Duration::ZERO);
        assert_eq!(test.all.settlements(), before + 1);
        // Only once.
        test.executed(false, Duration::ZERO);
        assert_eq!(test.all.settlements(), before + 1);
        assert_eq!(test.due(Duration::ZERO), (false, None));
        let told = test.all.may_be_released(&test.name, &test.token);
        assert_eq!(told, Some(true));
    }

    #[test]
    fn an_acquire_is_looked_for_as_long_as_one_of_its_statements_may_come_late() {
        // Whatever was found: it may be what the repetition has taken, and the first may follow.
        for found in [false, true] {
            let mut test = Test::owing(Attempt::Acquire);
            assert_eq!(test.all.may_be_released(&test.name, &test.token), None);
            let before = test.all.settlements();
            test.executed(found, MILLISECOND);
            assert!(test.all.settlements() > before);
            assert_eq!(test.owed(), []);
            assert_eq!(test.all.of(&test.name).late, Some(lease(60.0)));
            let late = test.all.is_late(&test.name, &test.token, Some(1));
            assert_eq!(late, Some(lease(60.0)));
            let next = MILLISECOND + Duration::from_millis(100);
            assert_eq!(test.due(MILLISECOND), (false, Some(next)));
            assert_eq!(test.due(next), (true, Some(next)));
            let before = test.all.settlements();
            test.looked(false, next);
            assert_eq!(test.all.settlements(), before);
            test.looked(true, next);
            assert_eq!(test.all.settlements(), before + 1);
            assert!(!test.all.is_empty());
            test.looked(found, MILLISECOND + VALID);
            assert!(test.all.is_empty());
        }
    }

    #[test]
    fn the_release_of_what_was_granted_to_a_repetition_is_another_matter() {
        let mut test = Test::new();
        let (token, minute) = (test.token.clone(), lease(60.0));
        let late = Late::Taking {
            token: token.clone(),
            granted: Some(7),
        };
        test.all.may_come_late(&test.name, late, minute, test.start);
        assert_eq!(test.all.is_late(&test.name, &token, Some(7)), None);
        test.all
            .owe(&test.name, &token, Attempt::Release, minute, test.start);
        assert_eq!(test.owed(), std::slice::from_ref(&token));
        test.looked(true, VALID);
        assert_eq!(test.owed(), std::slice::from_ref(&token));
        test.executed(true, VALID);
        let done = test.all.may_be_released(&test.name, &token);
        assert_eq!(done, Some(true));
        assert!(test.settled(&test.name));
    }

    #[test]
    fn a_ticket_that_may_come_late_leaves_the_queue() {
        let mut test = Test::new();
        let second = lease(1.0);
        test.all
            .may_come_late(&test.name, Late::Entering(3), second, test.start);
        // A newcomer has nothing to do with it.
        assert!(test.settled(&test.name));
        let due = test.all.due(test.start + VALID);
        assert!(!due.is_empty() && due.names.is_empty());
        assert_eq!(due.tickets, [(test.name.clone(), 3, second)]);
        test.failed(VALID);
        assert!(test.all.due(test.start + VALID).is_empty());
        test.all.left(3, test.start + 2 * VALID);
        assert!(test.all.is_empty());
    }

    #[test]
    fn who_leaves_looks_once_more_and_then_no_more() {
        let mut test = Test::owing(Attempt::Acquire);
        test.executed(false, Duration::ZERO);
        test.all.hurry(test.start);
        assert_eq!(test.due(Duration::ZERO), (true, Some(Duration::ZERO)));
        test.failed(Duration::ZERO);
        assert!(!test.all.is_empty());
        test.all.give_up_late();
        assert!(test.all.is_empty());
    }

    #[test]
    fn a_statement_under_way_is_waited_for_and_not_released() {
        let mut test = Test::new();
        let minute = lease(60.0);
        let (begun, token) = (Attempt::Release, test.token.clone());
        test.all
            .begin(&test.name, &token, begun, minute, test.start);
        assert!(test.all.of(&test.name).in_flight);
        assert_eq!(test.all.may_be_released(&test.name, &token), None);
        // However long it takes.
        assert_eq!(test.due(3600 * SECOND), (false, None));
        assert!(test.all.of(&test.name).in_flight);
        let before = test.all.settlements();
        test.all.landed(&test.name, &token);
        assert_eq!(test.all.settlements(), before + 1);
        assert!(test.all.is_empty());
    }

    #[test]
    fn what_a_statement_under_way_owes_stays_when_it_has_landed() {
        let mut test = Test::new();
        let token = test.token.clone();
        let (acquire, second) = (Attempt::Acquire, lease(1.0));
        test.all
            .begin(&test.name, &token, acquire, second, test.start);
        let later = test.start + SECOND;
        test.all.owe(&test.name, &token, acquire, second, later);
        test.all.landed(&test.name, &token);
        assert_eq!(test.due(SECOND), (true, Some(SECOND)));
        // To begin what is owed changes nothing.
        test.all.begin(&test.name, &token, acquire, second, later);
        assert_eq!(test.owed().len(), 1);
        // It matters for one lease, which may begin when the statement comes at last.
        let over = SECOND + VALID + SECOND;
        assert!(test.due(over - MILLISECOND).0);
        assert_eq!(test.due(over), (false, None));
        assert!(test.all.is_empty());
    }

    #[test]
    fn an_attempt_is_forgotten_and_no_other_one() {
        let mut test = Test::owing(Attempt::Acquire);
        let other = Token::random();
        let (acquire, minute) = (Attempt::Acquire, lease(60.0));
        test.all
            .owe(&test.name, &other, acquire, minute, test.start);
        let before = test.all.settlements();
        test.all.forget(&test.name, &other);
        assert_eq!(test.all.settlements(), before + 1);
        assert_eq!(test.due(Duration::ZERO), (true, Some(Duration::ZERO)));
        test.all.forget(&test.name, &test.token);
        assert!(test.all.is_empty());
    }

    #[test]
    fn the_token_that_a_hold_may_have_is_known_for_a_lease() {
        let mut test = Test::new();
        let new = Token::random();
        let (second, later) = (lease(1.0), test.start + (SECOND - MILLISECOND));
        test.all.transferring(&test.token, &new, second, test.start);
        assert_eq!(test.all.transfer(&new, test.start), None);
        let known = test.all.transfer(&test.token, later);
        assert_eq!(known, Some(new.clone()));
        assert_eq!(test.all.transfer(&test.token, test.start + SECOND), None);
        test.due(SECOND - MILLISECOND);
        assert_eq!(test.all.transfers.len(), 1);
        test.due(SECOND);
        assert_eq!(test.all.transfers.len(), 0);
        test.all.transferring(&test.token, &new, second, test.start);
        test.all.transferred(&test.token);
        assert_eq!(test.all.transfer(&test.token, test.start), None);
    }

    #[test]
    fn tickets_that_leave_are_counted() {
        let mut test = Test::new();
        test.all.leaving(&test.name, true);
        test.all.leaving(&test.name, true);
        let before = test.all.settlements();
        test.all.leaving(&test.name, false);
        assert!(test.all.of(&test.name).in_flight);
        assert!(test.settled(&name("other")));
        assert!(!test.all.is_empty());
        assert_eq!(test.all.settlements(), before);
        test.all.leaving(&test.name, false);
        assert!(test.settled(&test.name));
        assert!(test.all.is_empty());
        assert_eq!(test.all.settlements(), before + 1);
    }
}
