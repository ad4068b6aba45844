//! The table of conditions, row by row, and the other promises of each function.

use super::super::{Name, Table};
use super::ending::Ending;
use super::*;
use std::sync::Arc;
use std::time::Duration;

/// A Lock object with a lease of one second, and its owners.
struct Scene {
    holds: Holds,
    lock: LockId,
    now: Moment,
}

/// An owner, with what its context remembers.
struct Owner {
    task: u64,
    remembered: Vec<HoldId>,
}

impl Owner {
    fn new(task: u64) -> Owner {
        let remembered = Vec::new();
        Owner { task, remembered }
    }

    fn caller(&self) -> Caller {
        Caller {
            place: Place::current(Some(self.task), None),
            remembered: Arc::from(self.remembered.clone()),
        }
    }
}

const CALL: (bool, bool) = (false, false);
const BLOCK: (bool, bool) = (true, false);
const EXTENDED: (bool, bool) = (true, true);

impl Scene {
    fn new() -> Scene {
        Scene {
            holds: Holds::default(),
            lock: LockId::fresh(),
            now: Moment::now(),
        }
    }

    fn grant(&self, (block, extended): (bool, bool), again: Option<HoldId>) -> Grant {
        Grant {
            entered: Entered {
                hold: again.unwrap_or_else(HoldId::fresh),
                level: LevelId::fresh(),
            },
            again: again.is_some(),
            lock: self.lock,
            key: Key::random(),
            fence: Some(7),
            deadline: Deadline::new(self.now, 1.0),
            lease: Lease::SECOND,
            block,
            extended,
        }
    }

    /// The owner acquires, entering again if it already has the lock.
    fn enter(&mut self, owner: &mut Owner, how: (bool, bool)) -> Entered {
        let again = match self.holds.entry(self.lock, &owner.caller(), true) {
            Entry::Fresh => None,
            Entry::Again { hold, .. } => Some(hold),
            Entry::Lost(..) => panic!("it is lost"),
        };
        let grant = self.grant(how, again);
        let entered = grant.entered;
        assert!(self.holds.open(grant, &owner.caller(), self.now).is_some());
        owner.remembered.push(entered.hold);
        entered
    }

    fn release(&mut self, owner: &Owner) -> Ending {
        self.holds
            .release(self.lock, &owner.caller(), None, self.now)
    }

    fn entry(&mut self, owner: &Owner) -> Entry {
        self.holds.entry(self.lock, &owner.caller(), true)
    }

    fn key(&self, id: HoldId) -> Key {
        self.holds.get(id).unwrap().key.clone()
    }

    fn token(&self, id: HoldId) -> Token {
        self.key(id).token
    }

    fn levels(&self, id: HoldId) -> usize {
        self.holds.get(id).map_or(0, |hold| hold.levels.len())
    }

    /// The lease runs out.
    fn pass(&mut self) {
        self.now = self.now + Duration::from_secs(2);
    }
}

fn lost(ending: &Ending) -> Option<(Loss, bool)> {
    match ending {
        Ending::Lost { reason, owed, .. } => Some((*reason, *owed)),
        _ => None,
    }
}

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
    assert!(!scene.holds.holds_any(scene.lock));
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
    assert!(holds.holds_any(scene.lock));
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
        scene.holds.not_released(block.hold, reason, true);
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
    assert!(!scene.holds.holds_any(scene.lock));
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
    assert_eq!(scene.holds.not_released(id, Loss::Expired, true), None);
    assert!(scene.holds.get(id).is_none());
    for own in [true, false] {
        let block = scene.enter(&mut owner, BLOCK);
        let reported = scene.holds.not_released(block.hold, Loss::Expired, own);
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
