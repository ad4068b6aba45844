//! Acquires a lock step by step, so that a thread can do it as well as a coroutine that must not
//! block: the driver calls [`Acquisition::step`] whenever it is due or was woken, and
//! [`Acquisition::accept`] once the lock is granted.
//!
//! | state   | step                         | accept                | give up               |
//! |---------|------------------------------|-----------------------|-----------------------|
//! | Asking  | asks: Granted, or Asking     |                       | Over                  |
//! | Granted | nothing                      | in time: Over, held   | Over, a release owed  |
//! |         |                              | late: Asking          |                       |
//! | Over    | an error                     |                       | nothing               |

use super::granting::Request;
use super::locked;
use super::locks::Locks;
use super::registry::{Callbacks, registry};
use super::wait::Wait;
use super::waiters::Waiter;
use super::wakeup::Wakeup;
use super::watch::{Attempted, Watch};
use crate::engine::{Attempt, Caller, Entered, Grant, Loss, Moment, Name, Outcome, Token};
use crate::error::{Error, Result};
use crate::store::Budget;
use crate::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
use crate::sync::{Instant, Mutex, process_id};
use std::sync::Arc;

mod asking;

/// The outcome of a step.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The lock was granted: [`Acquisition::accept`] it.
    Granted,
    /// Step again at this instant, or when woken.
    Sleep(Instant),
}

enum State {
    Asking,
    Granted(Grant),
    Over,
}

struct Progress {
    state: State,
    waiter: Option<Arc<Waiter>>,
    /// A statement whose answer was lost may have taken the lock with this token.
    unknown: bool,
    /// The lock was granted, but the answer came too late.
    late: bool,
    /// The last answer: nobody holds the lock, but its row is locked.
    busy: bool,
    /// Tells the observer how the attempt ended.
    watch: Option<Watch>,
}

impl Progress {
    /// The attempt has ended: tells the observer, unless already told.
    fn ended(&mut self, name: &Name, how: Attempted) {
        if let Some(watch) = &mut self.watch {
            watch.end(name, how);
        }
    }
}

/// One attempt to acquire a lock.
pub struct Acquisition {
    locks: Arc<Locks>,
    name: Name,
    request: Request,
    wait: Wait,
    wakeup: Arc<Wakeup>,
    /// The process that made the attempt. A child forked in the meantime must leave it alone.
    process: u32,
    given_up: AtomicBool,
    /// The token to acquire with.
    token: Mutex<Token>,
    progress: Mutex<Progress>,
}

/// Dropping it without accepting leaves neither a hold nor a place in the line.
impl Drop for Acquisition {
    fn drop(&mut self) {
        if !self.is_the_parents() {
            let mut progress = locked(&self.progress);
            self.end(&mut progress);
            progress.ended(&self.name, Attempted::Cancelled);
            drop(progress);
            if self.is_given_up() {
                self.locks.landed(&self.name, &locked(&self.token));
            }
        }
    }
}

impl Acquisition {
    /// Joins this process's line, unless the caller is not going to wait. Nothing else happens
    /// before the first step.
    #[must_use]
    pub fn new(
        locks: Arc<Locks>,
        name: Name,
        request: Request,
        wait: Wait,
        wakeup: Wakeup,
    ) -> Acquisition {
        let wakeup = Arc::new(wakeup);
        let watch = locks.watch();
        let waits = !wait.over() && locks.is_fresh(&request);
        let waiter = waits.then(|| locks.waiters().join(&name, wakeup.clone()));
        Acquisition {
            locks,
            name,
            request,
            wait,
            wakeup,
            process: process_id(),
            given_up: AtomicBool::new(false),
            token: Mutex::new(Token::random()),
            progress: Mutex::new(Progress {
                state: State::Asking,
                waiter,
                unknown: false,
                late: false,
                busy: false,
                watch,
            }),
        }
    }

    /// The locks it belongs to.
    #[must_use]
    pub fn locks(&self) -> &Arc<Locks> {
        &self.locks
    }

