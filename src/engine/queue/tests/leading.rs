//! What the waiter that leads does, and when.

use super::*;

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
