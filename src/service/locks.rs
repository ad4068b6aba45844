//! The operations on locks: asks the engine what to do, has the store do it,
//! tells the engine the outcome.

use super::confirmed::Confirmed;
use super::locked;
use super::owed::Owed;
use super::registry::{OnLost, Registry, registry};
use super::renewal::Renewal;
use super::threads::Threads;
use super::waiters::Waiters;
use super::watch::{Observer, Watch};
use super::workers::{Job, Workers};
use crate::engine::{
    Attempt, Caller, Deadline, Ending, Entered, Entry, Grant, Hint, Hints, Hold, HoldId, Late,
    Lease, LevelId, LockId, Loss, Moment, Name, Token,
};
use crate::error::{Error, Result};
use crate::process::ProcessLocal;
use crate::store::{About, Answer, Budget, Look, Released, Sql, Store};
use crate::sync::{Mutex, process_id, thread};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::Duration;

/// A Lock object.
#[derive(Debug)]
pub struct Lock {
    id: LockId,
    name: Name,
}

/// The locks of one configuration.
pub struct Locks {
    store: Store,
    lease: Lease,
    reentrant: bool,
    owed: ProcessLocal<Owed>,
    hints: ProcessLocal<Mutex<Hints>>,
    waiters: ProcessLocal<Waiters>,
    renewal: ProcessLocal<Renewal>,
    workers: ProcessLocal<Workers>,
    /// For endings, for which those who ask wait: never behind them.
    enders: ProcessLocal<Workers>,
    threads: ProcessLocal<Threads>,
    /// Who measures, if anybody does.
    observer: ArcSwap<Option<Arc<dyn Observer>>>,
}

/// How a lock is to be acquired.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Who wants it through which Lock object. Nobody: only the token counts.
    pub owner: Option<(LockId, Caller)>,
    /// It is the beginning of a block.
    pub block: bool,
    /// It is extended automatically.
    pub extended: bool,
    /// Another lease than `maxtime`.
    pub lease: Option<Lease>,
    /// What is to be known about the holder.
    pub about: About,
}

/// What the database said to an attempt to acquire.
#[derive(Debug)]
pub(super) enum Asked {
    /// It has the lock. With `unknown`, an answer was lost before: its statement may come late.
    Granted { grant: Grant, unknown: bool },
    /// It could not be taken; with `busy`, though nobody has it. With `unknown`, an answer
    /// was lost: the token may turn out to be that of a hold.
    Refused { busy: bool, unknown: bool },
}

impl Drop for Lock {
    fn drop(&mut self) {
        let process = process_id();
        if registry(process).with(|holds| holds.forget(self.id)) {
            // Nothing is released: the token may be out.
            log::debug!(
                "the Lock object of {} is gone; its hold lasts until somebody releases it \
                 with its token, or it expires",
                self.name
            );
        }
    }
}

