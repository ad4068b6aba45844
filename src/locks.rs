//! The operations on locks: asks the engine what to do, has the store do it,
//! tells the engine what came of it.

use crate::engine::{Deadline, Ending, Entry, Holds, Lease, Name, Owner, Token};
use crate::error::{Error, Result};
use crate::process::ProcessLocal;
use crate::store::{Answer, Doubt, Patience, Store};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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
}

/// No step under these mutexes can fail half-way, so a panic elsewhere spoils nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn outcome_unknown(error: &Error) -> bool {
    matches!(error, Error::Unavailable(_) | Error::Interrupted)
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

    fn doubting<T>(&self, work: impl FnOnce(&mut Doubts) -> T) -> T {
        let doubts = self.doubts.get();
        let mut doubts = locked(&doubts);
        doubts.forget_the_past();
        work(&mut doubts)
    }

    /// Until when an unknown outcome of now matters.
    fn doubt_ends(&self) -> Deadline {
        Deadline::new(Instant::now(), self.lease.seconds())
    }

    /// Acquires the lock for the owner, or enters its hold once more. `block`
    /// is the beginning of a `with` block.
    pub fn acquire(
        &self,
        lock: &Lock,
        owner: Owner,
        block: bool,
        patience: Patience,
    ) -> Result<Token> {
        match lock.with(|known| known.holds.entry(owner, self.reentrant)) {
            Entry::Again(token) => self.enter_again(lock, &token, block, patience),
            Entry::Fresh => self.enter(lock, owner, block, patience),
        }
    }

    fn enter_again(
        &self,
        lock: &Lock,
        token: &Token,
        block: bool,
        patience: Patience,
    ) -> Result<Token> {
        let token = &self.resolve(lock, token, patience)?;
        let confirmed = self
            .store
            .extend(&lock.name, token, self.lease, patience)?
            .is_some_and(|(_, deadline)| {
                lock.with(|known| known.holds.entered_again(token, deadline, block))
            });
        if confirmed {
            return Ok(token.clone());
        }
        lock.with(|known| known.holds.told(token));
        Err(Error::Expired(lock.name.clone(), token.clone()))
    }

    fn enter(&self, lock: &Lock, owner: Owner, block: bool, patience: Patience) -> Result<Token> {
        // Taken out of the doubts, so that no two calls use the same token.
        let doubted = self.doubting(|doubts| doubts.acquired.remove(&lock.name));
        let (token, doubt) = match doubted {
            Some((token, until)) => (token, Some(until)),
            None => (Token::random(), None),
        };
        let answer = self.store.acquire(&lock.name, &token, self.lease, patience);
        let doubt = match answer {
            Ok(Answer::Acquired(fence, deadline)) => {
                lock.with(|known| {
                    known
                        .holds
                        .entered(owner, token.clone(), Some(fence), deadline, block);
                });
                return Ok(token);
            }
            // The statement that was given up may yet be executed.
            Ok(Answer::Held) => doubt,
            Err(ref error) if outcome_unknown(error) => Some(self.doubt_ends()),
            Err(_) => doubt,
        };
        if let Some(until) = doubt {
            self.doubting(|doubts| doubts.acquired.insert(lock.name.clone(), (token, until)));
        }
        match answer {
            Err(error) => Err(error),
            Ok(_) => Err(Error::Held(lock.name.clone())),
        }
    }

    /// The token that the hold of `token` has: another one, if a transfer that
    /// seemed to fail has succeeded.
    fn resolve(&self, lock: &Lock, token: &Token, patience: Patience) -> Result<Token> {
        let key = (lock.name.clone(), token.as_str().to_owned());
        let Some((new, _)) = self.doubting(|doubts| doubts.transferred.get(&key).cloned()) else {
            return Ok(token.clone());
        };
        let answer = self
            .store
            .transfer(&lock.name, token, &new, self.lease, patience)?;
        self.doubting(|doubts| doubts.transferred.remove(&key));
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
        match self
            .store
            .extend(&lock.name, &token, self.lease, patience)?
        {
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
        &self,
        lock: &Lock,
        owner: Owner,
        token: Option<&Token>,
        block: bool,
        patience: Patience,
    ) -> Result<()> {
        let ending = lock.with(|known| known.holds.ending(owner, token, block, Instant::now()));
        match ending {
            Ending::Inner => Ok(()),
            Ending::Nothing => Err(Error::TokenRequired(lock.name.clone())),
            Ending::Confirm(token) => {
                let answer = self
                    .store
                    .extend(&lock.name, &token, self.lease, patience)?;
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

    fn end(&self, lock: &Lock, token: &Token, patience: Patience) -> Result<()> {
        let token = &self.resolve(lock, token, patience)?;
        let key = (lock.name.clone(), token.as_str().to_owned());
        let doubt = Doubt {
            held: lock.with(|known| {
                known
                    .holds
                    .with_token(token)
                    .is_some_and(|hold| !hold.expired(Instant::now()))
            }),
            again: self.doubting(|doubts| doubts.released.contains_key(&key)),
        };
        let released = self
            .store
            .release(&lock.name, token, self.lease, doubt, patience);
        let released = match released {
            Ok(released) => released,
            Err(error) => {
                if outcome_unknown(&error) {
                    let until = self.doubt_ends();
                    self.doubting(|doubts| doubts.released.insert(key, until));
                }
                return Err(error);
            }
        };
        self.doubting(|doubts| doubts.released.remove(&key));
        lock.with(|known| known.holds.ended(token));
        if released {
            Ok(())
        } else {
            Err(Error::Expired(lock.name.clone(), token.clone()))
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
        let key = (lock.name.clone(), old.as_str().to_owned());
        let doubted = self.doubting(|doubts| doubts.transferred.remove(&key));
        let new = doubted.map_or_else(Token::random, |(new, _)| new);
        match self
            .store
            .transfer(&lock.name, &old, &new, self.lease, patience)
        {
            Ok(Some((fence, _))) => {
                lock.with(|known| known.holds.transferred(&old, new.clone()));
                lock.seen(&new, fence);
                Ok(new)
            }
            Ok(None) => {
                lock.lost(&old);
                Err(Error::Expired(lock.name.clone(), old))
            }
            Err(error) => {
                if outcome_unknown(&error) {
                    let doubt = (new, self.doubt_ends());
                    self.doubting(|doubts| doubts.transferred.insert(key, doubt));
                }
                Err(error)
            }
        }
    }

    /// Removes the rows that nobody holds.
    pub fn vacuum(&self, patience: Patience) -> Result<()> {
        self.store.vacuum(self.lease, patience)
    }
}
