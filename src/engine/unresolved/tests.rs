//! Unresolved attempts, and how they are settled.

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

    /// An acquire or release that owes a release, with a lease of a minute.
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

    /// Whether the name has something due then, and how long until the next look.
    fn due(&mut self, after: Duration) -> (bool, Option<Duration>) {
        let due = self.all.due(self.start + after);
        assert!(due.names.iter().all(|name| *name == self.name));
        assert!(due.tickets.is_empty());
        assert_eq!(due.is_empty(), due.names.is_empty());
        let next = due.next.map(|next| next.since(self.start));
        (!due.names.is_empty(), next)
    }

    /// The tokens of the owed releases.
    fn owed(&self) -> Vec<Token> {
        let owed = self.all.of(&self.name).owed.into_iter();
        owed.map(|(token, _)| token).collect()
    }

    /// Whether there is nothing to settle for a name.
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
    // A new request starts afresh.
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
    // Whatever was found: that may be the repetition's hold, and the first may follow.
    for found in [false, true] {
        let mut test = Test::owing(Attempt::Acquire);
        assert_eq!(test.all.may_be_released(&test.name, &test.token), None);
        let before = test.all.settlements();
        test.executed(found, MILLISECOND);
        assert!(test.all.settlements() > before);
        assert_eq!(test.owed(), []);
        assert_eq!(test.all.of(&test.name).late, Some(lease(60.0)));
        let late = test.all.late.is_late(&test.name, &test.token, Some(1));
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
    test.all.late.add(&test.name, late, minute, test.start);
    assert_eq!(test.all.late.is_late(&test.name, &token, Some(7)), None);
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
        .late
        .add(&test.name, Late::Entering(3), second, test.start);
    // It does not concern a newcomer.
    assert!(test.settled(&test.name));
    let due = test.all.due(test.start + VALID);
    assert!(!due.is_empty() && due.names.is_empty());
    assert_eq!(due.tickets, [(test.name.clone(), 3, second)]);
    test.failed(VALID);
    assert!(test.all.due(test.start + VALID).is_empty());
    test.all.late.left(3, test.start + 2 * VALID);
    assert!(test.all.is_empty());
}

#[test]
fn who_leaves_looks_once_more_and_then_no_more() {
    let mut test = Test::owing(Attempt::Acquire);
    test.executed(false, Duration::ZERO);
    test.all.late.hurry(test.start);
    assert_eq!(test.due(Duration::ZERO), (true, Some(Duration::ZERO)));
    test.failed(Duration::ZERO);
    assert!(!test.all.is_empty());
    test.all.late.clear();
    assert!(test.all.is_empty());
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
    // Beginning an owed attempt changes nothing.
    test.all.begin(&test.name, &token, acquire, second, later);
    assert_eq!(test.owed().len(), 1);
    // It matters for one lease, which may begin when the statement finally executes.
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
