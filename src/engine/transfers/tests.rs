use super::*;
use crate::engine::Name;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn start() -> (Transfers, Key, Moment) {
    (Transfers::default(), Key::random(), Moment::now())
}

/// Begins a transfer that nothing prevents.
fn begin(all: &mut Transfers, old: &Key, now: Moment) -> Claim {
    match all.begin(old, None, Lease::SECOND, now) {
        Begin::Now(claim) => claim,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_token_that_a_hold_may_have_is_known_for_a_lease() {
    let (mut all, old, now) = start();
    let later = now + (SECOND - Duration::from_millis(1));
    let claim = begin(&mut all, &old, now);
    let new = claim.new.clone();
    // While its statement is under way there is no limit.
    assert_eq!(all.meant(&old, now + SECOND), Some(new.clone()));
    all.failed(&claim);
    assert_eq!(all.meant(&old.with(&new), now), None);
    assert_eq!(all.meant(&old, later), Some(new.clone()));
    assert_eq!(all.meant(&old, now + SECOND), None);
    assert_eq!(all.begin_release(&old, now + SECOND), None);
    all.end_release(&old, Outcome::Failed, now);
    all.stands(&old, &new, Lease::SECOND, later);
    assert_eq!(all.meant(&old, now + SECOND), Some(new.clone()));
    all.stands(&old, &Token::random(), Lease::SECOND, later + SECOND);
    assert_eq!(all.meant(&old, later + SECOND), None);
    // Others are forgotten when they no longer matter.
    all.begin(&Key::random(), None, Lease::SECOND, later + SECOND);
    assert_eq!(all.by_old.len(), 1);
}

#[test]
fn of_two_transfers_of_a_token_one_is_under_way() {
    let (mut all, old, now) = start();
    let first = begin(&mut all, &old, now);
    assert_eq!(
        all.begin(&old, None, Lease::SECOND, now + SECOND),
        Begin::Later
    );
    // A failed transfer is repeated with the same token, as the database may have it.
    all.failed(&first);
    let claim = begin(&mut all, &old, now);
    assert_eq!(claim.new, first.new);
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::Later);
    // The outcome of the first attempt no longer matters.
    all.failed(&first);
    all.made(&first);
    assert!(!all.read(&first));
    // The first one may yet be given up.
    all.made(&claim);
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::Later);
    assert_eq!(all.replaced(&old.with(&claim.new)), Some(&old));
    assert_eq!(all.replaced(&old), None);
    assert_eq!(all.meant(&old, now), Some(claim.new.clone()));
    // A cancelled attempt stays failed, whatever the database says afterwards.
    all.failed(&claim);
    all.made(&claim);
    let claim = begin(&mut all, &old, now);
    assert_eq!(claim.new, first.new);
    // Once read, nothing revives it.
    assert!(all.read(&claim));
    all.stands(&old, &claim.new, Lease::SECOND, now);
    all.made(&claim);
    assert_eq!(all.meant(&old, now), None);
    assert_ne!(begin(&mut all, &old, now).new, claim.new);
}

#[test]
fn a_release_or_a_transfer_has_the_hold() {
    for progress in [Progress::UnderWay, Progress::Unread, Progress::Failed] {
        let (mut all, old, now) = start();
        let claim = begin(&mut all, &old, now);
        let new = claim.new.clone();
        match progress {
            Progress::Unread => all.made(&claim),
            Progress::Failed => all.failed(&claim),
            _ => {}
        }
        // During two releases nobody is given the token, and transfers wait.
        for _ in 0..2 {
            assert_eq!(all.begin_release(&old, now), Some(new.clone()));
        }
        all.made(&claim);
        assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::Later);
        assert!(!all.read(&claim));
        all.end_release(&old, Outcome::Failed, now);
        assert!(!all.read(&claim));
        // Both have failed: as before.
        all.end_release(&old, Outcome::Failed, now);
        assert_eq!(all.begin_release(&old, now), Some(new.clone()));
        all.end_release(&old, Outcome::Failed, now);
        all.failed(&claim);
        let claim = begin(&mut all, &old, now);
        assert_eq!(claim.new, new);
        all.made(&claim);
        // One has succeeded, whatever the others report, and nothing revives the hold.
        for _ in 0..2 {
            assert_eq!(all.begin_release(&old, now), Some(new.clone()));
        }
        all.end_release(&old, Outcome::Done, now);
        all.end_release(&old, Outcome::Failed, now);
        assert!(!all.read(&claim));
        all.over(&old, &new);
        assert_eq!(all.begin_release(&old, now), Some(new.clone()));
        all.end_release(&old, Outcome::Failed, now);
        assert!(!all.read(&claim));
        assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::TooLate);
        // The caller has been told, and nothing needs to be remembered.
        all.failed(&claim);
        assert!(all.by_old.is_empty() && all.releases.is_empty());
    }
}

#[test]
fn the_slower_of_two_releases_finds_nothing_before_the_faster_one_ends() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    all.made(&claim);
    all.begin_release(&old, now);
    all.begin_release(&old, now);
    all.over(&old, &claim.new);
    all.end_release(&old, Outcome::Failed, now);
    all.end_release(&old, Outcome::Done, now);
    assert!(!all.read(&claim));
}

