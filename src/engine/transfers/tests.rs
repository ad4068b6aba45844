use super::*;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn start() -> (Transfers, Token, Lease, Moment) {
    let lease = Lease::from_seconds(1.0).unwrap();
    (Transfers::default(), Token::random(), lease, Moment::now())
}

#[test]
fn the_token_that_a_hold_may_have_is_known_for_a_lease() {
    let (mut all, old, second, now) = start();
    let later = now + (SECOND - Duration::from_millis(1));
    let claim = all.begin(&old, second, now).unwrap();
    let new = claim.new.clone();
    // While its statement is under way there is no limit.
    assert_eq!(all.meant(&old, now + SECOND), Some(new.clone()));
    all.failed(&claim);
    assert_eq!(all.meant(&new, now), None);
    assert_eq!(all.meant(&old, later), Some(new.clone()));
    assert_eq!(all.meant(&old, now + SECOND), None);
    assert_eq!(all.begin_release(&old, now + SECOND).1, None);
    all.end_release(&old, false);
    all.stands(&old, &new, second, later);
    assert_eq!(all.meant(&old, now + SECOND), Some(new.clone()));
    all.stands(&old, &Token::random(), second, later + SECOND);
    assert_eq!(all.meant(&old, later + SECOND), None);
    // Others are forgotten when they no longer matter.
    all.begin(&Token::random(), second, later + SECOND);
    assert_eq!((all.by_old.len(), all.by_new.len()), (1, 1));
}

#[test]
fn of_two_transfers_of_a_token_one_is_under_way() {
    let (mut all, old, second, now) = start();
    assert!(!all.is_busy(&old));
    let first = all.begin(&old, second, now).unwrap();
    assert!(all.is_busy(&old));
    assert_eq!(all.begin(&old, second, now + SECOND), None);
    // A failed transfer is repeated with the same token, as the database may have it.
    all.failed(&first);
    assert!(!all.is_busy(&old));
    let claim = all.begin(&old, second, now).unwrap();
    assert_eq!(claim.new, first.new);
    assert_eq!(all.begin(&old, second, now), None);
    // The outcome of the first attempt no longer matters.
    all.failed(&first);
    assert!(all.is_busy(&old));
    all.made(&first);
    assert!(all.is_busy(&old));
    assert!(!all.read(&first));
    // A caller that comes before the first one knows gets its own token, in vain.
    all.made(&claim);
    let other = all.begin(&old, second, now).unwrap();
    assert_ne!(other.new, claim.new);
    all.over(&old, &other.new);
    all.failed(&other);
    assert_eq!(all.meant(&old, now), Some(claim.new.clone()));
    // A cancelled attempt stays failed, whatever the database says afterwards.
    all.failed(&claim);
    all.made(&claim);
    let claim = all.begin(&old, second, now).unwrap();
    assert_eq!(claim.new, first.new);
    // Once read, nothing revives it.
    assert!(all.read(&claim));
    all.stands(&old, &claim.new, second, now);
    all.made(&claim);
    assert_eq!(all.meant(&old, now), None);
    assert_ne!(all.begin(&old, second, now).unwrap().new, claim.new);
}

#[test]
fn a_release_or_a_transfer_has_the_hold() {
    for progress in [Progress::UnderWay, Progress::Unread, Progress::Failed] {
        let (mut all, old, second, now) = start();
        let claim = all.begin(&old, second, now).unwrap();
        let new = claim.new.clone();
        match progress {
            Progress::Unread => all.made(&claim),
            Progress::Failed => all.failed(&claim),
            _ => {}
        }
        // During two releases nobody is given the token, and transfers wait.
        for _ in 0..2 {
            assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
        }
        all.made(&claim);
        assert_eq!(all.begin(&old, second, now), None);
        assert!(all.is_busy(&old));
        assert!(!all.read(&claim));
        all.end_release(&old, false);
        assert!(all.is_busy(&old));
        assert!(!all.read(&claim));
        // Both have failed: as before.
        all.end_release(&old, false);
        assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
        all.end_release(&old, false);
        all.failed(&claim);
        let claim = all.begin(&old, second, now).unwrap();
        assert_eq!(claim.new, new);
        all.made(&claim);
        // One has succeeded, whatever the others report, and nothing revives the hold.
        for _ in 0..2 {
            assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
        }
        all.end_release(&old, true);
        all.end_release(&old, false);
        assert!(!all.read(&claim));
        all.over(&old, &new);
        assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
        all.end_release(&old, false);
        assert!(!all.is_busy(&old));
        assert!(!all.read(&claim));
        assert_ne!(all.begin(&old, second, now).unwrap().new, new);
        // The caller has been told, and nothing needs to be remembered.
        all.failed(&claim);
        assert!(all.by_old.is_empty() && all.by_new.is_empty() && all.releases.is_empty());
    }
}

