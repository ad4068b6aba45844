//! Transfers of a token, releases by it, and what may come between them.

use super::*;

/// Transfers for a coroutine that may be cancelled at once. Returns the new token if it was read.
fn transfer(locks: &Locks, old: Token) -> Option<Token> {
    let lock = Lock::new(name());
    let begun = locks.begin_transfer(&lock, &nobody(), Some(old)).ok()?;
    let given_up = once_in(4);
    if given_up {
        locks.transfer_failed(&begun);
    }
    let confirmed = locks.transfer(&lock, &begun, budget()).ok()?;
    step();
    if given_up {
        return None;
    }
    let token = confirmed.in_time().ok()?.clone();
    confirmed.read().ok().map(|()| token)
}

/// Transfers, releases and an extension race with one token: one of the first two gets the hold,
/// even if a transfer is given up or statements fail; a token that was read stays valid, and if
/// none was, the old one still ends the hold.
#[test]
fn of_transfers_and_releases_by_one_token_one_has_the_hold() {
    explore(Pace::Idle, || {
        let store = Store::default();
        // Two configurations of one process.
        let all = [0, 1].map(|_| locks(&store, 3600.0));
        let either = || all[usize::from(once_in(2))].clone();
        let old = begin(&either(), Wait::Not).unwrap().token;
        let faulty = once_in(2);
        store.set_faults(faulty, false);
        let transfers = [0, 1].map(|_| {
            let (locks, old) = (either(), old.clone());
            thread::spawn(move || transfer(&locks, old))
        });
        let releases = [0, 1].map(|_| {
            let (locks, old) = (either(), old.clone());
            thread::spawn(move || {
                let ending = locks.begin_release(&Lock::new(name()), &nobody(), Some(&old));
                locks.finish(&name(), ending, budget())
            })
        });
        let extension = {
            let (locks, old) = (either(), old.clone());
            thread::spawn(move || {
                let _ = locks.extend(&Lock::new(name()), &nobody(), Some(old), budget());
            })
        };
        extension.join().unwrap();
        let read = transfers.map(|transfer| transfer.join().unwrap());
        let released = releases.map(|release| release.join().unwrap());
        store.set_faults(false, false);
        for locks in &all {
            locks.close(budget()).unwrap();
        }
        if read.iter().all(Option::is_none) {
            let lock = Lock::new(name());
            let ending = all[0].begin_release(&lock, &nobody(), Some(&old));
            let _ = all[0].finish(&name(), ending, budget());
            assert!(!store.database().row(&name()).is_live());
        }
        let done = released.iter().filter(|release| release.is_ok()).count();
        let read: Vec<Token> = read.into_iter().flatten().collect();
        assert!(read.len() <= 1, "{read:?}");
        // After a failure, a release is told that its token's hold has ended, which is true.
        assert!(faulty || read.len() + done == 1, "{read:?} {released:?}");
        if let [token] = &read[..] {
            assert!(store.database().row(&name()).is_held(token), "{released:?}");
        }
    });
}
