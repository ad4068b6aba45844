//! How the threads of a process interact, in many orders: `make threads`.

mod fork;
mod queue;
mod transfers;

use super::*;
use crate::engine::{Caller, Entered, Lease, Name, Place, Token, VALID};
use crate::error::{Error, Result};
use crate::store::{About, Budget, Store};
use crate::sync::simulated::{Pace, explore, now, once_in, step};
use crate::sync::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// By then all are waiting, and none of them is just asking.
const WHILE: Duration = Duration::from_millis(1500);

/// The budget of a thread that nothing interrupts. Others check for signals every 40 ms, which
/// would hide a lost wakeup.
fn budget() -> Budget<'static> {
    Budget::new(MINUTE, &|| Ok(())).undisturbed()
}

fn name() -> Name {
    Name::new("name").unwrap()
}

/// One configuration: one process's part in the queue of a lock.
fn locks(store: &Store, seconds: f64) -> Arc<Locks> {
    let lease = Lease::from_seconds(seconds).unwrap();
    Arc::new(Locks::new(store.clone(), lease, true))
}

/// A Lock object, and the thread's open block on it.
struct Block {
    locks: Arc<Locks>,
    lock: Arc<Lock>,
    entered: Entered,
    token: Token,
}

fn nobody() -> Caller {
    Caller {
        place: Place::current(None, None),
        remembered: Arc::from([]),
    }
}

/// An attempt; its hold is extended automatically if a `lease` is given.
fn acquisition(locks: &Arc<Locks>, lock: &Lock, wait: Wait, lease: Option<f64>) -> Acquisition {
    let request = Request {
        owner: Some((lock.id(), nobody())),
        block: true,
        extended: lease.is_some(),
        lease: lease.and_then(Lease::from_seconds),
        about: About::default(),
    };
    let name = lock.name().clone();
    Acquisition::new(locks.clone(), name, request, wait, Wakeup::thread())
}

fn join<const N: usize>(threads: [thread::JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().unwrap();
    }
}

fn begin(locks: &Arc<Locks>, wait: Wait) -> Result<Block> {
    Block::begin(locks, name(), wait, None)
}

impl Block {
    fn begin(locks: &Arc<Locks>, name: Name, wait: Wait, lease: Option<f64>) -> Result<Block> {
        let lock = Arc::new(Lock::new(name));
        let acquisition = acquisition(locks, &lock, wait, lease);
        loop {
            acquisition.wait_for(budget())?;
            if let Some((entered, token)) =
                acquisition.accept(Some(&nobody()), Callbacks::default())?
            {
                let locks = locks.clone();
                return Ok(Block {
                    locks,
                    lock,
                    entered,
                    token,
                });
            }
        }
    }

    fn caller(&self) -> Caller {
        let remembered = Arc::from([self.entered.hold]);
        Caller {
            remembered,
            ..nobody()
        }
    }

    /// Transfers the hold now and then, and extends it.
    fn change(&self) -> thread::JoinHandle<Token> {
        let (locks, lock, mut token) = (self.locks.clone(), self.lock.clone(), self.token.clone());
        let caller = self.caller();
        thread::spawn(move || {
            for _ in 0..3 {
                // About when it is extended automatically, too.
                thread::sleep(Duration::from_secs(1) / 3);
                let old = Some(token.clone());
                let transfer = locks.begin_transfer(&lock, &caller, old).unwrap();
                let confirmed = locks.transfer(&lock, &transfer, budget()).unwrap();
                token = confirmed.in_time().unwrap().clone();
                confirmed.read().unwrap();
                let current = Some(token.clone());
                locks.extend(&lock, &caller, current, budget()).unwrap();
            }
            token
        })
    }

    fn end(self) -> Result<()> {
        let ending = self.locks.begin_exit(&self.lock, Some(self.entered));
        self.locks.finish(self.lock.name(), ending, budget())
    }
}

