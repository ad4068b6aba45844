use super::super::hold::{Kind, Level};
use super::super::{Caller, Entered, Lease, Loss};
use super::super::{Condition, Deadline, HoldId, LevelId, LockId, Moment, Place, Token};
use super::ending::Ending;
use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// The actions of owners, blocks and the database.
#[derive(Clone, Debug)]
enum Step {
    Acquire {
        owner: usize,
        block: bool,
        works: bool,
    },
    Leave {
        owner: usize,
    },
    LeaveTwice {
        owner: usize,
    },
    Release {
        owner: usize,
        works: bool,
    },
    ReleaseByToken {
        of: usize,
    },
    Lose {
        owner: usize,
    },
    Settle {
        owner: usize,
    },
    Transfer {
        owner: usize,
    },
    Pass {
        millis: u64,
    },
}

const OWNERS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let owner = 0..OWNERS;
    let works = prop::bool::weighted(0.8);
    let step = prop_oneof![
        5 => (owner.clone(), any::<bool>(), works)
            .prop_map(|(owner, block, works)| Step::Acquire { owner, block, works }),
        4 => owner.clone().prop_map(|owner| Step::Leave { owner }),
        1 => owner.clone().prop_map(|owner| Step::LeaveTwice { owner }),
        3 => (owner.clone(), works).prop_map(|(owner, works)| Step::Release { owner, works }),
        1 => owner.clone().prop_map(|of| Step::ReleaseByToken { of }),
        1 => owner.clone().prop_map(|owner| Step::Lose { owner }),
        1 => owner.clone().prop_map(|owner| Step::Settle { owner }),
        1 => owner.prop_map(|owner| Step::Transfer { owner }),
        1 => (0..800u64).prop_map(|millis| Step::Pass { millis }),
    ];
    prop::collection::vec(step, 1..80)
}

/// The model of an owner: the levels that it has opened and not left.
#[derive(Clone, Debug, Default)]
struct Model {
    remembered: Vec<HoldId>,
    blocks: Vec<Entered>,
    left: Vec<Entered>,
    hold: Option<HoldId>,
}