#[test]
fn the_slower_of_two_releases_finds_nothing_before_the_faster_one_ends() {
    let (mut all, old, second, now) = start();
    let claim = all.begin(&old, second, now).unwrap();
    all.made(&claim);
    all.begin_release(&old, now);
    all.begin_release(&old, now);
    all.over(&old, &claim.new);
    all.end_release(&old, false);
    all.end_release(&old, true);
    assert!(!all.read(&claim));
}

#[test]
fn a_release_after_a_failed_transfer_leaves_nothing() {
    let (mut all, old, second, now) = start();
    let claim = all.begin(&old, second, now).unwrap();
    all.failed(&claim);
    assert_eq!(all.begin_release(&old, now).1, Some(claim.new));
    all.end_release(&old, true);
    assert!(all.by_old.is_empty() && all.by_new.is_empty() && all.releases.is_empty());
}

#[test]
fn the_new_token_of_a_failed_transfer_means_that_transfer() {
    let (mut all, old, second, now) = start();
    let first = all.begin(&old, second, now).unwrap();
    all.failed(&first);
    // The owner names no token, and the hold has the new one.
    let claim = all.begin(&first.new, second, now).unwrap();
    assert_eq!((&claim.old, &claim.new), (&old, &first.new));
    all.failed(&claim);
    assert_eq!(all.begin_release(&first.new, now), (old.clone(), None));
    assert!(all.is_busy(&old) && all.is_busy(&first.new));
    assert_eq!(all.begin(&first.new, second, now), None);
    all.end_release(&old, true);
    assert!(all.by_old.is_empty() && all.by_new.is_empty() && all.releases.is_empty());
}

#[test]
fn a_transfer_waits_for_a_release_that_began_before() {
    let (mut all, old, second, now) = start();
    assert_eq!(all.begin_release(&old, now).1, None);
    assert_eq!(all.begin(&old, second, now), None);
    assert!(all.is_busy(&old));
    all.end_release(&old, true);
    assert!(!all.is_busy(&old));
    assert!(all.begin(&old, second, now).is_some());
}

#[test]
fn what_a_release_finds_gone_is_forgotten_afterwards() {
    let (mut all, old, second, now) = start();
    let claim = all.begin(&old, second, now).unwrap();
    for _ in 0..2 {
        all.begin_release(&old, now);
    }
    all.over(&old, &claim.new);
    all.made(&claim);
    all.failed(&claim);
    all.end_release(&old, false);
    assert!(all.is_busy(&old));
    assert!(!all.read(&claim));
    all.end_release(&old, false);
    assert!(!all.is_busy(&old));
    assert_eq!(all.meant(&old, now), None);
    assert_ne!(all.begin(&old, second, now).unwrap().new, claim.new);
}

#[test]
fn after_it_was_read_a_release_finds_nothing() {
    let (mut all, old, second, now) = start();
    let claim = all.begin(&old, second, now).unwrap();
    all.made(&claim);
    assert!(all.read(&claim));
    assert_eq!(all.begin_release(&old, now).1, None);
    all.end_release(&old, true);
    assert_eq!(all.meant(&old, now), None);
    assert!(all.releases.is_empty());
}
