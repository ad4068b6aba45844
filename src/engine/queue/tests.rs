//! The line under random interleavings, and step by step.

mod leading;
mod leaving;

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
