//! Acquiring with patience, a step at a time, so that a thread can do it as well
//! as a coroutine that must not block: whoever drives it calls [`Acquisition::step`]
//! whenever it is due or the bell has rung.

use crate::engine::{Token, Trace};
use crate::error::{Error, Result};
use crate::locks::{Entering, Lock, Locks};
use crate::store::{Answer, Candidate, Patience, Queue, Turn};
use crate::waiting::{Bell, Plan, Waiter};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long to wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Up to an instant.
    Until(Instant),
    /// For ever.
    Forever,
}

impl Wait {
    /// From a timeout; `None` is for ever.
    #[must_use]
    pub fn new(timeout: Option<Duration>) -> Wait {
        match timeout {
            Some(Duration::ZERO) => Wait::No,
            Some(timeout) => Instant::now()
                .checked_add(timeout)
                .map_or(Wait::Forever, Wait::Until),
            None => Wait::Forever,
        }
    }

    fn over(self) -> bool {
        match self {
            Wait::No => true,
            Wait::Until(until) => Instant::now() >= until,
            Wait::Forever => false,
        }
    }

    /// When to look again: at `due`, but not after the end.
    fn limit(self, due: Option<Instant>) -> Instant {
        // In an hour, if nothing is going to happen.
        let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        match self {
            Wait::Until(until) => until.min(due),
            Wait::No | Wait::Forever => due,
        }
    }
}

/// What came of a step.
#[derive(Debug)]
pub enum Step {
    /// The lock is held.
    Acquired(Token),
    /// Again at this instant, or when the bell rings.
    Sleep(Instant),
}

#[derive(Default)]
struct Progress {
    waiter: Option<Arc<Waiter>>,
    acquired: bool,
    /// The outcome of a statement is not known.
    unsure: bool,
    given_up: bool,
}

/// One attempt to acquire a lock.
pub struct Acquisition {
    locks: Arc<Locks>,
    lock: Arc<Lock>,
    entering: Entering,
    wait: Wait,
    /// Whose attempt it is. A child forked meanwhile has nothing to do with it.
    process: u32,
    progress: Mutex<Progress>,
}

/// Whoever drops it without having acquired leaves no place in the line.
impl Drop for Acquisition {
    fn drop(&mut self) {
        let progress = self
            .progress
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let mut progress = std::mem::take(progress);
        if !progress.acquired {
            self.withdraw(&mut progress, true);
        }
    }
}

impl Acquisition {
    /// Takes a place in the line of this process, if it may come to waiting.
    /// Nothing else happens before the first step.
    #[must_use]
    pub fn new(
        locks: Arc<Locks>,
        lock: Arc<Lock>,
        entering: Entering,
        wait: Wait,
        bell: Bell,
    ) -> Acquisition {
        let mut progress = Progress::default();
        if wait != Wait::No && !locks.is_entered(&lock, entering.owner) {
            let (token, doubted) = locks.token_for(lock.name());
            // A statement with this token may have acquired already.
            progress.unsure = doubted;
            let lease = entering.lease.unwrap_or(locks.lease());
            let waiter = locks.waiters().join(lock.name(), token, lease, bell);
            progress.waiter = Some(waiter);
        }
        Acquisition {
            locks,
            lock,
            entering,
            wait,
            process: std::process::id(),
            progress: Mutex::new(progress),
        }
    }