impl Lock {
    /// A lock that nobody holds through this object.
    #[must_use]
    pub fn new(name: Name) -> Lock {
        Lock {
            id: LockId::fresh(),
            name,
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> LockId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    fn hold<T>(&self, caller: &Caller, look: impl FnOnce(&Hold) -> T) -> Option<T> {
        registry(process_id()).with(|holds| holds.of(self.id, caller).map(look))
    }

    /// The token of the caller's hold, or else of the latest of this object.
    #[must_use]
    pub fn token(&self, caller: &Caller) -> Option<Token> {
        self.hold(caller, |hold| hold.token.clone())
    }

    /// The fencing number of the same hold, or of the token that was presented last.
    #[must_use]
    pub fn fence(&self, caller: &Caller) -> Option<i64> {
        self.hold(caller, |hold| hold.fence)
            .unwrap_or_else(|| registry(process_id()).with(|holds| holds.presented(self.id)))
    }

    /// For how many seconds it is certainly held; 0 if it is not.
    #[must_use]
    pub fn remaining(&self, caller: &Caller) -> f64 {
        let now = Moment::now();
        let remaining = self.hold(caller, |hold| {
            let left = hold.deadline.remaining(now);
            if hold.expired(now) { 0.0 } else { left }
        });
        remaining.unwrap_or_default()
    }

    /// Whether there was a hold and it is lost, or may be.
    #[must_use]
    pub fn expired(&self, caller: &Caller) -> bool {
        self.hold(caller, |hold| hold.expired(Moment::now()))
            .unwrap_or_default()
    }

    /// Whether this object holds the lock, as far as it knows.
    #[must_use]
    pub fn is_held(&self) -> bool {
        registry(process_id()).with(|holds| holds.holds_any(self.id))
    }

    /// The token that was given, or that of the caller's hold.
    pub fn token_or(&self, caller: &Caller, token: Option<Token>) -> Result<Token> {
        token
            .or_else(|| self.token(caller))
            .ok_or_else(|| Error::TokenRequired(self.name.clone()))
    }

    /// The block that is open here, as a `with` on the object itself ends it.
    #[must_use]
    pub fn block(&self, caller: &Caller) -> Option<Entered> {
        registry(process_id()).with(|holds| holds.block(self.id, caller))
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
            owed: ProcessLocal::default(),
            hints: ProcessLocal::default(),
            waiters: ProcessLocal::default(),
            renewal: ProcessLocal::default(),
            workers: ProcessLocal::default(),
            enders: ProcessLocal::default(),
            threads: ProcessLocal::default(),
            observer: ArcSwap::default(),
        }
    }

    /// From now on what happens is told to this observer.
    pub fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        self.observer.store(Arc::new(observer));
    }

    /// An attempt to acquire begins, on the calling thread.
    pub(super) fn watch(&self) -> Option<Watch> {
        let observer = self.observer.load();
        observer.as_ref().as_ref().cloned().map(Watch::begin)
    }

