//! The line under random interleavings, and step by step.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Join,
    Plan { of: usize },
    Land { how: u8 },
    GiveUp { of: usize },
    Call,
    Listen { on: bool },
    PassBy,
    Pass { millis: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Join),
        6 => (0..6usize).prop_map(|of| Step::Plan { of }),
        6 => (0..6u8).prop_map(|how| Step::Land { how }),
        1 => (0..6usize).prop_map(|of| Step::GiveUp { of }),
        2 => Just(Step::Call),
        1 => any::<bool>().prop_map(|on| Step::Listen { on }),
        1 => Just(Step::PassBy),
        2 => (0..900u64).prop_map(|millis| Step::Pass { millis }),
    ];
    prop::collection::vec(step, 1..150)
}

const LIMIT: Duration = Duration::from_millis(550);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// However its callers interleave: one statement at a time, the first waiter able to run acts,
    /// nobody is forgotten, and the ticket leaves with the last one.
    #[test]
    fn one_acts_and_nobody_is_forgotten(steps in steps()) {
        let mut now = Instant::now();
        let mut line: Line<u64> = Line::new(now);
        let (mut next, mut tickets) = (0u64, 0i64);
        let mut waiting: Vec<u64> = Vec::new();
        let mut flying: Option<(u64, bool)> = None;
        let mut listener = Some(7);
        for step in steps {
            match step {
                Step::Join => {
                    next += 1;
                    line.join(next, next, now);
                    waiting.push(next);
                }
                Step::Plan { of } => {
                    let Some(number) = waiting.get(of % waiting.len().max(1)).copied() else {
                        continue;
                    };
                    let plan = line.plan(number, now, listener, || {
                        tickets += 1;
                        tickets
                    });
                    if let Plan::Sleep(_) = plan {
                        continue;
                    }
                    prop_assert_eq!(flying, None, "two statements at once");
                    // Those before it are stalled: they were woken and did not come.
                    for before in waiting.iter().take_while(|other| **other < number) {
                        prop_assert!(line.waiters[before].stalled);
                    }
                    if let Plan::Ask(Ask { ticket, previous, known, more, .. }) = &plan {
                        prop_assert!(*ticket > 0 && ticket != previous);
                        prop_assert!(!known.contains(ticket));
                        prop_assert_eq!(*more, waiting.len() > 1);
                        prop_assert_eq!(Some(ticket >> TICKET_BITS), listener);
                    }
                    flying = Some((number, matches!(plan, Plan::Ask(_))));
                }
                Step::Land { how } => {
                    let Some((number, asked)) = flying.take() else { continue };
                    let seen = |queued, busy| Seen {
                        queued,
                        busy,
                        due: now + Duration::from_millis(300),
                        tickets: if queued { vec![line.ticket(), 3] } else { vec![] },
                    };
                    let again = Duration::from_millis(2);
                    match how {
                        0 if asked => line.found(number, seen(true, false), now, again),
                        1 if asked => line.found(number, seen(false, false), now, again),
                        2 if asked => line.found(number, seen(true, true), now, again),
                        0..=3 => line.refused(number, now + Duration::from_millis(100)),
                        4 => line.failed(number),
                        _ => {
                            let more = waiting.len() > 1;
                            let lease = Duration::from_secs(1);
                            let ticket = line.ticket();
                            let queued = asked.then_some(more);
                            let outcome = Outcome::Acquired { lease, queued };
                            let left = line.left(number, outcome, now);
                            waiting.retain(|other| *other != number);
                            let expected = waiting.is_empty() && !asked && ticket != 0;
                            prop_assert_eq!(left, expected.then_some(ticket));
                        }
                    }
                }
                Step::GiveUp { of } => {
                    let Some(number) = waiting.get(of % waiting.len().max(1)).copied() else {
                        continue;
                    };
                    if flying.is_some_and(|(other, _)| other == number) {
                        continue;
                    }
                    let ticket = line.ticket();
                    let left = line.left(number, Outcome::GaveUp, now);
                    waiting.retain(|other| *other != number);
                    let expected = (waiting.is_empty() && ticket != 0).then_some(ticket);
                    prop_assert_eq!(left, expected);
                }
                Step::Call => drop(line.call(now)),
                Step::Listen { on } => {
                    listener = on.then_some(7);
                    line.poll_at(now);
                }
                Step::PassBy => drop(line.pass_by(now, LIMIT)),
                Step::Pass { millis } => now += Duration::from_millis(millis),
            }
            prop_assert_eq!(line.len(), waiting.len());
            if waiting.is_empty() {
                // The service drops an empty line.
                line = Line::new(now);
                prop_assert_eq!(flying, None);
            }
        }
        // From here on all are able to run: they get the lock one after the other, and the leader
        // is woken or knows when to come.
        listener = Some(7);
        if let Some((number, _)) = flying {
            line.failed(number);
        }
        while !waiting.is_empty() {
            let mut asked = None;
            for round in 0..4 * waiting.len() {
                let number = waiting[round % waiting.len()];
                now += Duration::from_secs(2);
                line.call(now);
                if !matches!(line.plan(number, now, listener, || 1), Plan::Sleep(_)) {
                    asked = Some(number);
                    break;
                }
            }
            let number = asked.expect("somebody acts");
            let lease = Duration::from_secs(1);
            let queued = Some(waiting.len() > 1);
            prop_assert_eq!(line.left(number, Outcome::Acquired { lease, queued }, now), None);
            waiting.retain(|other| *other != number);
        }
    }
}

