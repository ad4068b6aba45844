//! What is seen of a hold, and who may enter it.

use super::*;

#[test]
fn reasons_have_names() {
    for (reason, name) in [
        (Loss::Expired, "expired"),
        (Loss::Released, "released"),
        (Loss::Unreachable, "unreachable"),
        (Loss::Unknown, "unknown"),
    ] {
        assert_eq!((reason.as_str(), reason.to_string().as_str()), (name, name));
    }
}

#[test]
fn an_owner_enters_again_and_others_do_not() {
    let (mut scene, mut owner, other) = (Scene::new(), Owner::new(1), Owner::new(2));
    assert_eq!(scene.entry(&owner), Entry::Fresh);
    assert!(scene.holds.of(scene.lock, &owner.caller()).is_none());
    let id = scene.enter(&mut owner, CALL).hold;
    let (token, lease) = (scene.token(id), Lease::SECOND);
    let again = Entry::Again {
        hold: id,
        token,
        lease,
    };
    assert_eq!(scene.entry(&owner), again);
    let not_reentrant = scene.holds.entry(scene.lock, &owner.caller(), false);
    assert_eq!(not_reentrant, Entry::Fresh);
    assert_eq!(scene.entry(&other), Entry::Fresh);
    // At another place, though it remembers; and at this one, if it does not.
    let mut elsewhere = Owner::new(2);
    elsewhere.remembered = owner.remembered.clone();
    assert_eq!(scene.entry(&elsewhere), Entry::Fresh);
    assert_eq!(scene.entry(&Owner::new(1)), Entry::Fresh);
    let holds = &scene.holds;
    assert!(holds.is_owned(scene.lock, &owner.caller()));
    assert!(!holds.is_owned(scene.lock, &other.caller()));
    assert!(holds.of(scene.lock, &owner.caller()).is_some());
    assert_eq!(holds.living(&[id, HoldId::fresh()]), [id]);
}

#[test]
fn a_lock_shows_the_callers_own_hold_or_the_newest() {
    let (mut scene, mut first, mut second) = (Scene::new(), Owner::new(1), Owner::new(2));
    let (one, two) = (
        scene.enter(&mut first, CALL),
        scene.enter(&mut second, CALL),
    );
    let shown = |scene: &Scene, owner: &Owner| {
        scene
            .holds
            .of(scene.lock, &owner.caller())
            .map(|hold| hold.key.token.clone())
    };
    assert_eq!(shown(&scene, &first), Some(scene.token(one.hold)));
    assert_eq!(shown(&scene, &second), Some(scene.token(two.hold)));
    assert_eq!(shown(&scene, &Owner::new(3)), Some(scene.token(two.hold)));
}

#[test]
fn a_hold_counts_as_expired_when_it_is_over_or_lost() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    assert!(!scene.holds.get(id).unwrap().expired(scene.now));
    assert_eq!(scene.holds.expire(id, Loss::Expired, scene.now), None);
    let later = scene.now + Duration::from_secs(2);
    assert!(scene.holds.get(id).unwrap().expired(later));
    let reported = scene.holds.expire(id, Loss::Unreachable, later).unwrap();
    assert_eq!(
        (reported.reason, reported.fence),
        (Loss::Unreachable, Some(7))
    );
    assert!(scene.holds.get(id).unwrap().expired(scene.now));
    assert_eq!(scene.holds.expire(id, Loss::Expired, later), None);
    // The same for whoever asks a Lock object.
    let mut scene = Scene::new();
    for (how, reason) in [(BLOCK, Loss::Expired), (EXTENDED, Loss::Unreachable)] {
        let entered = scene.enter(&mut owner, how);
        let ask = |scene: &mut Scene, caller: &Caller, now| {
            scene.holds.expire_of(scene.lock, caller, now)
        };
        let now = scene.now;
        assert_eq!(ask(&mut scene, &owner.caller(), now), None);
        let reported = ask(&mut scene, &Owner::new(3).caller(), later).unwrap();
        assert_eq!(reported.reason, reason);
        assert_eq!(ask(&mut scene, &owner.caller(), later), None);
        let _ = scene.holds.leave(entered, later);
    }
    // A hold that is being released is no loss to anybody.
    let mut other = Owner::new(2);
    let releasing = scene.enter(&mut other, CALL).hold;
    scene.release(&other);
    assert_eq!(scene.holds.expire(releasing, Loss::Expired, later), None);
}

#[test]
fn a_lock_is_lost_while_its_last_hold_was_lost() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let lost =
        |scene: &Scene, owner: &Owner| scene.holds.is_lost(scene.lock, &owner.caller(), scene.now);
    assert!(!lost(&scene, &owner), "it has had no hold");
    let block = scene.enter(&mut owner, BLOCK);
    assert!(!lost(&scene, &owner));
    assert!(matches!(
        scene.holds.leave(block, scene.now),
        Ending::Release { .. }
    ));
    assert!(!lost(&scene, &owner), "it ended in time");
    let block = scene.enter(&mut owner, BLOCK);
    scene.pass();
    assert!(lost(&scene, &owner), "its lease has run out");
    assert!(matches!(
        scene.holds.leave(block, scene.now),
        Ending::Release { held: false, .. }
    ));
    assert!(lost(&scene, &owner), "it had run out");
    scene.enter(&mut owner, CALL);
    assert!(!lost(&scene, &owner), "it has a new hold");
}

