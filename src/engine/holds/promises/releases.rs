//! How a release ends a hold, by whomever, and what is reported.

use super::*;

#[test]
fn a_release_by_its_owner_is_no_news_and_one_by_others_is() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    scene.release(&owner);
    assert_eq!(scene.holds.released(id, true), None);
    assert!(scene.holds.get(id).is_none());
    let id = scene.enter(&mut owner, CALL).hold;
    let (key, stranger) = (scene.key(id), Owner::new(2).caller());
    let ending = scene
        .holds
        .release(scene.lock, &stranger, Some(&key), scene.now);
    assert!(matches!(ending, Ending::Release { own: false, .. }));
    let reported = scene.holds.released(id, false).unwrap();
    assert_eq!(reported.reason, Loss::Released);
    let condition = scene.holds.get(id).unwrap().condition;
    assert!(matches!(
        condition,
        Condition::Lost {
            reason: Loss::Released,
            ..
        }
    ));
    // A token unknown here is used for a release as it is.
    let unknown = Key::random();
    let ending = scene
        .holds
        .release(scene.lock, &stranger, Some(&unknown), scene.now);
    let expected = Ending::Release {
        hold: None,
        token: unknown.token,
        pending: None,
        lease: None,
        fence: None,
        held: false,
        own: false,
    };
    assert_eq!(ending, expected);
    let without = Scene::new().release(&owner);
    assert_eq!(without, Ending::Nothing);
}

#[test]
fn the_owner_with_its_token_and_anybody_without_are_no_strangers() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let key = scene.key(id);
    let caller = owner.caller();
    let ending = scene
        .holds
        .release(scene.lock, &caller, Some(&key), scene.now);
    assert!(matches!(ending, Ending::Release { own: true, .. }));
    assert!(matches!(
        scene.release(&Owner::new(2)),
        Ending::Release { own: true, .. }
    ));
}

#[test]
fn a_release_that_succeeds_in_the_background_is_done_when_it_is_called_again() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let key = scene.key(id);
    assert_eq!(scene.holds.settled(&key), None);
    assert_eq!(scene.holds.get(id).unwrap().condition, Condition::Held);
    scene.release(&owner);
    assert_eq!(scene.holds.settled(&key), None);
    assert_eq!(scene.holds.get(id).unwrap().condition, Condition::Released);
    assert!(scene.holds.of(scene.lock, &owner.caller()).is_none());
    assert_eq!(scene.release(&owner), Ending::Done);
    assert!(scene.holds.get(id).is_none());
    // The owner is told if it is in a block.
    let block = scene.enter(&mut owner, BLOCK);
    let key = scene.key(block.hold);
    scene.release(&owner);
    assert_eq!(scene.holds.settled(&key).unwrap().reason, Loss::Released);
    assert_eq!(scene.entry(&owner), Entry::Fresh);
}

#[test]
fn an_owner_learns_that_others_release_its_hold_and_gets_no_second_one() {
    let by_others = |scene: &mut Scene, id| {
        let (key, stranger) = (scene.key(id), Owner::new(2).caller());
        let ending = scene
            .holds
            .release(scene.lock, &stranger, Some(&key), scene.now);
        assert!(matches!(ending, Ending::Release { own: false, .. }));
        key
    };
    let refused = |scene: &mut Scene, owner: &Owner, key: &Key| {
        let lost = Entry::Lost(key.token.clone(), Loss::Released);
        assert_eq!(scene.entry(owner), lost);
    };
    // In a block, for as long as it lasts.
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let block = scene.enter(&mut owner, BLOCK);
    let key = by_others(&mut scene, block.hold);
    refused(&mut scene, &owner, &key);
    refused(&mut scene, &owner, &key);
    assert_eq!(scene.holds.settled(&key).unwrap().reason, Loss::Released);
    refused(&mut scene, &owner, &key);
    assert!(matches!(
        scene.holds.leave(block, scene.now),
        Ending::Lost { owed: false, .. }
    ));
    // Outside of blocks, once.
    let id = scene.enter(&mut owner, CALL).hold;
    let key = by_others(&mut scene, id);
    refused(&mut scene, &owner, &key);
    assert_eq!(scene.entry(&owner), Entry::Fresh);
    assert_eq!(scene.holds.settled(&key), None);
    // Or when it is over, if the owner did not ask before.
    let id = scene.enter(&mut owner, CALL).hold;
    let key = by_others(&mut scene, id);
    assert_eq!(scene.holds.settled(&key).unwrap().reason, Loss::Released);
    refused(&mut scene, &owner, &key);
    assert_eq!(scene.entry(&owner), Entry::Fresh);
    // An owner who releases too is no longer refused.
    let id = scene.enter(&mut owner, CALL).hold;
    let key = by_others(&mut scene, id);
    scene.release(&owner);
    by_others(&mut scene, id);
    assert_eq!(scene.entry(&owner), Entry::Fresh);
    assert_eq!(scene.holds.settled(&key), None);
}