#[test]
fn a_leader_that_sleeps_and_does_not_come_when_called_is_passed_by() {
    let now = Instant::now();
    let mut line: Line<&str> = Line::new(now);
    line.join(1, "first", now);
    line.join(2, "second", now);
    assert_eq!(line.plan(1, now, Some(7), || 1), Plan::Try);
    line.refused(1, now);
    assert!(matches!(line.plan(1, now, Some(7), || 1), Plan::Ask(_)));
    let seen = Seen {
        queued: true,
        busy: false,
        due: now + Duration::from_secs(60),
        tickets: vec![line.ticket()],
    };
    line.found(1, seen, now, Duration::ZERO);
    assert!(matches!(
        line.plan(1, now, Some(7), || 1),
        Plan::Sleep(Some(_))
    ));
    assert!(line.call(now));
    assert_eq!(line.wake(now), Some("first"));
    assert_eq!(line.pass_by(now + LIMIT * 2, LIMIT), Some("second"));
}

#[test]
fn false_calls_are_heeded_less_and_less_and_never_forgotten() {
    let start = Instant::now();
    let mut line: Line<&str> = Line::new(start);
    line.join(1, "first", start);
    assert_eq!(line.plan(1, start, Some(7), || 1), Plan::Try);
    line.refused(1, start);
    let held = |line: &Line<&str>, now| Seen {
        queued: true,
        busy: false,
        due: now + Duration::from_secs(60),
        tickets: vec![line.ticket()],
    };
    assert!(matches!(line.plan(1, start, Some(7), || 1), Plan::Ask(_)));
    let seen = held(&line, start);
    line.found(1, seen, start, Duration::ZERO);
    let mut heeded = Vec::new();
    let mut woken = 0;
    for millis in 0..10_000 {
        let now = start + Duration::from_millis(millis);
        woken += u32::from(line.call(now));
        match line.plan(1, now, Some(7), || 1) {
            Plan::Ask(ask) => {
                assert!(ask.called);
                heeded.push(millis);
                let seen = held(&line, now);
                line.found(1, seen, now, Duration::ZERO);
            }
            plan => {
                let Plan::Sleep(Some(until)) = plan else {
                    panic!("{plan:?}");
                };
                // It is delayed no longer than this, whether others come or not.
                assert!(until <= now + Duration::from_millis(500));
            }
        }
    }
    assert!(heeded.len() < 35, "{heeded:?}");
    assert!(heeded[3] <= 3, "a few may be mistakes: {heeded:?}");
    assert!(woken < 2 * 35, "{woken}");
    let lease = Duration::from_secs(1);
    let (queued, now) = (Some(false), start + Duration::from_secs(10));
    line.left(1, Outcome::Acquired { lease, queued }, now);
    assert!(line.is_called(now) || line.call(now), "all is forgiven");
}

