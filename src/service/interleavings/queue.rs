//! Threads that wait for a lock.

use super::*;

/// Threads of two processes take turns. After a lost wakeup a waiter looks by itself half a second
/// later; here the holders take a sixth of that in all.
#[test]
fn a_lock_is_handed_over_without_delay() {
    explore(Pace::Idle, || {
        let store = Store::default();
        let both = [locks(&store, 3600.0), locks(&store, 3600.0)];
        let inside: Arc<AtomicU32> = Arc::default();
        let threads = [0, 0, 1, 1].map(|process| {
            let (locks, inside) = (both[process].clone(), inside.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let begun = now();
                    let block = begin(&locks, Wait::Forever).unwrap();
                    assert!(now().saturating_sub(begun) < Duration::from_millis(250));
                    assert_eq!(inside.fetch_add(1, SeqCst), 0);
                    thread::sleep(Duration::from_millis(10));
                    inside.fetch_sub(1, SeqCst);
                    block.end().unwrap();
                }
            })
        });
        join(threads);
        for locks in both {
            locks.close(budget()).unwrap();
        }
    });
}

/// The first waiter gives up about when it is called, or when it begins to ask.
#[test]
fn a_waiter_that_is_given_up_passes_its_turn_on() {
    explore(Pace::Idle, || {
        let store = Store::default();
        let both = [locks(&store, 3600.0), locks(&store, 3600.0)];
        let holder = begin(&both[0], Wait::Not).unwrap();
        let lock = Lock::new(name());
        let first = Arc::new(acquisition(&both[0], &lock, Wait::Forever, None));
        let waiting = first.clone();
        let begins = once_in(2);
        let waiter = thread::spawn(move || {
            if begins {
                thread::sleep(WHILE);
            }
            // As `aio.rs` does it. A grant that is not accepted is given back, too.
            let check = || {
                let wanted = !waiting.is_given_up();
                wanted.then_some(()).ok_or(Error::Interrupted)
            };
            let _ = waiting.wait_for(Budget::new(MINUTE, &check));
        });
        // It may be the only one of its process.
        let others = both[usize::from(once_in(2))..].iter().map(|locks| {
            let locks = locks.clone();
            thread::spawn(move || {
                let block = begin(&locks, Wait::Forever).unwrap();
                let got = now();
                block.end().unwrap();
                got
            })
        });
        let others: Vec<_> = others.collect();
        thread::sleep(WHILE);
        let released = now();
        let releaser = thread::spawn(|| holder.end().unwrap());
        first.give_up();
        releaser.join().unwrap();
        waiter.join().unwrap();
        for other in others {
            let got = other.join().unwrap();
            let passed = got.saturating_sub(released);
            assert!(passed < Duration::from_millis(250), "{passed:?}");
        }
        // It has left nothing behind that others would wait for.
        let begun = now();
        begin(&both[0], Wait::Not).unwrap().end().unwrap();
        assert!(now().saturating_sub(begun) < Duration::from_millis(10));
        for locks in both {
            locks.close(budget()).unwrap();
        }
        assert!(!store.database().row(&name()).is_live());
    });
}

/// A block ends in one thread while another thread of the process asks for the lock without
/// waiting: it is not refused because of the ending hold, and gets its answer once that has ended.
#[test]
fn whoever_asks_while_a_block_ends_waits_for_that() {
    explore(Pace::Idle, || {
        let locks = locks(&Store::default(), 3600.0);
        let Block { lock, entered, .. } = begin(&locks, Wait::Not).unwrap();
        let ending = locks.begin_exit(&lock, Some(entered));
        let finishing = locks.clone();
        let by_itself = once_in(2);
        let finisher = thread::spawn(move || {
            if by_itself {
                finishing.finish_later(&name(), ending);
            } else {
                finishing.finish(&name(), ending, budget()).unwrap();
            }
        });
        let begun = now();
        let block = begin(&locks, Wait::Not).unwrap();
        assert!(now().saturating_sub(begun) < Duration::from_millis(10));
        block.end().unwrap();
        finisher.join().unwrap();
        locks.close(budget()).unwrap();
    });
}
