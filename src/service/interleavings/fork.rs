//! A process forks while its threads are at work.

use super::*;
use crate::sync::simulated::{exit, fork, is_forked};

/// All calls about one hold. A child forked inside one of them gets no further.
fn calls(locks: &Arc<Locks>, lock: &Lock, budget: Budget) -> Result<()> {
    let clear = || {
        if once_in(4) {
            locks.store().database().clear();
        }
    };
    if once_in(4) {
        locks.close(budget)?;
    }
    let wait = if once_in(2) { Wait::Not } else { Wait::Forever };
    let attempt = acquisition(locks, lock, wait, None);
    attempt.wait_for(budget)?;
    let Some((entered, token)) = attempt.accept(Some(&nobody()), Callbacks::default())? else {
        return Ok(());
    };
    let caller = Caller {
        remembered: Arc::from([entered.hold]),
        ..nobody()
    };
    clear();
    let changed = locks
        .begin_transfer(lock, &caller, Some(token))
        .and_then(|transfer| locks.transfer(lock, &transfer, budget))
        .and_then(|confirmed| {
            let token = confirmed.in_time()?.clone();
            confirmed.read().unwrap();
            Ok(token)
        })
        .and_then(|token| locks.is_lost(lock, &token, budget))
        .and_then(|_| locks.extend(lock, &caller, None, budget))
        .map(drop);
    if !is_forked() {
        clear();
        let ending = if once_in(2) {
            locks.begin_release(lock, &caller, None)
        } else {
            locks.begin_exit(lock, Some(entered))
        };
        return locks.finish(lock.name(), ending, budget);
    }
    changed.map(drop)
}

/// A thread forks while others acquire, wait, extend and owe releases. Only that thread lives on in
/// the child, and mutexes that the others held stay locked there.
#[test]
#[allow(clippy::too_many_lines)] // one scene
fn a_child_meets_nothing_of_its_parent() {
    explore(Pace::Idle, || {
        let store = Store::default();
        let all = locks(&store, 3.0);
        store.set_faults(once_in(2), true);
        for lease in [None, Some(3.0)] {
            let (locks, store) = (all.clone(), store.clone());
            drop(thread::spawn(move || {
                while let Ok(block) = Block::begin(&locks, name(), Wait::Forever, lease) {
                    thread::sleep(Duration::from_millis(500));
                    let _ = block.end();
                    if once_in(2) {
                        store.database().clear();
                    }
                }
            }));
        }
        let lock = Lock::new(name());
        let inherited = Arc::new(acquisition(&all, &lock, Wait::Forever, None));
        let stepping = inherited.clone();
        drop(thread::spawn(move || stepping.wait_for(budget())));
        let forker = thread::spawn(move || {
            // In the middle of a call, as a signal handler would, or between calls.
            let check = || {
                if once_in(8) && !is_forked() {
                    fork();
                }
                Ok(())
            };
            let outcome = calls(&all, &lock, Budget::new(MINUTE, &check));
            if is_forked() {
                assert!(outcome.is_err());
            } else {
                fork();
            }
            store.set_faults(false, false);
            assert!(inherited.sleeps().is_none());
            let step = inherited.step(budget());
            assert!(matches!(step, Err(Error::Forked)));
            assert!(
                inherited
                    .accept(Some(&nobody()), Callbacks::default())
                    .is_err()
            );
            inherited.give_up();
            assert_eq!(lock.state(&nobody()), "free");
            let threads = [0, 1].map(|_| {
                let locks = all.clone();
                thread::spawn(move || {
                    let name = Name::new("the child's").unwrap();
                    let block = Block::begin(&locks, name, Wait::Forever, Some(1.0)).unwrap();
                    thread::sleep(Duration::from_secs(2));
                    assert!(!block.lock.expired(&block.caller()));
                    block.end().unwrap();
                })
            });
            join(threads);
            all.close(budget()).unwrap();
            exit();
        });
        forker.join().unwrap();
    });
}
