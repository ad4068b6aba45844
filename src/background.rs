//! Threads for what nobody waits for, or cannot wait for on its own thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Something to be done.
pub type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Desk {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// A few threads that come when there is something to do and leave when there
/// has been nothing for a while.
#[derive(Default)]
pub struct Workers {
    desk: Mutex<Desk>,
    arrived: Condvar,
}

/// As many as may work at once.
const MOST: usize = 8;
/// How long one stays without work.
const PATIENCE: Duration = Duration::from_secs(10);

impl Workers {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // No step on it can fail half-way.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the job done soon, by one of the threads; by the caller's own if
    /// there cannot be any.
    pub fn submit(self: &Arc<Workers>, job: Job) {
        let mut desk = self.desk();
        desk.jobs.push_back(job);
        if desk.jobs.len() > desk.idle && desk.threads < MOST {
            desk.threads += 1;
            drop(desk);
            let workers = self.clone();
            let started = thread::Builder::new()
                .name("distlock-work".to_owned())
                .spawn(move || workers.work());
            if started.is_err() {
                let mut desk = self.desk();
                desk.threads -= 1;
                if desk.threads == 0 {
                    while let Some(job) = desk.jobs.pop_front() {
                        drop(desk);
                        job();
                        desk = self.desk();
                    }
                }
            }
            return;
        }
        drop(desk);
        self.arrived.notify_one();
    }

    fn work(&self) {
        let mut desk = self.desk();
        loop {
            if let Some(job) = desk.jobs.pop_front() {
                drop(desk);
                job();
                desk = self.desk();
                continue;
            }
            desk.idle += 1;
            let (woken, waited) = self
                .arrived
                .wait_timeout(desk, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            desk = woken;
            desk.idle -= 1;
            if waited.timed_out() && desk.jobs.is_empty() {
                desk.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn every_job_is_done_even_if_there_are_more_than_threads() {
        let workers: Arc<Workers> = Arc::default();
        let (sender, receiver) = channel();
        for number in 0..100 {
            let sender = sender.clone();
            workers.submit(Box::new(move || sender.send(number).unwrap()));
        }
        let mut done: Vec<i32> = receiver.iter().take(100).collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
    }
}