    /// The locks it is about.
    #[must_use]
    pub fn locks(&self) -> &Arc<Locks> {
        &self.locks
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on as far as possible without sleeping.
    pub fn step(&self, patience: Patience) -> Result<Step> {
        if self.is_the_parents() {
            return Err(Error::Forked);
        }
        let mut progress = self.progress();
        if progress.given_up {
            return Err(Error::Interrupted);
        }
        let result = self.advance(&mut progress, patience);
        match &result {
            Ok(Step::Acquired(_)) => {
                progress.acquired = true;
                progress.waiter = None;
            }
            Ok(Step::Sleep(_)) => {}
            Err(error) => {
                progress.unsure |= error.outcome_unknown();
                self.withdraw(&mut progress, matches!(error, Error::Interrupted));
            }
        }
        result
    }

    fn advance(&self, progress: &mut Progress, patience: Patience) -> Result<Step> {
        let held = || Error::Held(self.lock.name().clone());
        let Some(waiter) = progress.waiter.clone() else {
            let acquired = self.locks.acquire(&self.lock, self.entering, patience);
            return acquired.map(Step::Acquired);
        };
        let waiters = self.locks.waiters();
        loop {
            let answer = match waiters.plan(&waiter) {
                Plan::Sleep(_) if self.wait.over() => return Err(held()),
                Plan::Sleep(due) => return Ok(Step::Sleep(self.wait.limit(due))),
                Plan::Try => self
                    .locks
                    .ask(
                        &waiter.name,
                        &waiter.token,
                        waiter.lease,
                        progress.unsure,
                        patience,
                    )
                    .map(|answer| match answer {
                        Answer::Acquired(fence, deadline) => Some((fence, deadline)),
                        Answer::Held { unsure } => {
                            progress.unsure |= unsure;
                            if waiters.refused(&waiter) {
                                self.locks.attend_waiters();
                            }
                            None
                        }
                    }),
                Plan::Ask {
                    ticket,
                    previous,
                    known,
                    called,
                } => {
                    let candidate = Candidate {
                        name: &waiter.name,
                        token: &waiter.token,
                        lease: waiter.lease,
                        ticket,
                        previous,
                    };
                    let store = self.locks.store();
                    let mut turn = Ok(Turn::Later(Queue::default()));
                    if called {
                        turn = store.take(candidate, patience);
                    }
                    if let Ok(Turn::Later(queue)) = &turn {
                        progress.unsure |= queue.unsure;
                        turn = store.wait(candidate, &known, patience);
                    }
                    if matches!(turn, Err(Error::Forked)) {
                        return Err(Error::Forked);
                    }
                    let taken = turn.map(|turn| match turn {
                        Turn::Acquired(fence, deadline) => Some((fence, deadline)),
                        Turn::Later(queue) => {
                            progress.unsure |= queue.unsure;
                            waiters.found(&waiter, queue);
                            None
                        }
                    });
                    // Where one waits, others often do: whoever releases in this
                    // process had better expect it.
                    self.locks
                        .leave_trace(patience, &waiter.name, Some(Trace::Awaited));
                    taken
                }
            };
            match answer {
                Ok(Some((fence, deadline))) => {
                    self.locks.entered(
                        &self.lock,
                        &waiter.token,
                        fence,
                        deadline,
                        self.entering,
                        patience,
                    );
                    progress.unsure = false;
                    let lease = Duration::from_secs_f64(waiter.lease.seconds());
                    // Its ticket has left the queue in the same statement, unless
                    // it was not asked for through the queue.
                    let ticket = waiters.left(&waiter, Some(lease));
                    if let Some(ticket) = ticket.filter(|_| waiters.is_deaf()) {
                        self.leave_later(&waiter, ticket);
                    }
                    return Ok(Step::Acquired(waiter.token.clone()));
                }
                Ok(None) if self.wait.over() => return Err(held()),
                Ok(None) => {}
                // The line is the parent's.
                Err(Error::Forked) => return Err(Error::Forked),
                Err(error) => {
                    waiters.failed(&waiter);
                    return Err(error);
                }
            }
        }
    }

    fn is_the_parents(&self) -> bool {
        std::process::id() != self.process
    }

    fn leave_later(&self, waiter: &Arc<Waiter>, ticket: i64) {
        let (locks, name) = (self.locks.clone(), waiter.name.clone());
        self.locks
            .submit(Box::new(move || locks.leave(&name, ticket)));
    }

    /// Leaves the queues; in the database at once, unless the caller is in a hurry.
    fn withdraw(&self, progress: &mut Progress, hurry: bool) {
        if self.is_the_parents() {
            return;
        }
        let Some(waiter) = progress.waiter.take() else {
            return;
        };
        let ticket = self.locks.waiters().left(&waiter, None);
        if std::mem::take(&mut progress.unsure) {
            self.locks.clean_up(&waiter.name, &waiter.token, ticket);
        } else if let Some(ticket) = ticket {
            if hurry {
                self.leave_later(&waiter, ticket);
            } else {
                self.locks.leave(&waiter.name, ticket);
            }
        }
    }

    /// Nobody wants the lock any more: leaves neither a hold nor a place in the
    /// queue, also if a step is under way. Does not block.
    pub fn give_up(self: &Arc<Acquisition>) {
        if self.is_the_parents() {
            return;
        }
        let this = self.clone();
        self.locks.submit(Box::new(move || {
            let mut progress = this.progress();
            progress.given_up = true;
            this.withdraw(&mut progress, false);
            if std::mem::take(&mut progress.acquired) {
                let patience = Patience::new(this.locks.store().timeout(), &|| Ok(()));
                let owner = this.entering.owner;
                let released =
                    this.locks
                        .release(&this.lock, owner, None, this.entering.block, patience);
                if let Err(error) = released {
                    log::debug!("releasing what nobody wants any more: {error}");
                }
            }
        }));
    }

    /// Steps and sleeps on the calling thread.
    pub fn run(self: &Arc<Acquisition>, patience: Patience) -> Result<Token> {
        let timeout = self.locks.store().timeout();
        loop {
            match self.step(patience.renewed(timeout))? {
                Step::Acquired(token) => return Ok(token),
                Step::Sleep(until) => {
                    let waiter = self.progress().waiter.clone();
                    let now = Instant::now();
                    let slice = patience
                        .renewed(until.saturating_duration_since(now))
                        .slice();
                    if let (Some(waiter), Some(slice)) = (waiter, slice) {
                        self.locks.waiters().sleep(&waiter, now + slice);
                    }
                    if let Err(error) = patience.check() {
                        self.withdraw(&mut self.progress(), true);
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// The bell of a thread.
#[must_use]
pub fn thread_bell() -> Bell {
    Bell::Thread(Condvar::new())
}
