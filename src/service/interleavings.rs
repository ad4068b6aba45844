//! What the threads of a process do to each other, in many orders: `make threads`.

use super::*;
use crate::engine::{Caller, Lease, Name, Place, Token};
use crate::error::Error;
use crate::store::{Patience, Store};
use crate::sync::simulated::{Pace, exit, explore, fork, is_forked, now, once_in, step};
use crate::sync::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

fn patience() -> Patience<'static> {
    Patience::new(MINUTE, &|| Ok(()))
}

fn locks_in(store: &Store, seconds: f64) -> Arc<Locks> {
    let lease = Lease::from_seconds(seconds).unwrap();
    Arc::new(Locks::new(store.clone(), lease, true))
}

#[test]
fn every_job_is_done_once_and_all_workers_leave() {
    for pace in [Pace::Idle, Pace::Any] {
        explore(pace, || {
            let workers: Arc<workers::Workers> = Arc::default();
            let done: Arc<[AtomicU32; 6]> = Arc::default();
            let submitters = [0, 3].map(|first| {
                let (workers, done) = (workers.clone(), done.clone());
                thread::spawn(move || {
                    for number in first..first + 3 {
                        let done = done.clone();
                        let job = move || {
                            step();
                            done[number].fetch_add(1, SeqCst);
                        };
                        workers.submit(2, Box::new(job));
                        if once_in(2) {
                            // About as long as a worker stays without work.
                            thread::sleep(Duration::from_secs(10));
                        }
                    }
                })
            });
            submitters.map(|thread| thread.join().unwrap());
            workers.retire(patience()).unwrap();
            assert_eq!(done.each_ref().map(|times| times.load(SeqCst)), [1; 6]);
        });
    }
}
