//! What keeps a hold, and its tokens.

use super::*;

#[test]
fn what_is_extended_is_renewed_in_time() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let entered = scene.enter(&mut owner, EXTENDED);
    let id = entered.hold;
    let after = |scene: &Scene, millis| {
        scene
            .holds
            .overdue(id, scene.now + Duration::from_millis(millis))
    };
    assert_eq!(after(&scene, 0), None);
    assert_eq!(after(&scene, 399), None);
    assert_eq!(after(&scene, 401), Some(Lease::SECOND));
    assert!(scene.holds.watched(entered).unwrap().1);
    let nothing = Entered {
        level: LevelId::fresh(),
        ..entered
    };
    scene.holds.stop_extending(nothing);
    assert_eq!(after(&scene, 900), Some(Lease::SECOND));
    let longer = Deadline::new(scene.now, 5.0);
    let fence = scene.holds.get(id).unwrap().fence;
    assert_eq!(scene.holds.extended(id, fence, longer), Some(longer));
    assert_eq!(after(&scene, 900), None);
    let longest = Deadline::new(scene.now, 9.0);
    let other = fence.map(|fence| fence + 1);
    assert_eq!(
        scene.holds.extended(id, other, longest),
        None,
        "another hold"
    );
    let late = Deadline::new(scene.now, 1.0);
    assert_eq!(
        scene.holds.extended(id, fence, late),
        Some(longer),
        "an answer that came late"
    );
    assert_eq!(after(&scene, 900), None);
    assert_eq!(after(&scene, 4900), Some(Lease::SECOND));
    scene.holds.stop_extending(entered);
    assert_eq!(after(&scene, 4900), None);
    assert!(!scene.holds.watched(entered).unwrap().1);
    let other = scene.enter(&mut owner, EXTENDED);
    scene.release(&owner);
    scene.holds.lost(id, Loss::Expired);
    assert_eq!(after(&scene, 900), None);
    assert!(scene.holds.watched(other).is_none());
}

#[test]
fn a_lock_that_is_gone_keeps_what_is_extended() {
    let (mut scene, mut first, mut second) = (Scene::new(), Owner::new(1), Owner::new(2));
    assert!(!scene.holds.forget(scene.lock));
    let kept = scene.enter(&mut first, EXTENDED).hold;
    let gone = scene.enter(&mut second, BLOCK).hold;
    scene.holds.present(scene.lock, &Key::random(), Some(3));
    assert!(scene.holds.forget(scene.lock));
    assert!(scene.holds.get(kept).is_some());
    assert!(scene.holds.get(gone).is_none());
    assert_eq!(scene.holds.presented(scene.lock), None);
    scene.holds.lost(kept, Loss::Expired);
    assert!(scene.holds.forget(scene.lock));
    assert!(scene.holds.get(kept).is_none());
}

#[test]
fn the_number_of_a_token_from_elsewhere_is_kept() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let key = Key::random();
    assert_eq!(scene.holds.presented(scene.lock), None);
    scene.holds.present(scene.lock, &key, Some(12));
    assert_eq!(scene.holds.presented(scene.lock), Some(12));
    scene.holds.present(scene.lock, &key, None);
    assert_eq!(scene.holds.presented(scene.lock), None);
    let own = scene.enter(&mut owner, CALL).hold;
    scene.holds.present(scene.lock, &scene.key(own), Some(13));
    assert_eq!(
        scene.holds.presented(scene.lock),
        None,
        "it has a hold of its own"
    );
    let another = LockId::fresh();
    scene.holds.present(another, &scene.key(own), Some(14));
    assert_eq!(scene.holds.presented(another), Some(14));
}

#[test]
fn a_transfer_is_known_by_both_tokens_until_it_is_done() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let (old, new, other) = (scene.key(id), Token::random(), Token::random());
    let knows = |scene: &Scene, token: &Token| scene.holds.with_key(&old.with(token)).is_some();
    assert!(scene.holds.is_known(id, &old));
    scene.holds.transferring(&old, &new);
    scene.holds.transferring(&old, &other);
    assert!(knows(&scene, &old.token) && knows(&scene, &new) && !knows(&scene, &other));
    assert!(!scene.holds.is_known(id, &old) && !scene.holds.is_known(id, &old.with(&new)));
    let release = |scene: &mut Scene, token: &Token| match scene.holds.release(
        scene.lock,
        &owner.caller(),
        Some(&old.with(token)),
        scene.now,
    ) {
        Ending::Release { pending, .. } => pending,
        other => panic!("{other:?}"),
    };
    assert_eq!(release(&mut scene, &old.token), Some(new.clone()));
    assert_eq!(release(&mut scene, &new), None, "it is that one");
    scene.holds.not_transferred(&old, &other);
    assert!(knows(&scene, &new));
    assert_eq!(scene.holds.get(id).unwrap().pending, Some(new.clone()));
    scene.holds.not_transferred(&old, &new);
    assert!(knows(&scene, &old.token) && !knows(&scene, &new));
    scene.holds.transferring(&old, &new);
    // Its owner does not know the new token yet.
    assert_eq!(scene.key(id), old);
    scene.holds.transferred(&old, &new);
    assert!(!knows(&scene, &old.token) && knows(&scene, &new));
    assert_eq!(scene.key(id), old.with(&new));
    // Neither token finds a hold that is gone.
    scene.holds.transferring(&old.with(&new), &other);
    scene.holds.released(id, true);
    assert!(scene.holds.by_key.is_empty());
}

#[test]
fn under_another_name_or_in_another_table_a_token_is_nobodys() {
    let (mut scene, mut owner) = (Scene::new(), Owner::new(1));
    let id = scene.enter(&mut owner, CALL).hold;
    let key = scene.key(id);
    let other_name = Name::new("another").unwrap();
    let wrong = [
        Key::new(&key.table, &other_name, &key.token),
        Key::new(&Table::new("another"), &key.name, &key.token),
    ];
    for wrong in wrong {
        assert!(scene.holds.with_key(&wrong).is_none());
        let ending = scene
            .holds
            .release(scene.lock, &owner.caller(), Some(&wrong), scene.now);
        assert_eq!(ending, Ending::of_a_stranger(&key.token));
        scene.holds.transferring(&wrong, &Token::random());
        assert!(scene.holds.is_known(id, &key));
        assert_eq!(scene.holds.settled(&wrong), None);
    }
    assert_eq!(scene.holds.get(id).unwrap().condition, Condition::Held);
}

#[test]
fn of_those_that_nobody_releases_a_thousand_are_remembered() {
    let mut scene = Scene::new();
    let ids: Vec<_> = (0..1000)
        .map(|task| scene.enter(&mut Owner::new(task), CALL).hold)
        .collect();
    assert_eq!(scene.holds.all.len(), 1000);
    scene.enter(&mut Owner::new(1000), CALL);
    assert_eq!(scene.holds.all.len(), 1000);
    assert!(scene.holds.get(ids[0]).is_none());
    assert!(scene.holds.get(ids[1]).is_some());
}
