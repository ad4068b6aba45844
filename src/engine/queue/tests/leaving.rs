//! Who follows when a waiter gets the lock, gives up or does not take its turn.

use super::*;

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