#[test]
fn a_hold_is_over_once_the_database_has_said_so() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    assert!(!scene.holds.is_over(&Key::random()));
    for (reason, over) in [
        (Loss::Expired, false),
        (Loss::Unreachable, false),
        (Loss::Released, true),
        (Loss::Unknown, true),
    ] {
        let block = scene.enter(&mut owner, BLOCK);
        let key = scene.key(block.hold);
        assert!(!scene.holds.is_over(&key));
        scene.holds.lost(block.hold, reason);
        assert_eq!(scene.holds.is_over(&key), over, "{reason}");
        let _ = scene.holds.leave(block, scene.now);
        // Ended by its owner.
        let block = scene.enter(&mut owner, BLOCK);
        let key = scene.key(block.hold);
        let _ = scene.release(&owner);
        scene.holds.not_released(block.hold, reason, true, false);
        assert_eq!(scene.holds.is_over(&key), over, "{reason}");
        let _ = scene.holds.leave(block, scene.now);
    }
}

#[test]
fn the_innermost_block_at_a_place_is_that_of_its_newest_hold() {
    let (mut scene, mut owner, mut other) = (Scene::new(), Owner::new(1), Owner::new(2));
    let at = |scene: &Scene, owner: &Owner| {
        let place = owner.caller().place;
        scene.holds.block_at(scene.lock, place)
    };
    assert_eq!(at(&scene, &owner), None);
    let outer = scene.enter(&mut owner, BLOCK);
    let inner = scene.enter(&mut owner, BLOCK);
    assert_eq!(at(&scene, &owner), Some(inner));
    // Levels without a block, and blocks at another place, are none.
    scene.enter(&mut owner, CALL);
    let theirs = scene.enter(&mut other, BLOCK);
    owner.remembered.clear();
    assert_eq!(at(&scene, &owner), Some(inner));
    assert_eq!(at(&scene, &other), Some(theirs));
    let _ = scene.holds.leave(inner, scene.now);
    assert_eq!(at(&scene, &owner), Some(outer));
}

#[test]
fn a_loss_is_told_once_outside_of_blocks_and_always_inside() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let token = scene.token(id);
    scene.holds.lost(id, Loss::Expired);
    assert_eq!(scene.entry(&owner), Entry::Lost(token, Loss::Expired));
    assert_eq!(scene.entry(&owner), Entry::Fresh);
    let entered = scene.enter(&mut owner, BLOCK);
    assert!(scene.holds.get(id).is_none(), "the new one replaces it");
    scene.holds.lost(entered.hold, Loss::Unknown);
    for _ in 0..2 {
        assert!(matches!(scene.entry(&owner), Entry::Lost(_, Loss::Unknown)));
    }
    // An acquire in flight has reported it.
    let mut other = Owner::new(2);
    let id = scene.enter(&mut other, CALL).hold;
    scene.holds.lost(id, Loss::Expired);
    scene.holds.reported(id);
    assert_eq!(scene.entry(&other), Entry::Fresh);
}

#[test]
fn a_hold_is_not_entered_again_after_its_deadline_unless_it_was_extended() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let late = scene.grant(CALL, Some(id));
    scene.now = scene.now + Duration::from_secs(2);
    let (caller, now) = (owner.caller(), scene.now);
    assert!(scene.holds.open(late.clone(), &caller, now).is_none());
    // A zero lease was asked for.
    let none = Grant {
        lease: Lease::ZERO,
        ..late.clone()
    };
    assert!(scene.holds.open(none, &caller, now).is_some());
    // The answer is as late, but newer ones have come since.
    let fence = scene.holds.get(id).unwrap().fence;
    scene.holds.extended(id, fence, Deadline::new(now, 1.0));
    assert!(scene.holds.open(late, &caller, now).is_some());
}

#[test]
fn a_hold_that_ended_meanwhile_is_not_entered() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    scene.now = scene.now + Duration::from_millis(500);
    let grant = scene.grant(CALL, Some(id));
    let deadline = grant.deadline;
    assert!(
        scene
            .holds
            .open(grant, &owner.caller(), scene.now)
            .is_some()
    );
    assert_eq!(scene.holds.get(id).unwrap().deadline, deadline);
    scene.holds.lost(id, Loss::Expired);
    let grant = scene.grant(CALL, Some(id));
    assert!(
        scene
            .holds
            .open(grant, &owner.caller(), scene.now)
            .is_none()
    );
}
