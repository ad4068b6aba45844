//! The locks of one configuration: their store and their background threads.

use super::locked;
use super::owed::Owed;
use super::registry::registry;
use super::renewal::{Class, Renewal};
use super::threads::Threads;
use super::waiters::Waiters;
use super::watch::{Observer, Watch};
use super::workers::{Job, Workers};
use crate::engine::{Attempt, Entered, Hint, Hints, Key, Late, Lease, Moment, Name, Token};
use crate::error::Result;
use crate::process::ProcessLocal;
use crate::store::{Budget, Sql, Store};
use crate::sync::{Mutex, process_id, thread};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// The locks of one configuration.
pub struct Locks {
    pub(super) store: Store,
    pub(super) lease: Lease,
    pub(super) reentrant: bool,
    pub(super) owed: ProcessLocal<Owed>,
    pub(super) hints: ProcessLocal<Mutex<Hints>>,
    waiters: ProcessLocal<Waiters>,
    pub(super) renewal: ProcessLocal<Renewal>,
    workers: ProcessLocal<Workers>,
    /// For endings: callers wait for these, so they never queue behind other jobs.
    enders: ProcessLocal<Workers>,
    threads: ProcessLocal<Threads>,
    /// The observer, if there is one.
    observer: ArcSwap<Option<Arc<dyn Observer>>>,
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

    /// From now on reports events to this observer.
    pub fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        self.observer.store(Arc::new(observer));
    }

    /// The calling thread begins an attempt to acquire.
    pub(super) fn watch(&self) -> Option<Watch> {
        let observer = self.observer.load();
        (**observer).clone().map(Watch::begin)
    }

    /// The names of the holds that the observer knows, how many wait for each lock, and, while a
    /// thread listens, whether notifications come through.
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

    /// The waiters of this process.
    pub(super) fn waiters(&self) -> Arc<Waiters> {
        self.waiters.get()
    }

    /// Has another thread do a job. More threads than connections would be no use.
    pub fn submit(&self, job: Job) {
        self.workers.get().submit(self.store.connections(), job);
    }

    /// Has another thread do an ending, whatever the other jobs wait for.
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

    /// Completes owed releases, then ends all threads and sessions; the next call makes new ones.
    /// Automatic extensions and waiters keep theirs.
    pub fn close(&self, budget: Budget) -> Result<()> {
        self.enders.get().retire(budget)?;
        self.workers.get().retire(budget)?;
        self.owed.get().retire();
        // Repeatedly: meanwhile others may begin to wait, be cancelled, or begin to extend.
        let staying = || {
            let others = [self.owed.get().stays(), !self.waiters.get().retire()];
            others.map(usize::from).iter().sum::<usize>() + self.renewal.get().retire()
        };
        self.threads.get().await_end(staying, budget)?;
        self.store.close(budget)
    }

    /// Starts the thread that listens for waiters.
    pub(super) fn attend_waiters(self: &Arc<Locks>) {
        let waiters = self.waiters.get();
        if !self.spawn("listen", move |locks| waiters.attend(&locks.store)) {
            self.waiters.get().unattended();
        }
    }

    /// Extends, or only watches, the hold of a level until the level is left.
    pub(super) fn attend_hold(self: &Arc<Locks>, entered: Entered, lease: Lease, extended: bool) {
        self.attend(self.renewal.get().add(entered, lease, extended));
    }

    /// Starts the thread of a class, if it needs one.
    pub(super) fn attend(self: &Arc<Locks>, class: Option<Arc<Class>>) {
        if let Some(class) = class {
            let attended = class.clone();
            if !self.spawn("extend", move |locks| attended.attend(&locks.store)) {
                class.unattended();
            }
        }
    }

    /// Stops extending a level automatically.
    pub fn stop_extending(&self, entered: Entered) {
        registry(process_id()).with(|holds| holds.stop_extending(entered));
    }

    /// The key that a token is for a lock here; finds out which table it is if that is not known yet.
    pub(super) fn key(&self, name: &Name, token: &Token, budget: Budget) -> Result<Key> {
        Ok(Key::new(self.store.table(budget)?, name, token))
    }

    /// The same if the table is known. It is once anything has been asked of the database.
    pub(super) fn known_key(&self, name: &Name, token: &Token) -> Option<Key> {
        Some(Key::new(self.store.known_table()?, name, token))
    }

    /// No hold may remain under this token: releases it in the background.
    pub(super) fn owe(
        self: &Arc<Locks>,
        name: &Name,
        token: &Token,
        attempt: Attempt,
        lease: Lease,
    ) {
        if let Some(key) = self.known_key(name, token) {
            registry(process_id()).watched.ended(&key, None);
        }
        let owed = self.owed.get();
        if owed.owe(name, token, attempt, lease) {
            self.attend_owed(&owed);
        }
    }

    /// A statement that was sent may execute late: undoes its effect in the background.
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

    /// Notes that the statement of an attempt is in flight and that nobody will repeat it.
    pub(super) fn begin(&self, name: &Name, token: &Token, attempt: Attempt, lease: Lease) {
        let owed = self.owed.get();
        owed.with(|unresolved| unresolved.begin(name, token, attempt, lease, Moment::now()));
    }

    /// The statement of an attempt is no longer in flight.
    pub(super) fn landed(&self, name: &Name, token: &Token) {
        self.owed.get().landed(name, token);
    }

    /// How many attempts of this process have come to an end.
    pub(super) fn settlements(&self, call: Budget) -> u64 {
        let owed = self.owed.of(call.process);
        owed.with(|unresolved| unresolved.settlements())
    }

    /// Performs the releases owed for a name, if any. `true` if that may have freed the lock, or if
    /// something has been settled since there were `before` settlements.
    pub(super) fn settle(&self, name: &Name, before: u64, budget: Budget) -> Result<bool> {
        let owed = self.owed.of(budget.process);
        let settled = !owed.with(|unresolved| unresolved.is_empty())
            && owed.settle(&self.store, name, budget)?;
        Ok(settled || self.settlements(budget) != before)
    }

    /// Remembers the current state of a lock.
    pub(super) fn hint(&self, call: Budget, name: &Name, hint: Option<Hint>) {
        locked(&self.hints.of(call.process)).remember(name, hint);
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