#[test]
fn a_leader_that_does_not_come_is_passed_by() {
    let now = Instant::now();
    let mut line: Line<&str> = Line::new(now);
    line.join(1, "first", now);
    line.join(2, "second", now);
    assert_eq!(line.wake(now), Some("first"));
    assert_eq!(line.pass_by(now + LIMIT / 2, LIMIT), None);
    let later = now + LIMIT * 2;
    assert_eq!(line.pass_by(later, LIMIT), Some("second"));
    assert_eq!(line.plan(2, later, None, || 1), Plan::Try);
    line.refused(2, later);
    // It finally comes, and is the first again.
    assert_ne!(line.plan(1, later, None, || 1), Plan::Sleep(None));
    assert_eq!(line.plan(2, later, None, || 1), Plan::Sleep(None));
}

/// A line, a clock, and a listener with the number 7.
struct Test {
    line: Line<u64>,
    start: Instant,
    tickets: i64,
}

const SEVEN: Option<i64> = Some(7);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn ticket(listener: i64, number: i64) -> i64 {
    listener << TICKET_BITS | number
}

impl Test {
    /// This many waiters, numbered from 1 in order of arrival.
    fn new(waiters: u64) -> Test {
        let start = Instant::now();
        let mut test = Test {
            line: Line::new(start),
            start,
            tickets: 0,
        };
        for number in 1..=waiters {
            test.line.join(number, number, start);
        }
        test
    }

    /// The same, and the first attempt was refused, so the first waiter has to enter the queue.
    fn refused(waiters: u64) -> Test {
        let mut test = Test::new(waiters);
        assert_eq!(test.plan(1, 0), Plan::Try);
        test.line.refused(1, test.start);
        test
    }

    /// The same, and the process is queued behind ticket 3; due after a second.
    fn queued(waiters: u64) -> Test {
        let mut test = Test::refused(waiters);
        test.ask(1, 0);
        test.found(1, true, false, 0);
        test
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + ms(millis)
    }

    fn plan_with(&mut self, number: u64, millis: u64, listener: Option<i64>) -> Plan {
        let now = self.at(millis);
        let tickets = &mut self.tickets;
        self.line.plan(number, now, listener, || {
            *tickets += 1;
            *tickets
        })
    }

    fn plan(&mut self, number: u64, millis: u64) -> Plan {
        self.plan_with(number, millis, SEVEN)
    }

    fn ask(&mut self, number: u64, millis: u64) -> Ask {
        match self.plan(number, millis) {
            Plan::Ask(ask) => ask,
            plan => panic!("{plan:?}"),
        }
    }

    /// It sleeps until `until`.
    fn sleeps(&mut self, number: u64, millis: u64, until: u64) {
        let until = self.at(until);
        assert_eq!(self.plan(number, millis), Plan::Sleep(Some(until)));
    }

    /// The database has ticket 3 of another process, and ours; look again a second later.
    fn found(&mut self, number: u64, queued: bool, busy: bool, millis: u64) {
        let now = self.at(millis);
        let tickets = if queued {
            vec![3, self.line.ticket()]
        } else {
            vec![3]
        };
        let seen = Seen {
            queued,
            busy,
            due: now + ms(1000),
            tickets,
        };
        self.line.found(number, seen, now, ms(10));
    }

    fn acquired(&mut self, number: u64, queued: Option<bool>, millis: u64) -> Option<i64> {
        let outcome = Outcome::Acquired {
            lease: ms(5000),
            queued,
        };
        self.line.left(number, outcome, self.at(millis))
    }

    fn gives_up(&mut self, number: u64, millis: u64) -> Option<i64> {
        self.line.left(number, Outcome::GaveUp, self.at(millis))
    }

    fn call(&mut self, millis: u64) -> bool {
        self.line.call(self.at(millis))
    }
}

#[test]
fn a_line_begins_empty() {
    let mut test = Test::new(0);
    assert!(test.line.is_empty());
    assert_eq!(test.line.ticket(), 0);
    assert_eq!(test.line.busy(), 0);
    assert!(!test.line.is_queued() && !test.line.was_refused());
    assert_eq!(test.line.wake(test.start), None);
    assert_eq!(test.line.pass_by(test.at(9999), LIMIT), None);
    let test = Test::new(2);
    assert!(!test.line.is_empty() && test.line.len() == 2);
}

