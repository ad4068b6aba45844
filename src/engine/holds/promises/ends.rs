//! How a hold and its levels end.

use super::*;

#[test]
fn the_inner_release_takes_a_level_off_and_the_last_ends_the_hold() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let block = scene.enter(&mut owner, BLOCK);
    scene.enter(&mut owner, CALL);
    assert_eq!(scene.levels(id), 3);
    assert_eq!(scene.release(&owner), Ending::Done);
    assert_eq!(scene.release(&owner), Ending::Done);
    assert_eq!(scene.levels(id), 1);
    assert!(
        scene.holds.watched(block).is_some(),
        "a block ends its own level"
    );
    let expected = Ending::Release {
        hold: Some(id),
        token: scene.token(id),
        pending: None,
        lease: Some(Lease::SECOND),
        fence: Some(7),
        held: true,
        own: true,
    };
    assert_eq!(scene.release(&owner), expected);
    assert_eq!(
        scene.holds.get(id).unwrap().condition,
        Condition::Releasing { known: true }
    );
    assert_eq!(scene.release(&owner), expected, "once more");
    scene.pass();
    assert!(matches!(
        scene.release(&owner),
        Ending::Release { held: false, .. }
    ));
}

#[test]
fn an_inner_end_past_the_deadline_confirms_the_hold() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let block = scene.enter(&mut owner, BLOCK);
    scene.enter(&mut owner, CALL);
    let (token, lease) = (scene.token(id), Lease::SECOND);
    scene.pass();
    let confirm = Ending::Confirm {
        hold: id,
        token,
        lease,
    };
    assert_eq!(scene.release(&owner), confirm);
    assert_eq!(scene.holds.leave(block, scene.now), confirm);
    assert_eq!(scene.levels(id), 1);
}

#[test]
fn an_inner_block_ends_quietly_and_the_last_owes_the_release() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let outer = scene.enter(&mut owner, BLOCK);
    let inner = scene.enter(&mut owner, BLOCK);
    let token = scene.token(outer.hold);
    assert_eq!(scene.holds.block(scene.lock, &owner.caller()), Some(inner));
    assert_eq!(scene.holds.leave(inner, scene.now), Ending::Done);
    assert_eq!(
        scene.holds.leave(inner, scene.now),
        Ending::Done,
        "it is left once"
    );
    let ending = scene.holds.leave(outer, scene.now);
    let expected = Ending::Release {
        hold: None,
        token,
        pending: None,
        lease: Some(Lease::SECOND),
        fence: Some(7),
        held: true,
        own: true,
    };
    assert_eq!(ending, expected);
    assert!(scene.holds.get(outer.hold).is_none());
    assert_eq!(scene.holds.leave(outer, scene.now), Ending::Nothing);
    assert!(scene.holds.by_lock.is_empty() && scene.holds.by_key.is_empty());
    let late = scene.enter(&mut owner, BLOCK);
    scene.pass();
    let ending = scene.holds.leave(late, scene.now);
    assert!(matches!(ending, Ending::Release { held: false, .. }));
}

#[test]
fn a_lost_block_owes_its_release_if_the_database_may_have_it() {
    for (reason, owed) in [
        (Loss::Expired, true),
        (Loss::Unreachable, true),
        (Loss::Released, false),
        (Loss::Unknown, false),
    ] {
        let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
        let outer = scene.enter(&mut owner, BLOCK);
        let inner = scene.enter(&mut owner, BLOCK);
        scene.holds.lost(outer.hold, reason);
        let ending = scene.holds.leave(inner, scene.now);
        assert_eq!(lost(&ending), Some((reason, false)));
        let ending = scene.holds.leave(outer, scene.now);
        assert_eq!(lost(&ending), Some((reason, owed)));
        // The same with calls.
        let id = scene.enter(&mut owner, CALL).hold;
        scene.enter(&mut owner, CALL);
        scene.holds.lost(id, reason);
        assert_eq!(lost(&scene.release(&owner)), Some((reason, false)));
        assert_eq!(lost(&scene.release(&owner)), Some((reason, owed)));
        assert_eq!(scene.release(&owner), Ending::Nothing);
    }
}

