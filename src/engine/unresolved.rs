//! Attempts whose outcome is unknown: their statement was sent, and no answer came.
//!
//! An acquire that nobody waits for any more, and a release that its caller cannot
//! repeat, come to the same: the token must not hold the lock. That release is *owed*.

use super::{Deadline, Lease, Moment, Name, Token};
use std::collections::HashMap;
use std::time::Duration;

/// How long a statement that takes a lock is good for at most, after it was sent: it may be
/// executed when its caller has long since given up.
pub const VALID: Duration = Duration::from_secs(5);

/// A release that is owed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// The statement of the attempt itself is under way.
    InFlight,
    /// To be tried at this moment, after pauses that grow.
    Pending { next: Moment, pause: Duration },
    /// No hold was found, but the statement of an acquire may come late: to be tried again, after
    /// pauses that grow, and for the last time at `last`.
    Checked {
        next: Moment,
        pause: Duration,
        last: Moment,
    },
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
    pub fn executed(&mut self, name: &Name, token: &Token, found: bool, now: Moment) {
        let Some(owed) = self.owed(name, token) else {
            self.settlements += 1;
            return;
        };
        let early = matches!(owed.state, State::Checked { next, .. } if now < next);
        if early && !found {
            return;
        }
        owed.state = match (owed.attempt, owed.state) {
            (Attempt::Acquire, State::Pending { .. }) if !found => State::Checked {
                next: now + Unresolved::PAUSE,
                pause: Unresolved::PAUSE,
                last: now + VALID,
            },
            (_, State::Checked { pause, last, .. }) if !found && now < last => State::Checked {
                next: last.min(now + pause * 2),
                pause: pause * 2,
                last,
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
    pub fn failed(&mut self, name: &Name, token: &Token, now: Moment) {
        if let Some(owed) = self.owed(name, token) {
            let pause = match owed.state {
                State::Pending { pause, .. } => (pause * 2).min(Unresolved::LONGEST_PAUSE),
                _ => Unresolved::PAUSE,
            };
            let next = now + pause;
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
                if let State::Pending { next, .. } | State::Checked { next, .. } = owed.state {
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
        self.releases.is_empty() && self.leaving.is_empty()
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
            let now = self.start + after;
            self.all.executed(&self.name, &self.token, found, now);
        }

        fn failed(&mut self, after: Duration) {
            self.all.failed(&self.name, &self.token, self.start + after);
        }

        /// Whether it is due then, and how long until it is to be looked at.
        fn due(&mut self, after: Duration) -> (bool, Option<Duration>) {
            let (due, next) = self.all.due(self.start + after);
            let one = |(name, token, _): &(Name, Token, Lease)| {
                assert_eq!((name, token), (&self.name, &self.token));
            };
            due.iter().for_each(one);
            assert!(due.len() < 2);
            (!due.is_empty(), next.map(|next| next.since(self.start)))
        }
    }

    #[test]
    fn a_release_that_is_owed_is_due_at_once_and_belongs_to_its_name() {
        let mut test = Test::owing(Attempt::Release);
        assert_eq!(test.due(Duration::ZERO), (true, Some(Duration::ZERO)));
        let all = test.all.of(&test.name);
        assert_eq!(all, (vec![(test.token.clone(), lease(60.0))], false));
        assert_eq!(test.all.of(&name("other")), (vec![], false));
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
        assert_eq!(test.all.settlements(), before + 1);
        assert_eq!(told(&mut test), Some(true));
        assert_eq!(test.all.of(&test.name), (vec![], false));
        assert_eq!(test.due(59 * SECOND), (false, None));
        assert_eq!(told(&mut test), Some(true));
        assert_eq!(test.due(60 * SECOND), (false, None));
        assert_eq!(told(&mut test), None);
        assert!(test.all.is_empty());
    }

    #[test]
    fn a_release_that_found_nothing_is_done_too() {
        let mut test = Test::owing(Attempt::Release);
        test.executed(false, Duration::ZERO);
        assert_eq!(test.due(Duration::ZERO), (false, None));
        let told = test.all.may_be_released(&test.name, &test.token);
        assert_eq!(told, Some(true));
    }

    #[test]
    fn an_acquire_that_held_is_released_once() {
        let mut test = Test::owing(Attempt::Acquire);
        assert_eq!(test.all.may_be_released(&test.name, &test.token), None);
        let before = test.all.settlements();
        test.executed(true, Duration::ZERO);
        assert!(test.all.settlements() > before);
        assert!(test.all.is_empty());
    }

    #[test]
    fn an_acquire_that_did_not_hold_may_come_late_and_is_looked_for_as_long_as_it_may() {
        let mut test = Test::owing(Attempt::Acquire);
        let before = test.all.settlements();
        test.executed(false, Duration::ZERO);
        assert_eq!(test.all.settlements(), before + 1);
        for millis in [100, 300, 700, 1500, 3100, 5000] {
            let next = Duration::from_millis(millis);
            // It still counts: a newcomer of this process looks for it too.
            assert_eq!(test.all.of(&test.name).0.len(), 1);
            // Somebody else has looked, but too early.
            test.executed(false, next - MILLISECOND);
            assert_eq!(test.due(next - MILLISECOND), (false, Some(next)));
            assert_eq!(test.due(next), (true, Some(next)));
            test.executed(false, next);
        }
        assert_eq!(VALID, Duration::from_secs(5));
        assert!(test.all.is_empty());
        // Who finds it, finds it at any time.
        let mut test = Test::owing(Attempt::Acquire);
        test.executed(false, Duration::ZERO);
        test.executed(true, MILLISECOND);
        assert!(test.all.is_empty());
    }

    #[test]
    fn a_look_that_fails_is_made_again() {
        let mut test = Test::owing(Attempt::Acquire);
        test.executed(false, Duration::ZERO);
        test.failed(VALID);
        let next = VALID + Unresolved::PAUSE;
        assert_eq!(test.due(VALID), (false, Some(next)));
        assert_eq!(test.due(next), (true, Some(next)));
    }

    #[test]
    fn what_nobody_owes_any_more_is_an_end_too() {
        let mut test = Test::new();
        let before = test.all.settlements();
        test.executed(true, Duration::ZERO);
        assert_eq!(test.all.settlements(), before + 1);
        test.failed(Duration::ZERO);
        assert!(test.all.is_empty());
    }

    #[test]
    fn a_statement_under_way_is_waited_for_and_not_released() {
        let mut test = Test::new();
        let minute = lease(60.0);
        let (begun, token) = (Attempt::Release, test.token.clone());
        test.all
            .begin(&test.name, &token, begun, minute, test.start);
        assert_eq!(test.all.of(&test.name), (vec![], true));
        assert_eq!(test.all.may_be_released(&test.name, &token), None);
        // However long it takes.
        assert_eq!(test.due(3600 * SECOND), (false, None));
        assert_eq!(test.all.of(&test.name), (vec![], true));
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
        assert_eq!(test.all.of(&test.name).0.len(), 1);
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
        assert_eq!(test.all.of(&test.name), (vec![], true));
        assert_eq!(test.all.of(&name("other")), (vec![], false));
        assert!(!test.all.is_empty());
        assert_eq!(test.all.settlements(), before);
        test.all.leaving(&test.name, false);
        assert_eq!(test.all.of(&test.name), (vec![], false));
        assert!(test.all.is_empty());
        assert_eq!(test.all.settlements(), before + 1);
    }
}