    /// Whether the caller has given up.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(SeqCst)
    }

    /// Proceeds as far as possible without sleeping. Only one thread at a time may call this.
    pub fn step(&self, budget: Budget) -> Result<Step> {
        if self.is_the_parents() {
            return Err(Error::Forked);
        }
        let step = self.step_locked(self.wait.bounds(budget));
        // A caller that gave up while we held the mutex could not end it, see `give_up`: either we
        // see the flag or that caller gets the mutex.
        fence(SeqCst);
        if self.is_given_up() && !self.is_the_parents() {
            self.end_given_up();
            return step.and(Err(Error::Interrupted));
        }
        step
    }

    fn step_locked(&self, budget: Budget) -> Result<Step> {
        let mut progress = locked(&self.progress);
        let step = match progress.state {
            State::Granted(_) => return Ok(Step::Granted),
            State::Over => Err(Error::Interrupted),
            State::Asking => self.advance(&mut progress, budget),
        };
        match step {
            // The line and the owed releases are the parent's.
            Err(Error::Forked) => Err(Error::Forked),
            Err(error) => {
                let how = match &error {
                    _ if self.is_given_up() => Attempted::Cancelled,
                    error => Attempted::with(error),
                };
                progress.ended(&self.name, how);
                progress.unknown |= error.outcome_unknown();
                if matches!(error, Error::NotAcquired(..)) {
                    // Leave the queue before the refusal is returned, so that nobody finds our ticket
                    // in it afterwards.
                    if let Some(ticket) = self.leave_line(&mut progress) {
                        self.locks.leave_queue_now(&self.name, ticket);
                    }
                }
                self.end(&mut progress);
                Err(error)
            }
            step => step,
        }
    }

    /// The same, if it needs nothing from the database: a waiter that does not lead its line.
    pub fn sleeps(&self) -> Option<Instant> {
        if self.is_the_parents() {
            return None;
        }
        let progress = locked(&self.progress);
        let waiter = progress.waiter.as_ref()?;
        if self.wait.over() {
            return None;
        }
        let leads = self.locks.waiters().leads(waiter);
        (!leads).then(|| self.wait.limit(None))
    }

    /// Tells the owner `caller` that it has the lock: from now on it must release it. `None` if the
    /// answer came too late; then the hold was given back and the wait goes on.
    pub fn accept(
        &self,
        caller: Option<&Caller>,
        callbacks: Callbacks,
    ) -> Result<Option<(Entered, Token)>> {
        if self.is_the_parents() {
            return Err(Error::Forked);
        }
        let mut progress = locked(&self.progress);
        let State::Granted(grant) = &progress.state else {
            return Err(Error::Interrupted);
        };
        let grant = grant.clone();
        if self.is_given_up() {
            self.end(&mut progress);
            return Err(Error::Interrupted);
        }
        let watched = &registry(self.process).watched;
        if let Some(watch) = progress.watch.as_ref().filter(|_| !grant.again) {
            // Before the hold can be lost.
            watched.add(&grant.key, grant.deadline, watch);
        }
        if self.locks.open(&grant, caller, callbacks, self.process) {
            let how = if grant.again {
                Attempted::Reentered
            } else {
                Attempted::Acquired(grant.fence)
            };
            progress.ended(&self.name, how);
            progress.state = State::Over;
            return Ok(Some((grant.entered, grant.key.token)));
        }
        if grant.again {
            progress.state = State::Over;
            let late = grant.deadline.passed(Moment::now());
            let reason = if late { Loss::Expired } else { Loss::Released };
            progress.ended(&self.name, Attempted::Lost(reason));
            return Err(Error::Expired(grant.key.name, grant.key.token, reason));
        }
        watched.remove(&grant.key);
        self.end(&mut progress);
        progress.late = true;
        if self.wait.over() {
            progress.ended(&self.name, Attempted::Lost(Loss::Expired));
            return Err(self.too_late());
        }
        *locked(&self.token) = Token::random();
        progress.state = State::Asking;
        Ok(None)
    }

    fn is_the_parents(&self) -> bool {
        process_id() != self.process
    }

    /// Leaves the line. Returns the ticket if this was the process's last waiter.
    fn leave_line(&self, progress: &mut Progress) -> Option<i64> {
        let waiter = progress.waiter.take()?;
        self.locks.waiters().left(&waiter, Outcome::GaveUp)
    }

    /// Ends the attempt: leaves neither a hold nor a place in the line. Sends nothing itself.
    fn end(&self, progress: &mut Progress) {
        if let Some(ticket) = self.leave_line(progress) {
            self.locks.leave_queue(&self.name, ticket);
        }
        let token = locked(&self.token).clone();
        let lease = self.locks.lease_of(&self.request);
        let unknown = std::mem::take(&mut progress.unknown);
        match std::mem::replace(&mut progress.state, State::Over) {
            State::Granted(grant) if !grant.again => {
                self.locks.owe(&self.name, &token, Attempt::Release, lease);
            }
            State::Asking if unknown => {
                self.locks.owe(&self.name, &token, Attempt::Acquire, lease);
            }
            State::Asking | State::Granted(_) if self.is_given_up() => {
                self.locks.landed(&self.name, &token);
            }
            State::Asking | State::Granted(_) | State::Over => {}
        }
    }

    /// Gives up, even during a step, whose statement is then abandoned. Does not block. Later
    /// callers that ask for the lock wait for the outcome.
    pub fn give_up(&self) {
        if self.is_the_parents() {
            return;
        }
        let token = locked(&self.token).clone();
        let lease = self.locks.lease_of(&self.request);
        // Before the step can see the flag and end.
        self.locks
            .begin(&self.name, &token, Attempt::Acquire, lease);
        self.given_up.store(true, SeqCst);
        fence(SeqCst);
        self.end_given_up();
    }

    /// Ends an attempt that was given up; if a thread is in a step, that thread does it.
    fn end_given_up(&self) {
        if let Ok(mut progress) = self.progress.try_lock() {
            match progress.state {
                State::Over => self.locks.landed(&self.name, &locked(&self.token)),
                _ => {
                    self.end(&mut progress);
                    progress.ended(&self.name, Attempted::Cancelled);
                }
            }
        }
    }

    /// Steps and sleeps on the calling thread until the lock is granted.
    pub fn wait_for(&self, budget: Budget) -> Result<()> {
        let timeout = self.locks.store().timeout();
        loop {
            let Step::Sleep(until) = self.step(budget.renewed(timeout))? else {
                return Ok(());
            };
            let waiter = locked(&self.progress).waiter.clone();
            let now = Instant::now();
            let left = until.saturating_duration_since(now);
            let slice = budget.renewed(left).slice();
            if let (Some(waiter), Some(slice)) = (waiter, slice) {
                self.locks.waiters().sleep(&waiter, now + slice);
            }
            if let Err(error) = budget.check() {
                if !self.is_the_parents() {
                    self.end(&mut locked(&self.progress));
                }
                return Err(error);
            }
        }
    }
}