#[test]
fn the_first_tries_enters_and_sleeps_until_it_is_due() {
    let mut test = Test::new(1);
    assert_eq!(test.plan(1, 0), Plan::Try);
    test.line.refused(1, test.at(100));
    assert!(test.line.was_refused());
    // A refusal does not keep it from entering the queue at once.
    let ask = test.ask(1, 0);
    let expected = Ask {
        ticket: ticket(7, 1),
        previous: 0,
        known: vec![],
        called: false,
        more: false,
    };
    assert_eq!(ask, expected);
    assert!(!test.line.is_queued());
    test.found(1, true, false, 0);
    assert!(test.line.is_queued() && !test.line.was_refused());
    assert_eq!(test.line.ticket(), ticket(7, 1));
    test.sleeps(1, 0, 1000);
    test.sleeps(1, 999, 1000);
    let ask = test.ask(1, 1000);
    assert_eq!((ask.ticket, ask.known), (ticket(7, 1), vec![3]));
    assert!(!ask.called, "the time has come, nobody has called");
}

#[test]
fn only_the_leader_acts_and_only_once() {
    let mut test = Test::new(2);
    assert_eq!(test.plan(2, 0), Plan::Sleep(None));
    assert_eq!(test.plan(3, 0), Plan::Sleep(None), "who is not there");
    assert_eq!(test.plan(1, 0), Plan::Try);
    assert_eq!(
        test.plan(1, 0),
        Plan::Sleep(None),
        "its statement is under way"
    );
    assert!(test.line.leads(1) && !test.line.leads(2) && !test.line.leads(3));
    // Another waiter's end does not change that.
    test.line.failed(2);
    assert_eq!(test.plan(1, 0), Plan::Sleep(None));
    test.line.failed(1);
    assert!(test.ask(1, 0).more);
}

#[test]
fn a_row_that_is_locked_delays_entering_the_queue() {
    let mut test = Test::refused(1);
    let first = test.ask(1, 0);
    test.found(1, false, false, 0);
    assert!(test.line.was_refused() && !test.line.is_queued());
    test.sleeps(1, 999, 1000);
    let again = test.ask(1, 1000);
    assert_eq!(again.ticket, first.ticket, "the ticket stays");
    test.found(1, true, false, 1000);
    assert!(!test.line.was_refused());
    // The count does not matter when it has to enter again.
    test.found(1, false, false, 1000);
    test.sleeps(1, 1999, 2000);
}

#[test]
fn a_busy_row_is_asked_again_soon() {
    let mut test = Test::queued(1);
    test.ask(1, 1000);
    test.found(1, true, true, 1000);
    assert_eq!(test.line.busy(), 1);
    test.sleeps(1, 1009, 1010);
    test.ask(1, 1010);
    test.found(1, true, true, 1010);
    assert_eq!(test.line.busy(), 2);
    // The lock may have become free: at once.
    test.line.look_at_once(test.at(1011));
    test.ask(1, 1011);
    test.found(1, true, false, 1011);
    assert_eq!(test.line.busy(), 0);
    test.sleeps(1, 1012, 2011);
    for millis in 2011..2100 {
        test.line.look_at_once(test.at(millis));
        test.ask(1, millis);
        test.found(1, true, true, millis);
    }
    assert_eq!(test.line.busy(), 50);
    assert!(test.acquired(1, Some(false), 2100).is_none());
    assert_eq!(test.line.busy(), 0);
}

#[test]
fn to_look_at_once_is_for_this_moment() {
    let mut test = Test::queued(1);
    test.line.look_at_once(test.at(500));
    test.sleeps(1, 499, 500);
    test.ask(1, 500);
}

#[test]
fn a_call_is_heeded_at_once_and_once() {
    let mut test = Test::queued(1);
    assert!(test.call(10));
    assert!(
        test.call(10),
        "heeded at once, so each may be the one that is needed"
    );
    assert!(test.ask(1, 10).called);
    test.found(1, true, false, 10);
    test.sleeps(1, 10, 1010);
    // A call while the statement is in flight is a new call.
    test.line.look_at_once(test.at(20));
    assert!(!test.ask(1, 20).called);
    test.call(20);
    test.found(1, true, false, 20);
    assert!(test.ask(1, 20).called);
}

