//! The operations on locks: asks the engine what to do, has the store do it,
//! tells the engine what came of it.

use crate::background::{Job, Workers};
use crate::engine::{Deadline, Ending, Entry, Holds, Lease, Name, Owner, Token, Trace, Traces};
use crate::error::{Error, Result};
use crate::extending::{Extender, OnLost};
use crate::process::ProcessLocal;
use crate::store::{Answer, Doubt, Look, Patience, Released, Store};
use crate::waiting::Waiters;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What one Lock object knows in this process.
#[derive(Default)]
struct Known {
    holds: Holds,
    /// The fence of a hold whose token was given to this object and that it
    /// did not acquire itself.
    presented: Option<i64>,
}

/// The core of a Lock object.
pub struct Lock {
    name: Name,
    known: ProcessLocal<Mutex<Known>>,
}

/// Calls that failed before their outcome was known. Whoever tries the same
/// again goes on where the failed call stopped, so that nothing is lost and
/// nobody is refused because of itself.
#[derive(Default)]
struct Doubts {
    /// The token with which the name may have been acquired.
    acquired: HashMap<Name, (Token, Deadline)>,
    /// The new token that the hold of the old one may have.
    transferred: HashMap<(Name, String), (Token, Deadline)>,
    /// The tokens whose holds may have been released.
    released: HashMap<(Name, String), Deadline>,
}

impl Doubts {
    /// Nothing that happened longer than a lease ago matters any more.
    fn forget_the_past(&mut self) {
        let now = Instant::now();
        self.acquired.retain(|_, (_, until)| !until.passed(now));
        self.transferred.retain(|_, (_, until)| !until.passed(now));
        self.released.retain(|_, until| !until.passed(now));
    }
}

/// The locks of one configuration.
pub struct Locks {
    store: Store,
    lease: Lease,
    reentrant: bool,
    doubts: ProcessLocal<Mutex<Doubts>>,
    traces: ProcessLocal<Mutex<Traces>>,
    waiters: ProcessLocal<Waiters>,
    extender: ProcessLocal<Extender>,
    workers: ProcessLocal<Workers>,
}

/// How a lock is to be acquired.
#[derive(Clone, Copy, Debug)]
pub struct Entering {
    /// Who wants it.
    pub owner: Owner,
    /// It is the beginning of a `with` block.
    pub block: bool,
    /// Another lease than `maxtime`.
    pub lease: Option<Lease>,
}