fn caller(owner: usize, model: &Model) -> Caller {
    Caller {
        place: Place::current(Some(owner as u64 + 1), None),
        remembered: Arc::from(model.remembered.clone()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Invariants: a block is left once and its level is gone, nobody enters a hold that is ending
    /// or lost, no owner's step changes the levels of another's hold, and a hold that nobody has
    /// open is not extended.
    #[test]
    fn levels_are_what_was_opened_and_not_left(steps in steps()) {
        let mut holds = Holds::default();
        let lock = LockId::fresh();
        let mut models = vec![Model::default(); OWNERS];
        let mut now = Moment::now();
        for step in steps {
            let levels = |holds: &Holds, id: HoldId| {
                holds.get(id).map(|hold| hold.levels.len())
            };
            let before: Vec<_> = models
                .iter()
                .map(|model| model.hold.and_then(|id| levels(&holds, id)))
                .collect();
            let mut acts = None;
            match step {
                Step::Pass { millis } => now = now + Duration::from_millis(millis),
                Step::Acquire { owner, block, works } => {
                    acts = Some(owner);
                    let caller = caller(owner, &models[owner]);
                    let (again, entry_key) = match holds.entry(lock, &caller, true) {
                        Entry::Fresh => (None, Key::random()),
                        Entry::Again { hold, token, .. } => {
                            prop_assert_eq!(holds.get(hold).unwrap().condition, Condition::Held);
                            prop_assert_eq!(models[owner].hold, Some(hold));
                            (Some(hold), Key::random().with(&token))
                        }
                        Entry::Lost(..) => continue,
                    };
                    if !works {
                        continue;
                    }
                    let entered = Entered {
                        hold: again.unwrap_or_else(HoldId::fresh),
                        level: LevelId::fresh(),
                    };
                    let grant = Grant {
                        entered,
                        again: again.is_some(),
                        lock,
                        key: entry_key,
                        fence: Some(1),
                        deadline: Deadline::new(now, 1.0),
                        lease: Lease::SECOND,
                        block,
                        extended: true,
                    };
                    prop_assert!(holds.open(grant, &caller, Moment::now()).is_some());
                    let model = &mut models[owner];
                    for open in &mut model.blocks {
                        // The levels of a hold released inside them have moved.
                        let hold = holds.get(entered.hold).unwrap();
                        if hold.levels.iter().any(|level| level.id == open.level) {
                            open.hold = entered.hold;
                        }
                    }
                    model.hold = Some(entered.hold);
                    model.remembered.push(entered.hold);
                    if block {
                        model.blocks.push(entered);
                    }
                    let hold = holds.get(entered.hold).unwrap();
                    prop_assert!(hold.condition == Condition::Held && !hold.levels.is_empty());
                }
                Step::Leave { owner } => {
                    acts = Some(owner);
                    let caller = caller(owner, &models[owner]);
                    let Some(entered) = models[owner].blocks.pop() else { continue };
                    let last = holds.get(entered.hold).is_some_and(|hold| {
                        hold.levels.len() == 1 && hold.levels[0].id == entered.level
                    });
                    let over = holds.get(entered.hold).is_some_and(|hold| {
                        hold.levels.last().is_some_and(|level| {
                            level.id == entered.level && level.kind == Kind::Released
                        })
                    });
                    let ending = holds.leave(entered, now);
                    let told = matches!(ending, Ending::Lost { .. });
                    prop_assert!(told || !over, "a block ends that holds nothing");
                    models[owner].left.push(entered);
                    // Whatever the database will say.
                    prop_assert!(holds.watched(entered).is_none());
                    if last {
                        prop_assert!(holds.get(entered.hold).is_none());
                        let fresh = matches!(
                            holds.entry(lock, &caller, true),
                            Entry::Fresh | Entry::Again { .. } | Entry::Lost(..)
                        );
                        prop_assert!(fresh);
                    }
                }
                Step::LeaveTwice { owner } => {
                    let Some(entered) = models[owner].left.last().copied() else { continue };
                    let ending = holds.leave(entered, now);
                    prop_assert!(matches!(ending, Ending::Nothing | Ending::Done));
                }
                Step::Release { owner, works } => {
                    acts = Some(owner);
                    let caller = caller(owner, &models[owner]);
                    if !holds.is_owned(lock, &caller) {
                        continue;
                    }
                    if let Ending::Release { hold, own, .. } =
                        holds.release(lock, &caller, None, now)
                    {
                        let id = hold.unwrap();
                        prop_assert!(own);
                        prop_assert_eq!(holds.get(id).unwrap().condition, Condition::Releasing { known: true });
                        // From now on neither entered nor extended.
                        prop_assert_eq!(holds.entry(lock, &caller, true), Entry::Fresh);
                        for entered in &models[owner].blocks {
                            let watched = holds.watched(*entered);
                            prop_assert!(!watched.is_some_and(|(_, extended)| extended));
                        }
                        if works {
                            holds.released(id, own);
                        }
                    }
                }
                Step::ReleaseByToken { of } => {
                    let token = models[of].hold.and_then(|id| Some(holds.get(id)?.key.clone()));
                    let (Some(token), Some(id)) = (token, models[of].hold) else { continue };
                    let stranger = Caller {
                        place: Place::current(Some(99), None),
                        remembered: Arc::from([]),
                    };
                    acts = Some(of);
                    match holds.release(lock, &stranger, Some(&token), now) {
                        Ending::Release { hold, own, .. } => {
                            prop_assert!(!own);
                            prop_assert_eq!(hold, Some(id));
                            let reported = holds.released(id, own).unwrap();
                            prop_assert_eq!(reported.reason, Loss::Released);
                            prop_assert!(holds.get(id).unwrap().expired(now));
                            // Reported once.
                            prop_assert_eq!(holds.lost(id, Loss::Unknown), None);
                        }
                        Ending::Lost { .. } | Ending::Done => {}
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
                Step::Lose { owner } => {
                    let Some(id) = models[owner].hold else { continue };
                    let told = holds.lost(id, Loss::Unreachable);
                    prop_assert_eq!(holds.lost(id, Loss::Unreachable), None);
                    if told.is_some() {
                        prop_assert!(holds.get(id).unwrap().expired(now));
                    }
                }
                Step::Settle { owner } => {
                    acts = Some(owner);
                    let key = models[owner].hold.and_then(|id| Some(holds.get(id)?.key.clone()));
                    if let Some(key) = key {
                        let _ = holds.settled(&key);
                    }
                }
                Step::Transfer { owner } => {
                    let old = models[owner].hold.and_then(|id| Some(holds.get(id)?.key.clone()));
                    let Some(old) = old else { continue };
                    let new = Token::random();
                    holds.transferring(&old, &new);
                    prop_assert!(holds.with_key(&old.with(&new)).is_some());
                    holds.transferred(&old, &new);
                    prop_assert!(holds.with_key(&old).is_none());
                    prop_assert_eq!(holds.with_key(&old.with(&new)).map(|(id, _)| id), models[owner].hold);
                }
            }
            for (owner, before) in before.iter().enumerate() {
                if acts != Some(owner) {
                    let after = models[owner].hold.and_then(|id| levels(&holds, id));
                    prop_assert_eq!(&after, before, "another owner's levels changed");
                }
            }
            for (id, hold) in &holds.all {
                prop_assert_eq!(holds.by_key.get(&hold.key), Some(id));
                // Any hold that stands has somebody inside it, or somebody who has to release it.
                prop_assert!(hold.condition != Condition::Held || hold.depth() > 0);
                let released = |level: &Level| level.kind == Kind::Released;
                prop_assert!(!hold.levels.iter().any(|level| released(level) && level.extended));
                prop_assert!(holds.by_lock[&lock].contains(id));
            }
            prop_assert_eq!(
                holds.by_lock.values().map(Vec::len).sum::<usize>(),
                holds.all.len()
            );
        }
        // Everybody leaves: no block is open, and nothing is extended.
        for model in &models {
            for entered in &model.blocks {
                let _ = holds.leave(*entered, now);
            }
        }
        prop_assert!(holds.all.values().all(|hold| !hold.has_blocks()));
    }
}

#[test]
fn a_late_exit_ends_its_own_hold() {
    let (mut holds, lock, now) = (Holds::default(), LockId::fresh(), Moment::now());
    let mut enter = |task: u64| {
        let entered = Entered {
            hold: HoldId::fresh(),
            level: LevelId::fresh(),
        };
        let grant = Grant {
            entered,
            again: false,
            lock,
            key: Key::random(),
            fence: None,
            deadline: Deadline::new(now, 1.0),
            lease: Lease::SECOND,
            block: true,
            extended: false,
        };
        let caller = Caller {
            place: Place::current(Some(task), None),
            remembered: Arc::from([entered.hold]),
        };
        assert!(holds.open(grant, &caller, Moment::now()).is_some());
        entered
    };
    let (first, second) = (enter(1), enter(2));
    let stranger = Caller {
        place: Place::current(Some(3), None),
        remembered: Arc::from([]),
    };
    assert_eq!(holds.block(lock, &stranger), Some(first));
    assert!(matches!(holds.leave(first, now), Ending::Release { .. }));
    assert!(holds.watched(second).is_some());
    assert_eq!(holds.block(lock, &stranger), Some(second));
}