#[test]
fn a_call_for_who_is_not_in_the_queue_is_none() {
    let mut test = Test::refused(1);
    test.call(0);
    assert!(!test.ask(1, 0).called);
    test.found(1, true, false, 0);
    test.sleeps(1, 0, 1000);
}

#[test]
fn calls_that_lead_to_nothing_are_put_off() {
    let pauses = [0, 0, 0, 0, 10, 20, 40, 80, 160, 320, 500, 500];
    for (heeded, pause) in (0..).zip(pauses) {
        assert_eq!(Line::<u64>::deafness(heeded), ms(pause), "{heeded}");
    }
    assert_eq!(Line::<u64>::deafness(u32::MAX), ms(500));
    let mut test = Test::queued(1);
    for _ in 0..4 {
        test.call(0);
        assert!(test.ask(1, 0).called);
        test.found(1, true, false, 0);
    }
    assert!(
        test.call(1),
        "the first of several wakes the leader, to sleep less"
    );
    assert!(!test.call(2));
    test.sleeps(1, 2, 10);
    assert!(test.ask(1, 10).called);
    test.found(1, true, false, 10);
    assert!(test.call(29));
    assert!(test.call(30), "from then on it is heeded");
    // The same without notifications.
    let until = test.at(30);
    assert_eq!(test.plan_with(1, 29, None), Plan::Sleep(Some(until)));
    assert_eq!(test.plan_with(1, 30, None), Plan::Try);
}

#[test]
fn a_hold_ends_what_was_put_off() {
    let mut test = Test::queued(2);
    for _ in 0..6 {
        test.line.look_at_once(test.at(0));
        test.call(0);
        test.line.heed = test.start;
        assert!(test.ask(1, 0).called);
        test.found(1, true, false, 0);
    }
    test.call(0);
    test.acquired(1, Some(true), 5);
    // Nobody calls, as that call has been answered.
    test.sleeps(2, 5, 5007);
    assert!(test.call(5));
    assert!(test.ask(2, 5).called);
    test.found(2, true, false, 5);
    assert!(test.call(5));
    assert!(test.ask(2, 5).called, "four are heeded at once again");
}

#[test]
fn without_notifications_it_tries_when_it_is_due() {
    let mut test = Test::new(1);
    assert_eq!(test.plan_with(1, 0, None), Plan::Try);
    test.line.refused(1, test.at(100));
    let until = test.at(100);
    assert_eq!(test.plan_with(1, 99, None), Plan::Sleep(Some(until)));
    assert_eq!(test.plan_with(1, 100, None), Plan::Try);
    test.line.refused(1, test.at(200));
    assert!(test.call(150), "it may have been called before they ceased");
    assert_eq!(test.plan_with(1, 150, None), Plan::Try);
    test.line.refused(1, test.at(300));
    let until = test.at(300);
    assert_eq!(test.plan_with(1, 200, None), Plan::Sleep(Some(until)));
    // Notifications stop: look sooner, never later.
    test.line.poll_at(test.at(250));
    test.line.poll_at(test.at(260));
    assert_eq!(test.plan_with(1, 250, None), Plan::Try);
}

#[test]
fn who_does_not_wait_comes_after_those_who_do_unless_they_are_late() {
    let mut test = Test::refused(1);
    let due = 400;
    test.line.refused(1, test.at(due));
    let first = |test: &Test, millis| test.line.comes_first(test.at(millis), ms(100));
    assert!(first(&test, 0));
    assert!(first(&test, due + 99));
    assert!(!first(&test, due + 100));
    assert_eq!(test.plan_with(1, due + 100, None), Plan::Try);
    assert!(first(&test, due + 100), "it asks at this moment");
    test.gives_up(1, due + 100);
    assert!(!first(&test, due + 100));
}