/// No step under these mutexes can fail half-way, so a panic elsewhere spoils nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lock {
    /// A lock that nobody holds through this object.
    #[must_use]
    pub fn new(name: Name) -> Lock {
        Lock {
            name,
            known: ProcessLocal::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    fn with<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut locked(&self.known.get()))
    }

    /// The same in the process that made a call.
    fn within<T>(&self, call: Patience, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut locked(&self.known.of(call.process)))
    }

    /// Under which its hold of this token is found among the doubts.
    fn doubt_about(&self, token: &Token) -> (Name, String) {
        (self.name.clone(), token.as_str().to_owned())
    }

    /// The token of the owner's hold, or else of the latest of this object.
    #[must_use]
    pub fn token(&self, owner: Owner) -> Option<Token> {
        self.with(|known| known.holds.of(owner).map(|hold| hold.token.clone()))
    }

    /// The fencing number of the same hold, or of the token that was presented last.
    #[must_use]
    pub fn fence(&self, owner: Owner) -> Option<i64> {
        self.with(|known| match known.holds.of(owner) {
            Some(hold) => hold.fence,
            None => known.presented,
        })
    }

    /// For how many seconds it is certainly held; 0 if it is not.
    #[must_use]
    pub fn remaining(&self, owner: Owner) -> f64 {
        let now = Instant::now();
        self.with(|known| match known.holds.of(owner) {
            Some(hold) if !hold.expired(now) => hold.deadline.remaining(now),
            _ => 0.0,
        })
    }

    /// Whether there was a hold and it is lost, or may be.
    #[must_use]
    pub fn expired(&self, owner: Owner) -> bool {
        self.with(|known| {
            known
                .holds
                .of(owner)
                .is_some_and(|hold| hold.expired(Instant::now()))
        })
    }

    /// Whether this object holds the lock, as far as it knows.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.with(|known| !known.holds.is_empty())
    }

    /// The token that was given, or that of the owner's hold.
    pub fn token_or(&self, owner: Owner, token: Option<Token>) -> Result<Token> {
        token
            .or_else(|| self.token(owner))
            .ok_or_else(|| Error::TokenRequired(self.name.clone()))
    }

    /// The innermost block of this token's hold extends it; tells its lease.
    pub(crate) fn extends(&self, token: &Token, number: u64) -> Option<Lease> {
        self.with(|known| {
            known.holds.extending(token, number);
            known.holds.extended_by(number).map(|hold| hold.lease)
        })
    }

    /// The innermost block of the owner's hold extends it no longer.
    pub fn stop_extending(&self, owner: Owner) {
        self.with(|known| known.holds.stop_extending(owner));
    }

    /// The hold that a block extends.
    pub(crate) fn extended_by(&self, number: u64) -> Option<(Token, Lease, Deadline)> {
        self.with(|known| {
            let hold = known.holds.extended_by(number)?;
            Some((hold.token.clone(), hold.lease, hold.deadline))
        })
    }

    /// The token that the hold which a block extends may have after a transfer.
    pub(crate) fn pending(&self, number: u64) -> Option<Token> {
        self.with(|known| known.holds.extended_by(number)?.pending.clone())
    }

    /// The hold that a block extends was extended, whatever its token is by now.
    pub(crate) fn renewed(&self, number: u64, deadline: Deadline) {
        self.with(|known| {
            let token = known
                .holds
                .extended_by(number)
                .map(|hold| hold.token.clone());
            if let Some(token) = token {
                known.holds.extended(&token, deadline);
            }
        });
    }

    /// The hold that a block extends is lost. `false` if there is none any more.
    pub(crate) fn forfeit(&self, number: u64) -> bool {
        self.with(|known| {
            let token = known
                .holds
                .extended_by(number)
                .map(|hold| hold.token.clone());
            if let Some(token) = &token {
                known.holds.forfeited(token);
            }
            token.is_some()
        })
    }

    /// A guard has seen the hold of this token in the database.
    pub fn seen(&self, token: &Token, fence: Option<i64>) {
        self.with(|known| {
            if known.holds.with_token(token).is_none() {
                known.presented = fence;
            }
        });
    }

    /// The database said that the hold of this token is gone.
    pub fn lost(&self, token: &Token) {
        self.with(|known| known.holds.lost(token));
    }
}

impl Locks {
    /// The locks in this store, with this lease.
    #[must_use]
    pub fn new(store: Store, lease: Lease, reentrant: bool) -> Locks {
        Locks {
            store,
            lease,
            reentrant,
            doubts: ProcessLocal::default(),
            traces: ProcessLocal::default(),
            waiters: ProcessLocal::default(),
            extender: ProcessLocal::default(),
            workers: ProcessLocal::default(),
        }
    }

    /// Who waits in this process.
    pub(crate) fn waiters(&self) -> Arc<Waiters> {
        self.waiters.get()
    }

    /// Has a job done by another thread.
    pub fn submit(&self, job: Job) {
        self.workers.get().submit(job);
    }

    /// Starts the thread that listens for waiters.
    pub(crate) fn attend_waiters(self: &Arc<Locks>) {
        let (locks, waiters) = (self.clone(), self.waiters.get());
        let started = thread::Builder::new()
            .name("distlock-listen".to_owned())
            .spawn(move || waiters.attend(&locks.store));
        if let Err(error) = started {
            log::warn!("no thread to listen for releases: {error}");
            self.waiters.get().unattended();
        }
    }

    /// Extends the hold of this token from now on until its innermost block is left.
    pub fn autoextend(self: &Arc<Locks>, lock: &Arc<Lock>, token: &Token, on_lost: Option<OnLost>) {
        if self.extender.get().add(lock, token, on_lost) {
            let (locks, extender) = (self.clone(), self.extender.get());
            let started = thread::Builder::new()
                .name("distlock-extend".to_owned())
                .spawn(move || extender.attend(&locks.store));
            if let Err(error) = started {
                log::warn!("no thread to extend holds: {error}");
                self.extender.get().unattended();
            }
        }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The lease of holds acquired or extended here: `maxtime`.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.lease
    }