#[test]
fn a_release_that_came_too_late_ends_the_hold() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    // Reported, though the caller is told: the operator should know.
    let reported = scene
        .holds
        .not_released(id, Loss::Expired, true, false)
        .unwrap();
    assert_eq!((reported.reason, reported.fence), (Loss::Expired, Some(7)));
    assert_eq!(reported.levels, []);
    assert!(scene.holds.get(id).is_none());
    assert_eq!(
        scene.holds.not_released(id, Loss::Expired, true, false),
        None
    );
    let id = scene.enter(&mut owner, CALL).hold;
    assert!(scene.holds.lost(id, Loss::Released).is_some());
    assert_eq!(
        scene.holds.not_released(id, Loss::Expired, true, false),
        None,
        "only once"
    );
    assert!(scene.holds.get(id).is_none());
    for own in [true, false] {
        let block = scene.enter(&mut owner, BLOCK);
        let reported = scene
            .holds
            .not_released(block.hold, Loss::Expired, own, false);
        assert_eq!(reported.unwrap().reason, Loss::Expired);
        let condition = scene.holds.get(block.hold).unwrap().condition;
        assert_eq!(condition == Condition::Ended(Loss::Expired), own);
        let _ = scene.holds.leave(block, scene.now);
    }
}

#[test]
fn a_hold_that_is_being_released_in_a_block_is_lost_at_its_deadline() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let block = scene.enter(&mut owner, EXTENDED);
    let key = scene.key(block.hold);
    let stranger = Owner::new(2).caller();
    let _ = scene
        .holds
        .release(scene.lock, &stranger, Some(&key), scene.now);
    let watched = scene.holds.watched(block);
    assert!(watched.is_some_and(|(_, extended)| !extended));
    let later = scene.now + Duration::from_secs(2);
    assert_eq!(
        scene.holds.expire(block.hold, Loss::Expired, scene.now),
        None
    );
    assert!(
        scene
            .holds
            .expire(block.hold, Loss::Expired, later)
            .is_some()
    );
}

#[test]
fn a_hold_that_another_release_may_have_ended_is_not_lost_yet() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    // Only if the owner has called one: otherwise it is lost in any case.
    let id = scene.enter(&mut owner, CALL).hold;
    let reported = scene.holds.not_released(id, Loss::Released, false, true);
    assert!(reported.is_some());
    for told in [true, false] {
        let id = scene.enter(&mut owner, CALL).hold;
        let key = scene.key(id);
        scene.release(&owner);
        assert_eq!(scene.holds.not_found(id, Loss::Released), None);
        let found = scene.holds.not_released(id, Loss::Released, told, true);
        assert_eq!(found, None);
        // The other one has ended it.
        assert_eq!(scene.holds.released(id, !told), None);
        assert!(scene.holds.get(id).is_none());
        assert_eq!(scene.holds.last_release(&key), None);
        // Or not.
        let id = scene.enter(&mut owner, CALL).hold;
        let key = scene.key(id);
        scene.release(&owner);
        scene.holds.not_released(id, Loss::Released, told, true);
        let reported = scene.holds.last_release(&key);
        assert_eq!(reported.is_some(), told, "an owner may repeat its own");
        assert_eq!(scene.holds.get(id).is_none(), told);
        if !told {
            let found = scene.holds.not_released(id, Loss::Released, true, false);
            assert_eq!(found.unwrap().reason, Loss::Released);
        }
    }
    let block = scene.enter(&mut owner, BLOCK);
    let found = scene.holds.not_found(block.hold, Loss::Released);
    assert_eq!(found.unwrap().reason, Loss::Released);
    // What was told stays told.
    let deadline = Deadline::new(scene.now, 1.0);
    assert_eq!(scene.holds.extended(block.hold, Some(7), deadline), None);
}