/// Jobs for two workers, which must be done within `limit`.
fn submit_jobs(limit: Duration) {
    let workers: Arc<workers::Workers> = Arc::default();
    let done: Arc<[AtomicU32; 6]> = Arc::default();
    let submitters = [0, 3].map(|first| {
        let (workers, done) = (workers.clone(), done.clone());
        thread::spawn(move || {
            for number in first..first + 3 {
                let (done, begun) = (done.clone(), now());
                let job = move || {
                    step();
                    done[number].fetch_add(1, SeqCst);
                    assert!(now().saturating_sub(begun) < limit);
                };
                workers.submit(2, Box::new(job));
                if once_in(2) {
                    // As long as an idle worker stays.
                    thread::sleep(Duration::from_secs(10));
                }
            }
        })
    });
    join(submitters);
    workers.retire(budget()).unwrap();
    assert_eq!(done.each_ref().map(|times| times.load(SeqCst)), [1; 6]);
}

#[test]
fn every_job_is_done_once_and_all_workers_leave() {
    explore(Pace::Idle, || submit_jobs(Duration::from_secs(1)));
    explore(Pace::Any, || submit_jobs(Duration::MAX));
}

/// The thread that settles owed releases leaves just as another release becomes owed.
#[test]
fn what_is_owed_finds_a_thread_that_settles_it() {
    explore(Pace::Idle, || {
        let store = Store::default();
        let locks = locks(&store, 3600.0);
        let threads = ["a", "b"].map(|name| {
            let (locks, store) = (locks.clone(), store.clone());
            let name = Name::new(name).unwrap();
            thread::spawn(move || {
                for _ in 0..3 {
                    let block = Block::begin(&locks, name.clone(), Wait::Not, None).unwrap();
                    locks.abandon(&block.lock, block.entered);
                    // As long as the thread stays when nothing is owed.
                    thread::sleep(Duration::from_secs(5));
                    assert!(!store.database().row(&name).is_live());
                }
            })
        });
        join(threads);
    });
}

/// Statements fail, waiters give up, and either the configuration is closed meanwhile or statements
/// execute late, which `close` does not wait for: in the end nobody holds the lock.
#[test]
fn what_is_owed_is_settled_when_the_configuration_is_closed() {
    explore(Pace::Any, || {
        let store = Store::default();
        let locks = locks(&store, 100_000.0);
        let late = once_in(2);
        store.set_faults(true, late);
        let threads = [0, 1, 2].map(|number| {
            let locks = locks.clone();
            thread::spawn(move || {
                let lock = Lock::new(name());
                let wait = if number == 0 {
                    Wait::Not
                } else {
                    Wait::Forever
                };
                let attempt = Arc::new(acquisition(&locks, &lock, wait, None));
                let stepping = attempt.clone();
                let stepper = thread::spawn(move || stepping.wait_for(budget()).is_ok());
                if once_in(2) {
                    attempt.give_up();
                }
                if stepper.join().unwrap() {
                    if let Ok(Some((entered, _))) =
                        attempt.accept(Some(&nobody()), Callbacks::default())
                    {
                        let ending = locks.begin_exit(&lock, Some(entered));
                        let _ = locks.finish(&name(), ending, budget());
                    }
                }
                drop(attempt);
                if number == 1 && !late {
                    let _ = locks.close(budget());
                }
            })
        });
        join(threads);
        store.set_faults(false, false);
        if late {
            thread::sleep(VALID * 2);
        }
        let hours = budget().renewed(Duration::from_secs(36_000));
        locks.close(hours).unwrap();
        assert!(!store.database().row(&name()).is_live());
    });
}