    fn doubting<T>(&self, process: u32, work: impl FnOnce(&mut Doubts) -> T) -> T {
        let doubts = self.doubts.of(process);
        let mut doubts = locked(&doubts);
        doubts.forget_the_past();
        work(&mut doubts)
    }

    /// Remembers what a lock is like now.
    pub(crate) fn leave_trace(&self, call: Patience, name: &Name, trace: Option<Trace>) {
        locked(&self.traces.of(call.process)).leave(name, trace);
    }

    /// Asks the database for the lock, with the statement that suits what was seen of
    /// it last. With a `doubted` token it may be held already.
    pub(crate) fn ask(
        &self,
        name: &Name,
        token: &Token,
        lease: Lease,
        doubted: bool,
        patience: Patience,
    ) -> Result<Answer> {
        let trace = locked(&self.traces.of(patience.process)).of(name);
        let likely = match trace {
            _ if doubted => false,
            Some(Trace::Free) => true,
            // Who was refused just now is likely to be refused again.
            Some(Trace::Held) => match self.store.look(name, lease, patience)? {
                Look::Held => return Ok(Answer::Held { unsure: false }),
                Look::Free => true,
                Look::Missing => false,
            },
            Some(Trace::Awaited) | None => false,
        };
        let answer = self.store.acquire(name, token, lease, likely, patience)?;
        let trace = match answer {
            Answer::Held { .. } => Some(Trace::Held),
            // They still wait, so the release had better expect it.
            Answer::Acquired(..) => trace.filter(|trace| *trace == Trace::Awaited),
        };
        self.leave_trace(patience, name, trace);
        Ok(answer)
    }

    /// Until when an unknown outcome of now matters.
    fn doubt_ends(&self) -> Deadline {
        Deadline::new(Instant::now(), self.lease.seconds())
    }

    /// Acquires the lock for the owner, or enters its hold once more. Does not wait.
    pub fn acquire(&self, lock: &Lock, entering: Entering, patience: Patience) -> Result<Token> {
        match lock.within(patience, |known| {
            known.holds.entry(entering.owner, self.reentrant)
        }) {
            Entry::Again(token) => self.enter_again(lock, &token, entering, patience),
            Entry::Fresh => self.enter(lock, entering, patience),
        }
    }

    /// Whether the owner holds the lock and may enter its hold once more.
    pub(crate) fn is_entered(&self, lock: &Lock, owner: Owner) -> bool {
        lock.with(|known| known.holds.entry(owner, self.reentrant)) != Entry::Fresh
    }

    fn enter_again(
        &self,
        lock: &Lock,
        token: &Token,
        entering: Entering,
        patience: Patience,
    ) -> Result<Token> {
        let token = &self.resolve(lock, token, patience)?;
        // A block within may want a longer lease, but does not shorten it.
        let lease = self.lease_of(lock, token);
        let lease = entering.lease.map_or(lease, |wanted| wanted.max(lease));
        let confirmed = self
            .store
            .extend(&lock.name, token, lease, patience)?
            .is_some_and(|(_, deadline)| {
                lock.with(|known| {
                    known
                        .holds
                        .entered_again(token, deadline, lease, entering.block)
                })
            });
        if confirmed {
            return Ok(token.clone());
        }
        let key = lock.doubt_about(token);
        let doubted = self.doubting(patience.process, |doubts| doubts.released.remove(&key));
        if doubted.is_some() {
            // Its owner has released it, though that call did not learn so.
            lock.with(|known| known.holds.ended(token));
            return self.enter(lock, entering, patience);
        }
        lock.with(|known| known.holds.told(token));
        Err(Error::Expired(lock.name.clone(), token.clone()))
    }