#[test]
fn a_release_after_a_failed_transfer_leaves_nothing() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    all.failed(&claim);
    assert_eq!(all.begin_release(&old, now), Some(claim.new));
    all.end_release(&old, Outcome::Done, now);
    assert!(all.by_old.is_empty() && all.releases.is_empty());
}

#[test]
fn a_transfer_that_may_have_been_made_is_not_forgotten_when_its_repetition_is_refused() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    assert!(all.refused(&claim), "nothing was sent before");
    assert_eq!(all.meant(&old, now), None);
    // An earlier attempt may have succeeded, of this caller or of one that is still in flight.
    let first = begin(&mut all, &old, now);
    all.failed(&first);
    let claim = begin(&mut all, &old, now);
    assert!(!all.refused(&first));
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::Later);
    assert!(!all.refused(&claim));
    let claim = begin(&mut all, &old, now);
    assert_eq!(claim.new, first.new);
    all.over(&old, &claim.new);
    // Another caller may have completed it.
    let claim = begin(&mut all, &old, now);
    assert_eq!(all.complete(&old, now), Some(claim.new.clone()));
    assert!(!all.refused(&claim));
    assert_eq!(all.meant(&old, now), Some(claim.new.clone()));
    all.over(&old, &claim.new);
    assert_eq!(all.complete(&old, now), None);
    // The hold knows of an attempt that has been forgotten here.
    let new = Token::random();
    let Begin::Now(claim) = all.begin(&old, Some(new.clone()), Lease::SECOND, now) else {
        panic!();
    };
    assert_eq!(claim.new, new);
    assert!(!all.refused(&claim));
    assert_eq!(all.meant(&old, now), Some(new));
}

#[test]
fn the_same_token_of_another_lock_is_another_transfer() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    all.failed(&claim);
    let wrong = Key {
        name: Name::new("another").unwrap(),
        ..old.clone()
    };
    let other = begin(&mut all, &wrong, now);
    assert_ne!(other.new, claim.new);
    assert_eq!(all.begin_release(&old, now), Some(claim.new.clone()));
    all.over(&wrong, &other.new);
    assert_eq!(all.meant(&old, now), Some(claim.new));
}

#[test]
fn a_transfer_waits_for_a_release_that_began_before() {
    let (mut all, old, now) = start();
    assert_eq!(all.begin_release(&old, now), None);
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::Later);
    all.end_release(&old, Outcome::Done, now);
    begin(&mut all, &old, now);
}

#[test]
fn what_a_release_finds_gone_is_forgotten_afterwards() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    for _ in 0..2 {
        all.begin_release(&old, now);
    }
    all.over(&old, &claim.new);
    all.made(&claim);
    all.failed(&claim);
    all.end_release(&old, Outcome::Failed, now);
    assert_eq!(all.by_old[&old].progress, Progress::Over);
    assert!(!all.read(&claim));
    all.end_release(&old, Outcome::Failed, now);
    assert_eq!(all.meant(&old, now), None);
    assert_ne!(begin(&mut all, &old, now).new, claim.new);
}

#[test]
fn after_it_was_read_a_release_finds_nothing() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    all.made(&claim);
    assert!(all.read(&claim));
    assert_eq!(all.begin_release(&old, now), None);
    all.end_release(&old, Outcome::Done, now);
    assert_eq!(all.meant(&old, now), None);
    assert!(all.releases.is_empty());
}

#[test]
fn while_a_release_goes_on_in_the_background_a_transfer_comes_too_late() {
    let (mut all, old, now) = start();
    let goes_on = Outcome::GoesOn(Lease::SECOND);
    all.begin_release(&old, now);
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::Later);
    all.end_release(&old, goes_on, now);
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::TooLate);
    assert_eq!(all.begin_release(&old, now), None);
    all.end_release(&old, Outcome::Failed, now);
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::TooLate);
    begin(&mut all, &old, now + SECOND);
    all.settled(&old);
    assert!(all.going_on.is_empty());
}

#[test]
fn releases_whose_hold_is_over_are_forgotten_before_there_are_many() {
    let (mut all, _, now) = start();
    let mut goes_on = |times: u32, now: Moment| {
        for _ in 0..times {
            let key = Key::random();
            all.begin_release(&key, now);
            all.end_release(&key, Outcome::GoesOn(Lease::SECOND), now);
        }
        all.going_on.len()
    };
    assert_eq!(goes_on(1500, now), 1500);
    // All are over, but looking through them at each release would take too long.
    let later = now + SECOND;
    assert_eq!(goes_on(500, later), 2000);
    assert_eq!(goes_on(1, later), 501);
}

#[test]
fn a_transfer_that_was_made_and_not_read_matters_for_a_lease() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    all.made(&claim);
    assert_eq!(all.meant(&old, now), Some(claim.new));
    assert_eq!(all.meant(&old, now + SECOND), None);
}

#[test]
fn what_is_over_is_remembered_for_the_releases_under_way() {
    let (mut all, old, now) = start();
    let claim = begin(&mut all, &old, now);
    all.begin_release(&old, now);
    all.over(&old, &claim.new);
    all.end_release(&old, Outcome::Done, now);
    assert_eq!(all.begin(&old, None, Lease::SECOND, now), Begin::TooLate);
    all.failed(&claim);
    begin(&mut all, &old, now);
}