#[test]
fn another_listener_means_another_ticket() {
    let mut test = Test::queued(1);
    let (first, second) = (ticket(7, 1), ticket(8, 2));
    let Plan::Ask(ask) = test.plan_with(1, 0, Some(8)) else {
        panic!("it is not in the queue as that")
    };
    assert_eq!((ask.ticket, ask.previous), (second, first));
    assert_eq!(ask.known, [3], "its own tickets are not others'");
    assert!(!ask.called && !test.line.is_queued());
    // The statement failed: repeat it.
    test.line.failed(1);
    let Plan::Ask(ask) = test.plan_with(1, 0, Some(8)) else {
        panic!("it is not in the queue yet")
    };
    assert_eq!((ask.ticket, ask.previous), (second, first));
    test.found(1, true, false, 0);
    let until = test.at(1000);
    assert_eq!(test.plan_with(1, 0, Some(8)), Plan::Sleep(Some(until)));
}

#[test]
fn the_next_of_the_process_comes_to_the_queues_end() {
    let mut test = Test::queued(2);
    test.call(0);
    let ask = test.ask(1, 0);
    assert!(ask.called && ask.more);
    assert_eq!(test.acquired(1, Some(true), 100), None);
    assert!(test.line.is_queued());
    // Unless called, it need not look before the lease ends.
    test.sleeps(2, 100, 5102);
    test.call(200);
    let ask = test.ask(2, 200);
    assert_eq!((ask.ticket, ask.previous), (ticket(7, 1), 0));
    assert_eq!((ask.known, ask.more), (vec![3], false));
    assert_eq!(test.acquired(2, Some(false), 300), None);
    assert_eq!(test.line.ticket(), 0);
}

#[test]
fn who_was_taken_out_of_the_queue_enters_it_anew() {
    let mut test = Test::queued(2);
    test.ask(1, 1000);
    assert_eq!(test.acquired(1, Some(false), 1000), None);
    assert!(!test.line.is_queued());
    assert_eq!(test.line.ticket(), 0);
    let ask = test.ask(2, 1000);
    assert_eq!((ask.ticket, ask.previous), (ticket(7, 2), 0));
}

#[test]
fn what_was_acquired_without_the_queue_leaves_the_ticket_where_it_was() {
    let mut test = Test::queued(2);
    test.line.seen = Some((Some(1), test.start));
    assert_eq!(test.plan_with(1, 1000, None), Plan::Try);
    assert_eq!(test.acquired(1, None, 1000), None);
    assert_eq!(test.line.seen, None);
    // Nobody knows whether the ticket is still there: try first, then ask.
    assert!(!test.line.is_queued());
    assert_eq!(test.plan(2, 1000), Plan::Try);
    test.line.refused(2, test.at(2000));
    let ask = test.ask(2, 1000);
    assert_eq!((ask.ticket, ask.known), (ticket(7, 1), vec![3]));
    // The last one takes the ticket along.
    let ticket = test.line.ticket();
    assert_eq!(test.acquired(2, None, 1000), Some(ticket));
}

#[test]
fn what_was_refused_before_does_not_count_after_a_hold() {
    let mut test = Test::refused(2);
    test.ask(1, 0);
    test.found(1, false, false, 0);
    test.ask(1, 1000);
    test.acquired(1, Some(true), 1000);
    assert!(!test.line.was_refused());
}

#[test]
fn the_last_who_gives_up_has_the_ticket_leave() {
    let mut test = Test::queued(2);
    assert_eq!(test.gives_up(3, 0), None, "who is not there");
    assert_eq!(test.gives_up(1, 10), None);
    assert_eq!(test.line.len(), 1);
    // The second immediately does what the first may have been about to do.
    test.sleeps(2, 9, 10);
    test.ask(2, 10);
    assert_eq!(test.gives_up(2, 10), Some(ticket(7, 1)));
    // Without a ticket there is nothing to leave.
    assert_eq!(Test::new(1).gives_up(1, 0), None);
}

#[test]
fn a_follower_who_gives_up_changes_nothing_for_the_leader() {
    let mut test = Test::queued(2);
    test.gives_up(2, 10);
    test.sleeps(1, 10, 1000);
}