/// Two leases of different magnitude, renewed by two threads. The holds last for many leases while
/// their tokens change, and new ones come just as the threads leave.
#[test]
fn a_hold_that_is_extended_is_kept_until_it_is_released() {
    explore(Pace::Idle, || {
        let store = Store::default();
        let locks = locks(&store, 3600.0);
        let threads = [("a", 1.0), ("b", 1.0), ("c", 10.0)].map(|(name, lease)| {
            let (locks, store) = (locks.clone(), store.clone());
            let name = Name::new(name).unwrap();
            thread::spawn(move || {
                for _ in 0..3 {
                    let block = Block::begin(&locks, name.clone(), Wait::Not, Some(lease)).unwrap();
                    let mut token = block.token.clone();
                    if once_in(2) {
                        let changing = once_in(2).then(|| block.change());
                        thread::sleep(Duration::from_secs_f64(lease * 4.0));
                        token = changing.map_or(token, |changing| changing.join().unwrap());
                    }
                    assert!(!block.lock.expired(&block.caller()));
                    assert!(store.database().row(&name).is_held(&token));
                    block.end().unwrap();
                    // The thread renews it once more, and leaves ten seconds later.
                    thread::sleep(Duration::from_secs_f64(10.0 + lease / 3.0));
                }
            })
        });
        join(threads);
        // They also leave if nobody tells them to.
        if once_in(2) {
            locks.close(budget()).unwrap();
        }
    });
}

/// The hold is not extended: its owner is told, unless it has left before.
#[test]
fn a_loss_is_reported() {
    explore(Pace::Idle, || {
        let locks = locks(&Store::default(), 1.0);
        let threads = ["a", "b"].map(|name| {
            let locks = locks.clone();
            let lock = Lock::new(Name::new(name).unwrap());
            thread::spawn(move || {
                let attempt = acquisition(&locks, &lock, Wait::Not, None);
                attempt.wait_for(budget()).unwrap();
                let heard: Arc<AtomicU32> = Arc::default();
                let hearing = heard.clone();
                let on_lost = Box::new(move || {
                    hearing.fetch_add(1, SeqCst);
                });
                let callbacks = Callbacks {
                    lost: Some(on_lost),
                    expiring: None,
                };
                let accepted = attempt.accept(Some(&nobody()), callbacks);
                let (entered, _) = accepted.unwrap().unwrap();
                // Past its end, or exactly then.
                let stays = once_in(2);
                thread::sleep(Duration::from_secs(if stays { 2 } else { 1 }));
                let ending = locks.begin_exit(&lock, Some(entered));
                let before = heard.load(SeqCst);
                let finished = locks.finish(lock.name(), ending, budget());
                assert!(!stays || before == 1);
                assert!(before == 0 || finished.is_err());
            })
        });
        join(threads);
        locks.close(budget()).unwrap();
    });
}

/// A hold that is being extended and transferred is ended by force: immediately, and its owner is
/// told. Two threads do it at once, and exactly one of them ends it.
#[test]
fn a_hold_is_revoked_once_and_its_owner_knows() {
    explore(Pace::Idle, || {
        let store = Store::default();
        let locks = locks(&store, 3600.0);
        let block = Block::begin(&locks, name(), Wait::Not, Some(1.0)).unwrap();
        let fence = locks.info(&name(), budget()).unwrap().unwrap().fence;
        let waiter = once_in(2).then(|| {
            let locks = locks.clone();
            thread::spawn(move || {
                let block = begin(&locks, Wait::Forever).unwrap();
                let got = now();
                block.end().unwrap();
                got
            })
        });
        thread::sleep(WHILE);
        let begun = now();
        let revokers = [0, 1].map(|_| {
            let locks = locks.clone();
            // The extending thread looks at the hold about now.
            thread::spawn(move || locks.revoke(&name(), fence, budget()).unwrap().is_some())
        });
        let revoked = revokers.map(|revoker| revoker.join().unwrap());
        assert_eq!(revoked.iter().filter(|one| **one).count(), 1);
        assert!(block.lock.expired(&block.caller()));
        assert!(!store.database().row(&name()).is_held(&block.token));
        if let Some(waiter) = waiter {
            let got = waiter.join().unwrap();
            assert!(got.saturating_sub(begun) < Duration::from_millis(250));
        }
        // It is not extended any more either.
        thread::sleep(WHILE);
        assert!(!store.database().row(&name()).is_live());
        assert!(block.end().is_err());
        locks.close(budget()).unwrap();
    });
}