    /// The lease of a hold that was acquired here, or else `maxtime`.
    fn lease_of(&self, lock: &Lock, token: &Token) -> Lease {
        lock.with(|known| {
            known
                .holds
                .with_token(token)
                .map_or(self.lease, |hold| hold.lease)
        })
    }

    /// The database has given the lock to the owner.
    pub(crate) fn entered(
        &self,
        lock: &Lock,
        token: &Token,
        fence: i64,
        deadline: Deadline,
        entering: Entering,
        call: Patience,
    ) {
        let lease = entering.lease.unwrap_or(self.lease);
        lock.within(call, |known| {
            known.holds.entered(
                entering.owner,
                token.clone(),
                Some(fence),
                deadline,
                lease,
                entering.block,
            );
        });
    }

    /// A token to acquire with: that of an attempt whose outcome is unknown
    /// (`true`), or a fresh one.
    pub(crate) fn token_for(&self, name: &Name) -> (Token, bool) {
        // Taken out of the doubts, so that no two calls use the same token.
        match self.doubting(std::process::id(), |doubts| doubts.acquired.remove(name)) {
            Some((token, _)) => (token, true),
            None => (Token::random(), false),
        }
    }

    fn enter(&self, lock: &Lock, entering: Entering, patience: Patience) -> Result<Token> {
        // As above, with its end.
        let doubted = self.doubting(patience.process, |doubts| {
            doubts.acquired.remove(&lock.name)
        });
        let (token, doubt) = match doubted {
            Some((token, until)) => (token, Some(until)),
            None => (Token::random(), None),
        };
        let lease = entering.lease.unwrap_or(self.lease);
        let answer = self.ask(&lock.name, &token, lease, doubt.is_some(), patience);
        let doubt = match answer {
            Ok(Answer::Acquired(fence, deadline)) => {
                self.entered(lock, &token, fence, deadline, entering, patience);
                return Ok(token);
            }
            Ok(Answer::Held { unsure: true }) => Some(self.doubt_ends()),
            // The statement that was given up may yet be executed.
            Ok(Answer::Held { unsure: false }) => doubt,
            Err(ref error) if error.outcome_unknown() => Some(self.doubt_ends()),
            // The doubts are the parent's, too.
            Err(Error::Forked) => None,
            Err(_) => doubt,
        };
        if let Some(until) = doubt {
            self.doubting(patience.process, |doubts| {
                doubts.acquired.insert(lock.name.clone(), (token, until))
            });
        }
        match answer {
            Err(error) => Err(error),
            Ok(_) => Err(Error::Held(lock.name.clone())),
        }
    }

    /// The token that the hold of `token` has: another one, if a transfer that
    /// seemed to fail has succeeded.
    fn resolve(&self, lock: &Lock, token: &Token, patience: Patience) -> Result<Token> {
        let key = lock.doubt_about(token);
        let Some((new, _)) = self.doubting(patience.process, |doubts| {
            doubts.transferred.get(&key).cloned()
        }) else {
            return Ok(token.clone());
        };
        let answer = self
            .store
            .transfer(&lock.name, token, &new, self.lease, patience)?;
        self.doubting(patience.process, |doubts| doubts.transferred.remove(&key));
        if answer.is_none() {
            return Ok(token.clone());
        }
        lock.with(|known| known.holds.transferred(token, new.clone()));
        Ok(new)
    }

    /// Gives the hold a new lease.
    pub fn extend(
        &self,
        lock: &Lock,
        owner: Owner,
        token: Option<Token>,
        patience: Patience,
    ) -> Result<()> {
        let token = lock.token_or(owner, token)?;
        let token = self.resolve(lock, &token, patience)?;
        let lease = self.lease_of(lock, &token);
        match self.store.extend(&lock.name, &token, lease, patience)? {
            Some((fence, deadline)) => {
                lock.with(|known| known.holds.extended(&token, deadline));
                lock.seen(&token, fence);
                Ok(())
            }
            None => {
                lock.lost(&token);
                Err(Error::Expired(lock.name.clone(), token))
            }
        }
    }