#[test]
fn what_somebody_found_who_has_left_says_nothing() {
    let mut test = Test::queued(2);
    test.ask(1, 1000);
    test.gives_up(1, 1000);
    let before = test.line.known.clone();
    let seen = Seen {
        queued: false,
        busy: true,
        due: test.at(9000),
        tickets: vec![],
    };
    test.line.found(1, seen, test.at(1000), ms(10));
    assert!(test.line.is_queued());
    assert_eq!((test.line.busy(), &test.line.known), (0, &before));
    test.ask(2, 1000);
}

#[test]
fn the_second_in_the_queue_looks_when_the_first_does_not_come() {
    let mut test = Test::queued(1);
    assert!(test.line.call_next(test.at(500)));
    assert!(!test.line.call_next(test.at(300)), "the first time counts");
    test.sleeps(1, 300, 500);
    assert!(!test.ask(1, 500).called);
    test.found(1, true, false, 500);
    test.sleeps(1, 500, 1500);
    // A call while the statement is in flight is not forgotten.
    test.ask(1, 1500);
    assert!(!test.line.call_next(test.at(1700)), "it is awake");
    test.found(1, true, false, 1500);
    test.sleeps(1, 1500, 1700);
    // A time later than its next look is no news.
    assert!(!test.line.call_next(test.at(9000)));
    test.sleeps(1, 1500, 1700);
}

#[test]
fn who_was_woken_sleeps_no_longer_once() {
    let mut test = Test::queued(2);
    assert!(!test.line.sleeps_no_longer(1));
    assert_eq!(test.line.wake(test.start), Some(1));
    assert!(!test.line.sleeps_no_longer(2));
    assert!(test.line.sleeps_no_longer(1));
    assert!(!test.line.sleeps_no_longer(1));
    assert!(test.line.sleeps_no_longer(3), "who has left");
    // Even while its statement is in flight: it then looks again.
    test.ask(1, 1000);
    assert_eq!(test.line.wake(test.start), Some(1));
    assert!(test.line.sleeps_no_longer(1));
}

#[test]
fn a_leader_has_until_the_limit_to_come() {
    let mut test = Test::queued(2);
    test.sleeps(1, 0, 1000);
    let limit = ms(100);
    assert_eq!(test.line.pass_by(test.at(1100), limit), None);
    // Woken earlier, it is expected earlier, and not later again.
    test.line.wake(test.at(500)).unwrap();
    test.line.wake(test.at(550)).unwrap();
    assert_eq!(test.line.pass_by(test.at(600), limit), None);
    assert_eq!(test.line.pass_by(test.at(601), limit), Some(2));
    assert!(test.line.sleeps_no_longer(2));
    // The second immediately does what the first did not.
    test.ask(2, 601);
    // Its statement is in flight: it is not passed over.
    assert_eq!(test.line.pass_by(test.at(9999), limit), None);
    test.found(2, true, false, 601);
    // The first has come: it leads again.
    assert!(test.line.leads(1) && !test.line.leads(2));
    test.sleeps(1, 602, 1601);
}

#[test]
fn a_statement_under_way_expects_nobody() {
    let mut test = Test::queued(2);
    test.ask(1, 1000);
    test.line.wake(test.at(1000)).unwrap();
    test.found(1, true, false, 1000);
    assert_eq!(test.line.pass_by(test.at(9999), ms(100)), None);
}

#[test]
fn where_all_are_stalled_the_first_who_comes_leads() {
    let mut test = Test::queued(2);
    let limit = ms(100);
    test.line.wake(test.at(0)).unwrap();
    assert_eq!(test.line.pass_by(test.at(101), limit), Some(2));
    // They are in their order again, each with the full limit.
    assert_eq!(test.line.pass_by(test.at(202), limit), Some(1));
    assert_eq!(test.line.pass_by(test.at(302), limit), None);
    assert_eq!(test.line.pass_by(test.at(303), limit), Some(2));
    assert!(test.line.leads(2));
}

#[test]
fn who_does_not_lead_is_not_expected() {
    let mut test = Test::new(2);
    let limit = ms(100);
    // The first was expected since it came; the second was not.
    assert_eq!(test.line.pass_by(test.at(101), limit), Some(2));
    assert!(test.line.leads(1));
    assert!(!test.line.leads(2));
    test.line.leads(1);
    assert_eq!(test.gives_up(1, 101), None);
    assert_eq!(test.line.pass_by(test.at(9999), limit), None);
}
