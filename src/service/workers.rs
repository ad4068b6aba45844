//! Worker threads for calls from an event loop, which must not block its own thread.

use crate::error::Result;
use crate::store::Budget;
use crate::sync::{Condvar, Mutex, MutexGuard, thread};
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Something to be done.
pub type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// All threads should leave as soon as there is nothing to do.
    retired: bool,
}

/// A few threads, started on demand, that leave after a while without work.
#[derive(Default)]
pub struct Workers {
    queue: Mutex<Queue>,
    arrived: Condvar,
    left: Condvar,
}

/// How long an idle thread stays.
const QUIET: Duration = Duration::from_secs(10);

impl Workers {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No critical section can fail half-way.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has one of at most `most` threads do the job soon; the caller's own thread if no other can
    /// be started.
    pub fn submit(self: &Arc<Workers>, most: usize, job: Job) {
        let mut queue = self.queue();
        queue.retired = false;
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.threads < most {
            queue.threads += 1;
            drop(queue);
            let workers = self.clone();
            let started = thread::Builder::new()
                .name("distlock-work".to_owned())
                .spawn(move || workers.work());
            if started.is_err() {
                let mut queue = self.queue();
                queue.threads -= 1;
                if queue.threads == 0 {
                    while let Some(job) = queue.jobs.pop_front() {
                        drop(queue);
                        job();
                        queue = self.queue();
                    }
                }
            }
            return;
        }
        drop(queue);
        self.arrived.notify_one();
    }

    /// Waits until all have left, or the time is over.
    pub fn retire(&self, budget: Budget) -> Result<()> {
        self.queue().retired = true;
        self.arrived.notify_all();
        while let Some(slice) = budget.slice() {
            let queue = self.queue();
            if queue.threads == 0 || !queue.retired {
                break;
            }
            drop(self.left.wait_timeout(queue, slice));
            budget.check()?;
        }
        Ok(())
    }

    fn work(&self) {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue();
                continue;
            }
            // Checked here too: a busy thread misses the notification.
            let mut leaves = queue.retired;
            if !leaves {
                queue.idle += 1;
                let (woken, waited) = self
                    .arrived
                    .wait_timeout(queue, QUIET)
                    .unwrap_or_else(PoisonError::into_inner);
                queue = woken;
                queue.idle -= 1;
                leaves = (waited.timed_out() || queue.retired) && queue.jobs.is_empty();
            }
            if leaves {
                queue.threads -= 1;
                self.left.notify_all();
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
            workers.submit(8, Box::new(move || sender.send(number).unwrap()));
        }
        let mut done: Vec<i32> = receiver.iter().take(100).collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn who_is_busy_while_all_retire_leaves_when_it_is_done() {
        let workers: Arc<Workers> = Arc::default();
        let busy = workers.clone();
        let job = move || while !busy.queue().retired {};
        workers.submit(1, Box::new(job));
        // Shorter than the time after which an idle thread leaves anyway.
        let budget = Budget::new(QUIET / 2, &|| Ok(()));
        workers.retire(budget).unwrap();
        assert_eq!(workers.queue().threads, 0);
    }
}