    /// Leaves the owner's hold once, or ends the hold of a token. `block` is
    /// the end of a `with` block.
    pub fn release(
        self: &Arc<Locks>,
        lock: &Lock,
        owner: Owner,
        token: Option<&Token>,
        block: bool,
        patience: Patience,
    ) -> Result<()> {
        let (extenders, ending) = lock.within(patience, |known| {
            let extenders = known.holds.extenders(owner, token);
            let ending = known.holds.ending(owner, token, block, Instant::now());
            (extenders, ending)
        });
        let ended = self.leave_hold(lock, ending, block, patience);
        for number in extenders {
            if lock.extended_by(number).is_none() {
                self.extender.get().remove(number);
            }
        }
        ended
    }

    fn leave_hold(
        self: &Arc<Locks>,
        lock: &Lock,
        ending: Ending,
        block: bool,
        patience: Patience,
    ) -> Result<()> {
        match ending {
            Ending::Inner => Ok(()),
            Ending::Nothing => Err(Error::TokenRequired(lock.name.clone())),
            Ending::Confirm(token) => {
                let forfeited = lock.with(|known| {
                    let hold = known.holds.with_token(&token);
                    hold.is_some_and(|hold| hold.forfeited)
                });
                let lease = self.lease_of(lock, &token);
                let answer = if forfeited {
                    Ok(None)
                } else {
                    self.store.extend(&lock.name, &token, lease, patience)
                };
                if block && matches!(answer, Err(Error::Interrupted)) {
                    // A block is left once only.
                    lock.with(|known| known.holds.left(&token, block));
                }
                let answer = answer?;
                lock.with(|known| {
                    known.holds.left(&token, block);
                    match answer {
                        Some((_, deadline)) => known.holds.extended(&token, deadline),
                        None => known.holds.lost(&token),
                    }
                });
                match answer {
                    Some(_) => Ok(()),
                    None => Err(Error::Expired(lock.name.clone(), token)),
                }
            }
            Ending::Release(token) => self.end(lock, &token, patience),
        }
    }

    fn end(self: &Arc<Locks>, lock: &Lock, token: &Token, patience: Patience) -> Result<()> {
        let (forfeited, held) =
            lock.within(patience, |known| match known.holds.with_token(token) {
                Some(hold) => (hold.forfeited, !hold.expired(Instant::now())),
                None => (false, false),
            });
        if forfeited {
            // Its lease is over, as far as anybody can know here; the database
            // may still be out of reach. If it does have the hold, it need not.
            lock.with(|known| known.holds.ended(token));
            self.clean_up(lock.name(), token, None);
            return Err(Error::Expired(lock.name.clone(), token.clone()));
        }
        let (transferred, again) = self.doubting(patience.process, |doubts| {
            if doubts.transferred.is_empty() && doubts.released.is_empty() {
                return (false, false);
            }
            let key = lock.doubt_about(token);
            let transferred = doubts.transferred.contains_key(&key);
            (transferred, doubts.released.contains_key(&key))
        });
        if transferred {
            let resolved = self.resolve(lock, token, patience);
            if resolved.is_err() {
                lock.with(|known| known.holds.not_ended(token));
            }
            let resolved = resolved?;
            if resolved != *token {
                return self.end(lock, &resolved, patience);
            }
        }
        let doubt = Doubt {
            held,
            again,
            awaited: locked(&self.traces.of(patience.process)).of(&lock.name)
                == Some(Trace::Awaited),
        };
        let released = self
            .store
            .release(&lock.name, token, self.lease, doubt, patience);
        let released = match released {
            Ok(released) => released,
            Err(error) => {
                if error.outcome_unknown() {
                    let until = self.doubt_ends();
                    self.doubting(patience.process, |doubts| {
                        doubts.released.insert(lock.doubt_about(token), until)
                    });
                }
                lock.with(|known| known.holds.not_ended(token));
                return Err(error);
            }
        };
        if again {
            self.doubting(patience.process, |doubts| {
                doubts.released.remove(&lock.doubt_about(token))
            });
        }
        lock.within(patience, |known| known.holds.ended(token));
        let trace = match released {
            Released::Quietly => Some(Trace::Free),
            Released::Calling => Some(Trace::Awaited),
            Released::Lost => None,
        };
        self.leave_trace(patience, &lock.name, trace);
        match released {
            Released::Quietly | Released::Calling => Ok(()),
            Released::Lost => Err(Error::Expired(lock.name.clone(), token.clone())),
        }
    }