    /// The names of the holds that the observer knows of, how many wait for which lock, and,
    /// while somebody listens for them, whether notifications come through.
    #[must_use]
    pub fn measured(&self) -> (Vec<Name>, Vec<(Name, usize)>, Option<bool>) {
        let observer = self.observer.load_full();
        let holds = observer.as_ref().as_ref().map(|observer| {
            let registry = registry(process_id());
            registry.watched.names(observer)
        });
        let (waiting, listening) = self.waiters().measured();
        (holds.unwrap_or_default(), waiting, listening)
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

    /// Who waits in this process.
    pub(super) fn waiters(&self) -> Arc<Waiters> {
        self.waiters.get()
    }

    /// Has a job done by another thread. More of them than connections would be in vain.
    pub fn submit(&self, job: Job) {
        self.workers.get().submit(self.store.connections(), job);
    }

    /// Has an ending done by another thread, whatever the others wait for.
    pub fn submit_ending(&self, job: Job) {
        self.enders.get().submit(self.store.connections(), job);
    }

    fn spawn(self: &Arc<Locks>, name: &str, work: impl FnOnce(&Locks) + Send + 'static) -> bool {
        let locks = self.clone();
        let living = self.threads.get().begin();
        let started = thread::Builder::new()
            .name(format!("distlock-{name}"))
            .spawn(move || {
                work(&locks);
                drop(living);
            });
        if let Err(error) = &started {
            log::warn!("the thread distlock-{name} could not be started: {error}");
        }
        started.is_ok()
    }

    /// Ends all threads and sessions, after what is owed was done; the next call makes new
    /// ones. What is extended automatically, and who waits, keep theirs.
    pub fn close(&self, budget: Budget) -> Result<()> {
        self.enders.get().retire(budget)?;
        self.workers.get().retire(budget)?;
        self.owed.get().retire();
        let waiting = usize::from(!self.waiters.get().retire());
        let extending = self.renewal.get().retire();
        self.threads.get().await_end(waiting + extending, budget)?;
        self.store.close(budget)
    }

    /// Starts the thread that listens for waiters.
    pub(super) fn attend_waiters(self: &Arc<Locks>) {
        let waiters = self.waiters.get();
        if !self.spawn("listen", move |locks| waiters.attend(&locks.store)) {
            self.waiters.get().unattended();
        }
    }

    /// Extends the hold of a level from now on until it is left, or watches it.
    fn attend_hold(self: &Arc<Locks>, entered: Entered, lease: Lease, extended: bool) {
        if let Some(class) = self.renewal.get().add(entered, lease, extended) {
            let attended = class.clone();
            if !self.spawn("extend", move |locks| attended.attend(&locks.store)) {
                class.unattended();
            }
        }
    }

    /// A level is extended automatically no longer.
    pub fn stop_extending(&self, entered: Entered) {
        registry(process_id()).with(|holds| holds.stop_extending(entered));
    }

    /// A hold with this token must not be: it is released in the background.
    pub(super) fn owe(
        self: &Arc<Locks>,
        name: &Name,
        token: &Token,
        attempt: Attempt,
        lease: Lease,
    ) {
        registry(process_id()).watched.ended(token, None);
        let owed = self.owed.get();
        if owed.owe(name, token, attempt, lease) {
            self.attend_owed(&owed);
        }
    }

    /// A statement that was sent may be executed late: what it does is undone in the background.
    pub(super) fn may_come_late(self: &Arc<Locks>, name: &Name, late: Late, lease: Lease) {
        let owed = self.owed.get();
        if owed.may_come_late(name, late, lease) {
            self.attend_owed(&owed);
        }
    }

    fn attend_owed(self: &Arc<Locks>, owed: &Arc<Owed>) {
        let (attended, waiters) = (owed.clone(), self.waiters.get());
        let attend =
            move |locks: &Locks| attended.attend(&locks.store, |ticket| waiters.uses(ticket));
        if !self.spawn("settle", attend) {
            owed.unattended();
        }
    }

    /// The statement of an attempt is under way that nobody is going to repeat.
    pub(super) fn begin(&self, name: &Name, token: &Token, attempt: Attempt, lease: Lease) {
        let owed = self.owed.get();
        owed.with(|unresolved| unresolved.begin(name, token, attempt, lease, Moment::now()));
    }

    /// The statement of an attempt is not under way any more.
    pub(super) fn landed(&self, name: &Name, token: &Token) {
        self.owed.get().landed(name, token);
    }

    /// How many attempts of this process have come to an end.
    pub(super) fn settlements(&self, call: Budget) -> u64 {
        let owed = self.owed.of(call.process);
        owed.with(|unresolved| unresolved.settlements())
    }

    /// Whether releases are owed for a name, and if so releases them. `true` if the lock may
    /// be free by that, or by what has come to an end since there were `before` settlements.
    pub(super) fn settle(&self, name: &Name, before: u64, budget: Budget) -> Result<bool> {
        let owed = self.owed.of(budget.process);
        let settled = !owed.with(|unresolved| unresolved.is_empty())
            && owed.settle(&self.store, name, budget)?;
        Ok(settled || self.settlements(budget) != before)
    }

    /// The lease that a request asks for.
    pub(super) fn lease_of(&self, request: &Request) -> Lease {
        request.lease.unwrap_or(self.lease)
    }

    /// Remembers what a lock is like now.
    pub(super) fn hint(&self, call: Budget, name: &Name, hint: Option<Hint>) {
        locked(&self.hints.of(call.process)).remember(name, hint);
    }

    /// Whether the owner has the lock and enters it once more.
    pub(super) fn entry(&self, request: &Request, call: Budget) -> Entry {
        match &request.owner {
            Some((lock, caller)) => {
                registry(call.process).with(|holds| holds.entry(*lock, caller, self.reentrant))
            }
            None => Entry::Fresh,
        }
    }

    /// Whether the owner has no hold of it to enter once more.
    pub(super) fn is_fresh(&self, request: &Request) -> bool {
        request.owner.as_ref().is_none_or(|(lock, caller)| {
            registry(process_id()).with(|holds| !self.reentrant || !holds.is_owned(*lock, caller))
        })
    }

    /// What the database has granted, as its owner is going to have it.
    pub(super) fn grant(
        &self,
        name: &Name,
        token: &Token,
        (fence, deadline): (Option<i64>, Deadline),
        request: &Request,
    ) -> Grant {
        Grant {
            entered: Entered {
                hold: HoldId::fresh(),
                level: LevelId::fresh(),
            },
            again: false,
            // An object of nobody's, if nobody asks.
            lock: request
                .owner
                .as_ref()
                .map_or_else(LockId::fresh, |(lock, _)| *lock),
            name: name.clone(),
            token: token.clone(),
            fence,
            deadline,
            lease: self.lease_of(request),
            block: request.block,
            extended: request.extended,
        }
    }

    /// Asks the database for the lock, with the statement that suits what was seen of
    /// it last. A token that is not `fresh` may be that of a hold already.
    pub(super) fn ask(
        &self,
        name: &Name,
        token: &Token,
        fresh: bool,
        request: &Request,
        budget: Budget,
    ) -> Result<Asked> {
        let lease = self.lease_of(request);
        let hint = locked(&self.hints.of(budget.process)).of(name);
        let likely = match hint {
            _ if !fresh => false,
            Some(Hint::Free) => true,
            // Who was refused just now is likely to be refused again.
            Some(Hint::Held) => match self.store.look(name, lease, budget)? {
                Look::Held => {
                    return Ok(Asked::Refused {
                        busy: false,
                        unknown: false,
                    });
                }
                Look::Free => true,
                Look::Missing => false,
            },
            Some(Hint::Awaited) | None => false,
        };
        let answer = self
            .store
            .acquire(name, token, lease, (&request.about, likely), budget)?;
        let hint = match answer {
            Answer::Refused { busy, .. } => (!busy).then_some(Hint::Held),
            // They still wait, so the release had better expect it.
            Answer::Acquired { .. } => hint.filter(|hint| *hint == Hint::Awaited),
        };
        self.hint(budget, name, hint);
        Ok(match answer {
            Answer::Acquired {
                fence,
                deadline,
                unknown,
            } => Asked::Granted {
                grant: self.grant(name, token, (Some(fence), deadline), request),
                unknown,
            },
            Answer::Refused { busy, unknown } => Asked::Refused { busy, unknown },
        })
    }

    /// Confirms and extends the hold that the owner wants to enter once more.
    pub(super) fn confirm(
        &self,
        name: &Name,
        (hold, token, lease): (HoldId, &Token, Lease),
        request: &Request,
        budget: Budget,
    ) -> Result<Grant> {
        // A block within may want a longer lease, but does not shorten it.
        let lease = request.lease.map_or(lease, |wanted| wanted.max(lease));
        let extended = self.extend_hold(hold, name, token, lease, budget);
        if matches!(extended, Err(Error::Expired(..))) {
            registry(budget.process).with(|holds| holds.reported(hold));
        }
        let (token, deadline) = extended?;
        Ok(Grant {
            entered: Entered {
                hold,
                level: LevelId::fresh(),
            },
            again: true,
            lease,
            ..self.grant(name, &token, (None, deadline), request)
        })
    }

    /// Extends a hold of this process under the token that it has, though that may be
    /// changing. If the database has it under none of them, everybody is told.
    fn extend_hold(
        &self,
        hold: HoldId,
        name: &Name,
        token: &Token,
        lease: Lease,
        budget: Budget,
    ) -> Result<(Token, Deadline)> {
        let registry = registry(budget.process);
        let mut candidates = vec![token.clone()];
        let mut tried = 0;
        loop {
            while let Some(token) = candidates.get(tried).cloned() {
                tried += 1;
                let extended = self.store.extend(name, &token, lease, budget)?;
                let extended =
                    extended.and_then(|(fence, deadline)| registry.extended(hold, fence, deadline));
                if let Some(deadline) = extended {
                    return Ok((token, deadline));
                }
            }
            // Another thread transfers it: then it has one of these by now.
            registry.with(|holds| {
                if let Some(hold) = holds.get(hold) {
                    let others = [Some(&hold.token), hold.pending.as_ref()];
                    for other in others.into_iter().flatten() {
                        if !candidates.contains(other) {
                            candidates.push(other.clone());
                        }
                    }
                }
            });
            if tried == candidates.len() {
                let (token, reason) = self.lose(&registry, hold, name, token, budget);
                return Err(Error::Expired(name.clone(), token, reason));
            }
        }
    }

    /// The database does not have a hold: tells everybody, and why.
    fn lose(
        &self,
        registry: &Registry,
        hold: HoldId,
        name: &Name,
        token: &Token,
        budget: Budget,
    ) -> (Token, Loss) {
        let known = registry.with(|holds| {
            let hold = holds.get(hold)?;
            Some((hold.token.clone(), hold.deadline))
        });
        let (token, reason) = match known {
            Some((token, deadline)) => {
                let reason = self.why_lost(name, &token, Some(deadline), budget);
                (token, reason)
            }
            None => (token.clone(), Loss::Released),
        };
        // In a child that was forked meanwhile it is the parent's business.
        if process_id() == budget.process {
            registry.report(|holds| holds.lost(hold, reason));
        }
        (token, reason)
    }

    fn why_lost(
        &self,
        name: &Name,
        token: &Token,
        deadline: Option<Deadline>,
        budget: Budget,
    ) -> Loss {
        if deadline.is_some_and(|deadline| deadline.passed(Moment::now())) {
            return Loss::Expired;
        }
        self.store.why_lost(name, token, budget)
    }

    /// The owner is told that it has the lock. The last moment: it is held here or not at all.
    ///
    /// `false` if it is too late for that: the caller gives the hold back.
    pub(super) fn open(
        self: &Arc<Locks>,
        grant: &Grant,
        owner: Option<&Caller>,
        on_lost: Option<OnLost>,
        process: u32,
    ) -> bool {
        // A lease of no time at all is what was asked for, and never in time.
        let late = grant.lease != Lease::ZERO && grant.deadline.passed(Moment::now());
        // What is entered again may have been renewed since, which the registry knows.
        if late && (!grant.again || owner.is_none()) {
            return false;
        }
        let Some(caller) = owner else {
            return true;
        };
        let registry = registry(process);
        let watched = on_lost.is_some();
        // Before the hold can be lost.
        if let Some(on_lost) = on_lost {
            registry.call(grant.entered.level, on_lost);
        }
        let Some(opened) = registry.with(|holds| holds.open(grant.clone(), caller, Moment::now()))
        else {
            registry.forget(grant.entered.level);
            return false;
        };
        if watched {
            self.attend_hold(grant.entered, grant.lease, grant.extended);
        }
        for entered in opened {
            let extended = registry.with(|holds| Some(holds.watched(entered)?.1));
            if extended == Some(true) {
                self.attend_hold(entered, grant.lease, true);
            }
        }
        true
    }

    /// The token that the hold of `token` has: another one, if a transfer that
    /// seemed to fail has succeeded.
    fn resolve(&self, name: &Name, token: &Token, budget: Budget) -> Result<Token> {
        let owed = self.owed.of(budget.process);
        let Some(new) = owed.with(|unresolved| unresolved.transfer(token, Moment::now())) else {
            return Ok(token.clone());
        };
        let answer = self.store.transfer(name, token, &new, self.lease, budget)?;
        owed.with(|unresolved| unresolved.transferred(token));
        let registry = registry(budget.process);
        if answer.is_none() {
            registry.with(|holds| holds.transferring(token, None));
            return Ok(token.clone());
        }
        registry.with(|holds| holds.transferred(token, &new));
        registry.watched.transferred(token, &new);
        Ok(new)
    }

    /// Gives the hold a new lease.
    pub fn extend(
        &self,
        lock: &Lock,
        caller: &Caller,
        token: Option<Token>,
        budget: Budget,
    ) -> Result<Confirmed> {
        let token = lock.token_or(caller, token)?;
        let token = self.resolve(&lock.name, &token, budget)?;
        let registry = registry(budget.process);
        let known = registry.with(|holds| {
            let (id, hold) = holds.with_token(&token)?;
            // A token that was voided by a transfer is another matter than its hold.
            (hold.token == token).then_some((id, hold.lease))
        });
        let Some((hold, lease)) = known else {
            let extended = self.store.extend(&lock.name, &token, self.lease, budget)?;
            let Some((fence, deadline)) = extended else {
                let reason = self.why_lost(&lock.name, &token, None, budget);
                registry.watched.ended(&token, Some(reason));
                return Err(Error::Expired(lock.name.clone(), token, reason));
            };
            registry.watched.extended(&token, deadline);
            registry.with(|holds| holds.present(lock.id, &token, fence));
            return Ok(Confirmed::new(&lock.name, token, deadline));
        };
        let (token, deadline) = self.extend_hold(hold, &lock.name, &token, lease, budget)?;
        Ok(Confirmed::new(&lock.name, token, deadline))
    }

    /// A guard has seen the hold of this token in the database.
    pub fn seen(&self, lock: &Lock, token: &Token, fence: Option<i64>) {
        registry(process_id()).with(|holds| holds.present(lock.id, token, fence));
    }

    /// Asks the database whether the hold of a token is lost.
    pub fn is_lost(&self, lock: &Lock, token: &Token, budget: Budget) -> Result<Option<Loss>> {
        if self.store.is_held(&lock.name, token, self.lease, budget)? {
            return Ok(None);
        }
        let registry = registry(budget.process);
        let hold = registry.with(|holds| {
            let (id, hold) = holds.with_token(token)?;
            (hold.token == *token && hold.pending.is_none()).then_some(id)
        });
        Ok(Some(match hold {
            Some(hold) => self.lose(&registry, hold, &lock.name, token, budget).1,
            None => {
                let reason = self.why_lost(&lock.name, token, None, budget);
                registry.watched.ended(token, Some(reason));
                reason
            }
        }))
    }

    /// A block begins to end: its level is gone. [`Locks::finish`] does the rest.
    pub fn begin_exit(&self, lock: &Lock, entered: Option<Entered>) -> Ending {
        let registry = registry(process_id());
        let Some(entered) = entered else {
            return Ending::Nothing;
        };
        let ending = registry.with(|holds| holds.leave(entered, Moment::now()));
        registry.forget(entered.level);
        if let Ending::Release { token, lease, .. } = &ending {
            // Recorded before it happens: whoever wants the lock meanwhile waits for it.
            let lease = lease.unwrap_or(self.lease);
            self.begin(&lock.name, token, Attempt::Release, lease);
        }
        ending
    }

    /// A level is left by nobody in particular: what it takes is done in the background.
    pub fn abandon(self: &Arc<Locks>, lock: &Lock, entered: Entered) {
        let ending = self.begin_exit(lock, Some(entered));
        self.finish_later(&lock.name, ending);
    }

    /// As [`Locks::finish`], in the background.
    pub fn finish_later(self: &Arc<Locks>, name: &Name, ending: Ending) {
        match ending {
            Ending::Release {
                token,
                pending,
                lease,
                ..
            } => {
                let lease = lease.unwrap_or(self.lease);
                for token in [Some(token), pending].into_iter().flatten() {
                    self.owe(name, &token, Attempt::Release, lease);
                }
            }
            Ending::Lost {
                token,
                lease,
                owed: true,
                ..
            } => self.owe(name, &token, Attempt::Release, lease),
            _ => {}
        }
    }

    /// A `release()` begins.
    pub fn begin_release(&self, lock: &Lock, caller: &Caller, token: Option<&Token>) -> Ending {
        registry(process_id()).with(|holds| holds.release(lock.id, caller, token, Moment::now()))
    }

    /// Does what the end of a block, or a release, needs done in the database.
    pub fn finish(self: &Arc<Locks>, name: &Name, ending: Ending, budget: Budget) -> Result<()> {
        match ending {
            Ending::Done => Ok(()),
            Ending::Nothing => Err(Error::TokenRequired(name.clone())),
            Ending::Confirm { hold, token, lease } => self
                .extend_hold(hold, name, &token, lease, budget)
                .map(drop),
            Ending::Lost {
                token,
                lease,
                reason,
                owed,
            } => {
                if owed {
                    self.owe(name, &token, Attempt::Release, lease);
                }
                Err(Error::Expired(name.clone(), token, reason))
            }
            Ending::Release {
                hold,
                token,
                pending,
                lease,
                held,
                own,
            } => {
                let how = (lease, held, own);
                self.release(name, hold, (&token, pending.as_ref()), how, budget)
            }
        }
    }

    fn release(
        self: &Arc<Locks>,
        name: &Name,
        hold: Option<HoldId>,
        (token, pending): (&Token, Option<&Token>),
        (lease, held, own): (Option<Lease>, bool, bool),
        budget: Budget,
    ) -> Result<()> {
        let registry = registry(budget.process);
        let known = lease.is_some();
        let lease = lease.unwrap_or(self.lease);
        let owed = self.owed.of(budget.process);
        let before = owed.with(|unresolved| unresolved.may_be_released(name, token));
        if before == Some(true) {
            // In the background, for a caller that was told of a failure.
            owed.resolved(name, token);
            if let Some(hold) = hold {
                registry.report(|holds| holds.released(hold, own));
            }
            registry.watched.ended(token, None);
            return Ok(());
        }
        let awaited = locked(&self.hints.of(budget.process)).of(name) == Some(Hint::Awaited);
        let attempt = |token: &Token| {
            self.store.release(
                name,
                token,
                lease,
                (held, before.is_some(), awaited),
                budget,
            )
        };
        let released = self.resolve(name, token, budget).and_then(|token| {
            // While a transfer is under way, the hold has the one token or the other: what
            // is released under the old one is not transferred any more.
            match (attempt(&token)?, pending) {
                (Released::Lost, Some(pending)) => Ok((pending.clone(), attempt(pending)?)),
                (released, _) => Ok((token, released)),
            }
        });
        let (current, released) = match released {
            Ok(released) => released,
            Err(error) => {
                // In a child that was forked meanwhile it is the parent's business.
                if !matches!(error, Error::Forked) && (known || error.outcome_unknown()) {
                    for token in [Some(token), pending].into_iter().flatten() {
                        self.owe(name, token, Attempt::Release, lease);
                    }
                }
                return Err(error);
            }
        };
        owed.resolved(name, token);
        let hint = match released {
            Released::Quietly => Some(Hint::Free),
            Released::Calling => Some(Hint::Awaited),
            Released::Lost => None,
        };
        self.hint(budget, name, hint);
        if released != Released::Lost {
            if let Some(hold) = hold {
                registry.report(|holds| holds.released(hold, own));
            }
            for token in [token, &current] {
                registry.watched.ended(token, None);
            }
            return Ok(());
        }
        let reason = if known && !held {
            Loss::Expired
        } else {
            self.why_lost(name, &current, None, budget)
        };
        for token in [token, &current] {
            registry.watched.ended(token, Some(reason));
        }
        if let Some(hold) = hold.filter(|_| process_id() == budget.process) {
            registry.report(|holds| holds.not_released(hold, reason, own));
        }
        Err(Error::Expired(name.clone(), current, reason))
    }

    /// Takes the process out of the database's queue.
    pub(super) fn leave_queue_now(self: &Arc<Locks>, name: &Name, ticket: i64) {
        let budget = Budget::new(Duration::from_secs(2), &|| Ok(()));
        if let Err(error) = self.store.leave(name, ticket, self.lease, budget) {
            // Those behind wait for half a second in vain.
            log::debug!("leaving the queue of lock {name} later: {error}");
            self.may_come_late(name, Late::Entering(ticket), self.lease);
        }
    }

    /// The same in the background. Whoever is refused meanwhile waits for it.
    pub(super) fn leave_queue(self: &Arc<Locks>, name: &Name, ticket: i64) {
        let (locks, name, owed) = (self.clone(), name.clone(), self.owed.get());
        owed.leaving(&name, true);
        self.submit_ending(Box::new(move || {
            locks.leave_queue_now(&name, ticket);
            owed.leaving(&name, false);
        }));
    }

    /// Gives the hold a new token and voids the old one.
    pub fn transfer(
        &self,
        lock: &Lock,
        caller: &Caller,
        token: Option<Token>,
        budget: Budget,
    ) -> Result<Confirmed> {
        let old = lock.token_or(caller, token)?;
        let owed = self.owed.of(budget.process);
        let registry = registry(budget.process);
        let unknown = owed.with(|unresolved| unresolved.transfer(&old, Moment::now()));
        let new = unknown.unwrap_or_else(Token::random);
        // Before the statement is sent: whoever extends the hold meanwhile may meet
        // either token.
        let (hold, lease) = registry.with(|holds| {
            holds.transferring(&old, Some(new.clone()));
            let known = holds.with_token(&old);
            known.map_or((None, self.lease), |(id, hold)| (Some(id), hold.lease))
        });
        match self
            .store
            .transfer(&lock.name, &old, &new, self.lease, budget)
        {
            Ok(Some((fence, deadline))) => {
                owed.with(|unresolved| unresolved.transferred(&old));
                registry.with(|holds| {
                    holds.transferred(&old, &new);
                    holds.present(lock.id, &new, fence);
                });
                registry.watched.transferred(&old, &new);
                let confirmed = Confirmed::new(&lock.name, new.clone(), deadline);
                if confirmed.is_in_time() {
                    self.catch_up(lock, hold, &new, budget)?;
                }
                Ok(confirmed)
            }
            Ok(None) => {
                registry.with(|holds| holds.transferring(&old, None));
                let current = hold.filter(|hold| {
                    registry.with(|holds| holds.get(*hold).is_some_and(|hold| hold.token == old))
                });
                let reason = match current {
                    Some(hold) => self.lose(&registry, hold, &lock.name, &old, budget).1,
                    None => {
                        let reason = self.why_lost(&lock.name, &old, None, budget);
                        registry.watched.ended(&old, Some(reason));
                        reason
                    }
                };
                Err(Error::Expired(lock.name.clone(), old, reason))
            }
            // In a child that was forked meanwhile it is the parent's business.
            Err(Error::Forked) => Err(Error::Forked),
            Err(error) => {
                if error.outcome_unknown() {
                    owed.with(|unresolved| {
                        unresolved.transferring(&old, &new, lease, Moment::now());
                    });
                } else {
                    registry.with(|holds| holds.transferring(&old, None));
                }
                Err(error)
            }
        }
    }

    /// Renews a hold that should have been extended automatically by now: one that is
    /// transferred again and again has another token whenever the extending thread comes.
    fn catch_up(
        &self,
        lock: &Lock,
        hold: Option<HoldId>,
        token: &Token,
        budget: Budget,
    ) -> Result<()> {
        let registry = registry(budget.process);
        let overdue = hold
            .and_then(|id| registry.with(|holds| Some((id, holds.overdue(id, Moment::now())?))));
        let Some((id, lease)) = overdue else {
            return Ok(());
        };
        match self.store.extend(&lock.name, token, lease, budget) {
            Ok(Some((fence, deadline))) => {
                registry.extended(id, fence, deadline);
            }
            // The signal's exception; the Lock object has the new token.
            Err(error @ (Error::Interrupted | Error::Forked)) => return Err(error),
            // The extending thread finds the same, or tries again.
            Ok(None) => {}
            Err(error) => log::debug!("extending lock {} late: {error}", lock.name),
        }
        Ok(())
    }

    /// Removes the rows that nobody holds.
    pub fn vacuum(&self, budget: Budget) -> Result<()> {
        self.store.vacuum(self.lease, budget)
    }

    /// The statement that confirms a hold in the caller's transaction.
    pub fn guard(&self, budget: Budget) -> Result<&str> {
        Ok(&self.store.statements(budget)?[Sql::Guard].text)
    }

    /// The statement that removes rows in the caller's transaction.
    pub fn vacuum_sql(&self, budget: Budget) -> Result<&str> {
        Ok(&self.store.statements(budget)?[Sql::Vacuum].text)
    }
}