#[test]
fn a_lost_hold_that_its_owner_releases_in_a_block_is_ended() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let block = scene.enter(&mut owner, BLOCK);
    let key = scene.key(block.hold);
    scene.holds.lost(block.hold, Loss::Unknown);
    let stranger = Owner::new(2).caller();
    let ending = scene
        .holds
        .release(scene.lock, &stranger, Some(&key), scene.now);
    assert_eq!(lost(&ending), Some((Loss::Unknown, false)));
    let condition = |scene: &Scene| scene.holds.get(block.hold).unwrap().condition;
    assert!(
        matches!(condition(&scene), Condition::Lost { .. }),
        "a stranger ends nothing"
    );
    assert_eq!(lost(&scene.release(&owner)), Some((Loss::Unknown, false)));
    assert_eq!(condition(&scene), Condition::Ended(Loss::Unknown));
}

#[test]
fn a_hold_that_was_released_in_its_block_is_ended() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let block = scene.enter(&mut owner, BLOCK);
    let key = scene.key(block.hold);
    scene.release(&owner);
    let reported = scene.holds.released(block.hold, true).unwrap();
    assert_eq!(
        (reported.reason, reported.levels),
        (Loss::Released, vec![block.level])
    );
    assert!(scene.holds.get(block.hold).unwrap().expired(scene.now));
    assert_eq!(scene.release(&owner), Ending::Nothing, "no token");
    let caller = owner.caller();
    let ending = scene
        .holds
        .release(scene.lock, &caller, Some(&key), scene.now);
    assert_eq!(lost(&ending), Some((Loss::Released, false)));
    // Acquired again, the hold goes on in the block, and the block's end releases it.
    let id = scene.enter(&mut owner, CALL).hold;
    assert_ne!(id, block.hold);
    assert_eq!(scene.levels(id), 1);
    let ending = scene.holds.leave(block, scene.now);
    assert!(matches!(ending, Ending::Release { hold: None, .. }));
    assert!(scene.holds.get(id).is_none());
}

#[test]
fn what_a_block_has_acquired_after_a_release_ends_with_it() {
    for open in [false, true] {
        let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
        let outer = scene.enter(&mut owner, BLOCK);
        let inner = scene.enter(&mut owner, BLOCK);
        assert_eq!(scene.release(&owner), Ending::Done);
        scene.enter(&mut owner, CALL);
        // A block that is still open then does not belong to it.
        let third = open.then(|| scene.enter(&mut owner, BLOCK));
        assert_eq!(scene.holds.leave(inner, scene.now), Ending::Done);
        let levels = &scene.holds.get(outer.hold).unwrap().levels;
        let ids: Vec<LevelId> = levels.iter().map(|level| level.id).collect();
        let left = [Some(outer), third].into_iter().flatten();
        assert_eq!(ids, left.map(|entered| entered.level).collect::<Vec<_>>());
    }
}

#[test]
fn an_ended_block_is_told_so() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let block = scene.enter(&mut owner, BLOCK);
    scene.release(&owner);
    scene.holds.released(block.hold, true);
    let ending = scene.holds.leave(block, scene.now);
    assert_eq!(lost(&ending), Some((Loss::Released, false)));
}

#[test]
fn a_block_inside_an_ended_one_has_its_own_level() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    scene.enter(&mut owner, CALL);
    let outer = scene.enter(&mut owner, BLOCK);
    scene.release(&owner);
    scene.release(&owner);
    scene.holds.released(outer.hold, true);
    let inner = scene.enter(&mut owner, BLOCK);
    assert_eq!(
        scene.levels(inner.hold),
        2,
        "the calls of what has ended do not count"
    );
    assert_eq!(scene.holds.leave(inner, scene.now), Ending::Done);
}