    /// Sees to it that nothing is left of a hold or a place in the queue, as far
    /// as the database can be reached; nobody waits for that.
    pub(crate) fn clean_up(self: &Arc<Locks>, name: &Name, token: &Token, ticket: Option<i64>) {
        let (locks, name, token) = (self.clone(), name.clone(), token.clone());
        self.submit(Box::new(move || {
            let patience = || Patience::new(locks.store.timeout(), &|| Ok(()));
            let lease = locks.lease;
            if let Some(ticket) = ticket {
                locks.leave(&name, ticket);
            }
            let doubt = Doubt {
                held: false,
                again: false,
                awaited: false,
            };
            // Once more after a while: the server may have been at work on a
            // statement whose answer nobody was waiting for any more.
            for pause in [Duration::ZERO, Duration::from_secs(1)] {
                thread::sleep(pause);
                let released = locks.store.release(&name, &token, lease, doubt, patience());
                if let Err(error) = released {
                    log::debug!("cleaning up behind lock {name}: {error}");
                }
            }
        }));
    }

    /// Takes a waiter out of the database's queue.
    pub(crate) fn leave(&self, name: &Name, ticket: i64) {
        let patience = Patience::new(Duration::from_secs(2), &|| Ok(()));
        if let Err(error) = self.store.leave(name, ticket, self.lease, patience) {
            // Those behind wait for half a second in vain.
            log::debug!("leaving the queue of lock {name}: {error}");
        }
    }

    /// Gives the hold a new token and voids the old one.
    pub fn transfer(
        &self,
        lock: &Lock,
        owner: Owner,
        token: Option<Token>,
        patience: Patience,
    ) -> Result<Token> {
        let old = lock.token_or(owner, token)?;
        let key = lock.doubt_about(&old);
        let doubted = self.doubting(patience.process, |doubts| doubts.transferred.remove(&key));
        let new = doubted.map_or_else(Token::random, |(new, _)| new);
        // Before the statement is sent: whoever extends the hold meanwhile may meet
        // either token.
        lock.with(|known| known.holds.transferring(&old, Some(new.clone())));
        match self
            .store
            .transfer(&lock.name, &old, &new, self.lease, patience)
        {
            Ok(Some((fence, _))) => {
                lock.with(|known| known.holds.transferred(&old, new.clone()));
                lock.seen(&new, fence);
                self.catch_up(lock, &new, patience)?;
                Ok(new)
            }
            Ok(None) => {
                lock.lost(&old);
                Err(Error::Expired(lock.name.clone(), old))
            }
            Err(error) => {
                if error.outcome_unknown() {
                    let doubt = (new, self.doubt_ends());
                    self.doubting(patience.process, |doubts| {
                        doubts.transferred.insert(key, doubt)
                    });
                } else {
                    lock.with(|known| known.holds.transferring(&old, None));
                }
                Err(error)
            }
        }
    }

    /// Renews a hold that should have been extended automatically by now: one
    /// that is transferred again and again has another token whenever the
    /// extending thread comes.
    fn catch_up(&self, lock: &Lock, token: &Token, patience: Patience) -> Result<()> {
        if let Some(lease) = lock.with(|known| known.holds.overdue(token, Instant::now())) {
            match self.store.extend(&lock.name, token, lease, patience) {
                Ok(Some((_, deadline))) => {
                    lock.with(|known| known.holds.extended(token, deadline));
                }
                // The signal's exception; the Lock object has the new token.
                Err(error @ (Error::Interrupted | Error::Forked)) => return Err(error),
                // The extending thread finds the same, or tries again.
                Ok(None) => {}
                Err(error) => log::debug!("extending lock {} late: {error}", lock.name),
            }
        }
        Ok(())
    }

    /// Removes the rows that nobody holds.
    pub fn vacuum(&self, patience: Patience) -> Result<()> {
        self.store.vacuum(self.lease, patience)
    }
}
