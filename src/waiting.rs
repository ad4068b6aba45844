//! The waiters of one process: who waits for which lock, in which order, and
//! when each has to ask the database.
//!
//! A waiter sleeps until it is called, or until the hold it waits for must have
//! expired. While notifications come through (see `Listener`) every waiter has a
//! ticket in the queue in the lock's row; of those that wait for one lock only
//! the first looks after expiry. Where they do not, only the first of each lock
//! asks, every half second or so, and the others wait behind it.

use crate::engine::{Lease, Name, Token};
use crate::store::{Call, Deaf, Failure, Listener, Patience, Queue, Store};
use rand::RngExt;
use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a waiter is woken.
pub enum Bell {
    /// A thread sleeps.
    Thread(Condvar),
    /// Something else is told. It may not call back.
    Call(Box<dyn Fn() + Send + Sync>),
}

/// One that waits.
pub struct Waiter {
    number: u64,
    /// For which lock.
    pub name: Name,
    /// The token to take it with.
    pub token: Token,
    /// The lease to take it for.
    pub lease: Lease,
    bell: Bell,
}

impl Waiter {
    fn ring(&self) {
        match &self.bell {
            Bell::Thread(condvar) => condvar.notify_one(),
            Bell::Call(call) => call(),
        }
    }
}

/// What a waiter has to do.
#[derive(Debug)]
pub enum Plan {
    /// Sleep until then, or until the bell rings.
    Sleep(Option<Instant>),
    /// Take the lock or a place in the queue in the database.
    Ask {
        /// The waiter's ticket.
        ticket: i64,
        /// An earlier one, or 0.
        previous: i64,
        /// The others in the queue, as last seen.
        known: Vec<i64>,
        /// It was called: the lock must be free, and the waiter the first.
        called: bool,
    },
    /// Take the lock if it is free.
    Try,
}

/// A waiter's place in the queue of its process.
#[allow(clippy::struct_excessive_bools)] // they are independent of each other
struct Place {
    waiter: Arc<Waiter>,
    ticket: i64,
    previous: i64,
    /// The ticket is in the queue in the database.
    queued: bool,
    /// When it was called.
    called: Option<Instant>,
    /// When it was told that it is next, should the first not come: when to look then. As
    /// with a call, its own answer may be under way and say less.
    next: Option<Instant>,
    /// It is asking the database just now.
    asking: bool,
    /// The bell has rung.
    rung: bool,
    /// It was its turn, but the row was locked by somebody: when to ask again.
    again: Option<Instant>,
    /// When to ask, called or not, as the first of the line.
    due: Instant,
    /// It has not asked yet.
    fresh: bool,
    /// How often in a row the queue could not be entered.
    tries: u32,
    /// How often in a row the row was locked when it was its turn.
    busy: i32,
    /// The hold it has seen last: its fence and when it was to expire.
    seen: Option<(Option<i64>, Instant)>,
}

impl Place {
    fn queued_at(&self, listener: i64) -> bool {
        self.queued && self.ticket >> Listener::TICKET_BITS == listener
    }

    fn ring(&mut self) {
        self.rung = true;
        self.waiter.ring();
    }
}

#[derive(Default)]
struct Line {
    places: VecDeque<Place>,
    /// The tickets in the database's queue, as last seen.
    known: Vec<i64>,
}

impl Line {
    fn position(&self, waiter: &Waiter) -> Option<usize> {
        self.places
            .iter()
            .position(|place| place.waiter.number == waiter.number)
    }

    /// Whoever is there now may have something to do.
    fn ring(&mut self, position: usize) {
        if let Some(place) = self.places.get_mut(position) {
            place.ring();
        }
    }
}

#[derive(Default)]
struct State {
    lines: HashMap<Name, Line>,
    /// The number of the listener, while notifications come through.
    listening: Option<i64>,
    /// A thread listens, or tries to.
    attended: bool,
    tickets: i64,
    numbers: u64,
    /// Since when nobody waits.
    quiet: Option<Instant>,
}

/// The waiters of one process for the locks of one configuration.
#[derive(Default)]
pub struct Waiters {
    state: Mutex<State>,
    /// For the thread that listens, while it cannot.
    somebody: Condvar,
}

/// A free lock is left to the first in the queue for so long; see `wait.sql`.
const TURN: Duration = Duration::from_millis(500);
/// How often, at most and at least, a lock is asked for that nobody would be notified of.
const POLL: std::ops::Range<f64> = 0.4..0.7;
/// How often the queue is looked after, in seconds, in case something went wrong with it.
const LOOK: f64 = 10.0;
/// How often the listening connection is asked for a sign of life, and how long
/// that may take before waiters look for themselves.
const PING: Duration = Duration::from_millis(300);
/// The listening connection is closed when nobody has waited for so long.
const QUIET: Duration = Duration::from_secs(30);
/// How long one attempt to listen, or a sign of life, may take.
const OPENING: Duration = Duration::from_secs(5);

fn jitter(seconds: std::ops::Range<f64>) -> Duration {
    Duration::from_secs_f64(rand::rng().random_range(seconds))
}

impl Waiters {
    fn state(&self) -> MutexGuard<'_, State> {
        // No step on it can fail half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether notifications do not come through at the moment.
    pub fn is_deaf(&self) -> bool {
        self.state().listening.is_none()
    }

    /// Joins the end of the line, to take the lock with this token.
    pub fn join(&self, name: &Name, token: Token, lease: Lease, bell: Bell) -> Arc<Waiter> {
        let mut state = self.state();
        state.numbers += 1;
        let waiter = Arc::new(Waiter {
            number: state.numbers,
            name: name.clone(),
            token,
            lease,
            bell,
        });
        let place = Place {
            waiter: waiter.clone(),
            ticket: 0,
            previous: 0,
            queued: false,
            called: None,
            next: None,
            asking: false,
            rung: false,
            again: None,
            due: Instant::now(),
            fresh: true,
            tries: 0,
            busy: 0,
            seen: None,
        };
        let line = state.lines.entry(name.clone()).or_default();
        line.places.push_back(place);
        state.quiet = None;
        waiter
    }

    /// What the waiter has to do now.
    pub fn plan(&self, waiter: &Waiter) -> Plan {
        let mut state = self.state();
        let State {
            lines,
            listening,
            tickets,
            ..
        } = &mut *state;
        let now = Instant::now();
        let Some((line, position)) = lines
            .get_mut(&waiter.name)
            .and_then(|line| line.position(waiter).map(|position| (line, position)))
        else {
            return Plan::Sleep(None);
        };
        let ready = listening.is_none_or(|listener| {
            line.places
                .iter()
                .take(position)
                .all(|before| before.queued_at(listener))
        });
        let place = &mut line.places[position];
        match *listening {
            None if position == 0 || place.called.is_some() => {
                if place.called.is_none() && now < place.due {
                    return Plan::Sleep(Some(place.due));
                }
                place.called = None;
                place.asking = true;
                return Plan::Try;
            }
            Some(listener) if ready => {
                if let Some(again) = place.again {
                    if now < again {
                        return Plan::Sleep(Some(again));
                    }
                } else if place.queued_at(listener) {
                    let due = (position == 0).then_some(place.due);
                    if place.called.is_none() && due.is_none_or(|due| now < due) {
                        return Plan::Sleep(due);
                    }
                } else {
                    if place.tries > 1 && now < place.due {
                        return Plan::Sleep(Some(place.due));
                    }
                    if place.ticket >> Listener::TICKET_BITS != listener {
                        *tickets = (*tickets + 1) % (1 << Listener::TICKET_BITS);
                        place.previous = place.ticket;
                        place.ticket = listener << Listener::TICKET_BITS | *tickets;
                        place.queued = false;
                    }
                }
            }
            _ => return Plan::Sleep(None),
        }
        // Before the statement is sent: a call that comes meanwhile is a new one.
        let called = place.called.take().is_some() && place.queued;
        place.next = None;
        place.again = None;
        place.asking = true;
        let (ticket, previous) = (place.ticket, place.previous);
        Plan::Ask {
            ticket,
            previous,
            known: line
                .known
                .iter()
                .copied()
                .filter(|other| ![ticket, previous].contains(other))
                .collect(),
            called,
        }
    }

    fn at_place(&self, waiter: &Waiter, work: impl FnOnce(&mut Line, usize)) {
        let mut state = self.state();
        if let Some(line) = state.lines.get_mut(&waiter.name) {
            if let Some(position) = line.position(waiter) {
                line.places[position].asking = false;
                line.places[position].fresh = false;
                work(line, position);
            }
        }
    }

    /// The waiter asked, and found this.
    pub fn found(&self, waiter: &Waiter, queue: Queue) {
        let now = Instant::now();
        self.at_place(waiter, |line, position| {
            let place = &mut line.places[position];
            place.queued = queue.queued;
            if !queue.queued {
                // The row was locked by somebody: again in a moment.
                place.tries = place.tries.max(1) + 1;
                place.due = now + jitter(0.01..0.05);
                return;
            }
            place.tries = 0;
            place.due = now + Waiters::pause(place, &queue, now);
            if let Some(next) = place.next.take() {
                place.due = place.due.min(next);
            }
            place.again = None;
            if !queue.live && queue.ahead == 0 {
                // Others enter or leave the queue, or a guard is longer under way.
                let limit = (0.002 * 1.5_f64.powi(place.busy)).min(0.3);
                place.busy = (place.busy + 1).min(50);
                place.again = Some(now + jitter(limit / 2.0..limit));
            } else {
                place.busy = 0;
            }
            line.known = queue.tickets;
            // The next one waits for this one to be in the queue.
            line.ring(position + 1);
        });
    }

    /// For how long one that is in the queue need not ask again.
    fn pause(place: &mut Place, queue: &Queue, now: Instant) -> Duration {
        let turn = TURN * queue.ahead.min(1000);
        let left = Duration::from_secs_f64(queue.remaining.clamp(0.0, Lease::MAX_SECONDS));
        if !queue.live {
            // Nobody holds it: it is the turn of those before, or the row is locked.
            let since = Duration::from_secs_f64((-queue.remaining).clamp(0.0, 1e6));
            return turn.saturating_sub(since) + jitter(0.001..0.004);
        }
        let poll = jitter(POLL);
        if queue.foreign {
            // Its end is announced to nobody.
            return (left + turn).min(poll * (queue.ahead + 1)) + Duration::from_millis(1);
        }
        let processes: HashSet<i64> = queue
            .tickets
            .iter()
            .map(|ticket| ticket >> Listener::TICKET_BITS)
            .collect();
        // In all, one statement a second, or fewer, however many wait.
        #[allow(clippy::cast_precision_loss)] // far from 2⁵²
        let look = jitter(0.8..1.2).mul_f64(LOOK.max(processes.len() as f64));
        let expires = now + left;
        let extended = place
            .seen
            .replace((queue.fence, expires))
            .is_some_and(|(fence, before)| {
                fence == queue.fence && expires > before + Duration::from_millis(5)
            });
        if queue.ahead > 1 {
            return look;
        }
        // The holder extends, so it lives and is going to announce its end.
        let least = Duration::from_secs(u64::from(extended) * u64::from(1 + queue.ahead));
        (left + turn + Duration::from_millis(2))
            .max(least)
            .min(look)
    }

    /// The waiter tried without the queue, in vain. `true` if a thread has to be
    /// started that calls [`Waiters::attend`].
    pub fn refused(&self, waiter: &Waiter) -> bool {
        let now = Instant::now();
        self.at_place(waiter, |line, position| {
            let place = &mut line.places[position];
            // Soon for the first time: the listener may just be getting ready.
            let pause = if std::mem::take(&mut place.tries) == 0 {
                jitter(0.05..0.1)
            } else {
                jitter(POLL)
            };
            place.tries = 1;
            place.due = now + pause;
        });
        self.somebody.notify_one();
        !std::mem::replace(&mut self.state().attended, true)
    }

    /// The waiter's statement failed.
    pub fn failed(&self, waiter: &Waiter) {
        self.at_place(waiter, |_, _| {});
    }

    /// The waiter has acquired the lock until then, or (`None`) waits no longer.
    /// Tells its ticket, if it may be in the database's queue.
    pub fn left(&self, waiter: &Waiter, acquired: Option<Duration>) -> Option<i64> {
        let mut state = self.state();
        let state = &mut *state;
        let line = state.lines.get_mut(&waiter.name)?;
        let position = line.position(waiter)?;
        let gone = line.places.remove(position)?;
        line.known.retain(|ticket| *ticket != gone.ticket);
        if let Some(next) = line.places.front_mut().filter(|next| !next.fresh) {
            let now = Instant::now();
            next.due = match acquired {
                Some(lease) if next.queued && state.listening.is_some() => {
                    now + lease + Duration::from_millis(2)
                }
                Some(_) => now + jitter(POLL),
                None if position == 0 => next.due.min(gone.due),
                None => next.due,
            };
        }
        line.ring(0);
        if position > 0 {
            line.ring(position);
        }
        if line.places.is_empty() {
            state.lines.remove(&waiter.name);
        }
        if state.lines.is_empty() {
            state.quiet = Some(Instant::now());
        }
        (gone.ticket != 0).then_some(gone.ticket)
    }

    /// Sleeps until the bell rings, but not beyond `until`.
    pub fn sleep(&self, waiter: &Waiter, until: Instant) {
        let Bell::Thread(condvar) = &waiter.bell else {
            return;
        };
        let mut state = self.state();
        loop {
            let place = state.lines.get_mut(&waiter.name).and_then(|line| {
                let position = line.position(waiter)?;
                line.places.get_mut(position)
            });
            if place.is_none_or(|place| std::mem::take(&mut place.rung)) {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = condvar
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn call(&self, calls: &[Call]) {
        let mut woken: Vec<Arc<Waiter>> = Vec::new();
        let mut state = self.state();
        let now = Instant::now();
        for call in calls {
            let (Call::Turn(ticket) | Call::Next(ticket)) = *call;
            let place = state
                .lines
                .values_mut()
                .flat_map(|line| line.places.iter_mut())
                .find(|place| place.ticket == ticket);
            let Some(place) = place else { continue };
            match call {
                Call::Turn(_) => place.called = Some(now),
                // A little later than the first one's turn ends.
                Call::Next(_) => {
                    let due = now + TURN.mul_f64(1.04);
                    place.due = place.due.min(due);
                    place.next = Some(due);
                }
            }
            place.rung = true;
            woken.push(place.waiter.clone());
        }
        // One that does not come when it is its turn, because what it runs in is
        // busy with something else, must not keep the others of its process waiting.
        for line in state.lines.values_mut() {
            let late =
                |place: &Place, since: Instant| !place.asking && now > since + TURN.mul_f64(1.1);
            let mut pass = None;
            for (position, place) in line.places.iter().enumerate() {
                let since = place.called.or((position == 0).then_some(place.due));
                match since {
                    Some(since) if late(place, since) => pass = Some(position + 1),
                    _ => break,
                }
            }
            if let Some(place) = pass.and_then(|position| line.places.get_mut(position)) {
                if place.called.is_none() && !place.asking {
                    place.called = Some(now);
                    place.rung = true;
                    woken.push(place.waiter.clone());
                }
            }
        }
        // Those who wake up need the state.
        drop(state);
        for waiter in woken {
            waiter.ring();
        }
    }

    fn set_listening(&self, listener: Option<i64>) {
        let mut state = self.state();
        state.listening = listener;
        for line in state.lines.values_mut() {
            if listener.is_none() {
                if let Some(first) = line.places.front_mut() {
                    first.due = first.due.min(Instant::now() + jitter(0.0..0.1));
                }
            }
            line.ring(0);
        }
    }

    /// Whether to go on listening: somebody waits, or did so not long ago.
    fn wanted(&self) -> bool {
        let mut state = self.state();
        let wanted = state.quiet.is_none_or(|since| since.elapsed() < QUIET);
        if !wanted {
            state.attended = false;
            state.listening = None;
        }
        wanted
    }

    /// Nobody could be found to listen.
    pub fn unattended(&self) {
        self.state().attended = false;
    }

    /// Listens for as long as somebody waits. The work of a thread of its own.
    pub fn attend(&self, store: &Store) {
        let mut pause = Duration::from_millis(50);
        loop {
            match Listener::open(store, Patience::new(OPENING, &|| Ok(()))) {
                Ok(mut listener) => {
                    self.set_listening(Some(listener.number()));
                    while self.wanted() && self.listen(&mut listener) {}
                    pause = Duration::from_millis(50);
                }
                Err(Deaf::Pooler) => {
                    log::debug!("notifications do not come through: waiters poll");
                    pause = Duration::from_secs(300);
                }
                Err(Deaf::Unreachable(failure)) => {
                    log::debug!("no listening connection: {failure:?}");
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
            self.set_listening(None);
            let until = Instant::now() + pause;
            loop {
                if !self.wanted() {
                    return;
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                // Calls nobody, but sees to those who are late.
                self.call(&[]);
                let state = self.state();
                drop(self.somebody.wait_timeout(state, left.min(PING)));
            }
        }
    }

    /// Asks the server for a sign of life. If that takes longer than it should, the
    /// waiters look for themselves in the mean time: the server may just be slow.
    fn ping(&self, listener: &mut Listener) -> Result<(), Failure> {
        let (started, number) = (Instant::now(), listener.number());
        let late = Cell::new(false);
        let check = || {
            if !late.get() && started.elapsed() > PING {
                late.set(true);
                self.set_listening(None);
            }
            Ok(())
        };
        listener.ping(Patience::new(OPENING, &check))?;
        if late.get() {
            self.set_listening(Some(number));
        }
        Ok(())
    }

    /// Passes on what is heard; `false` if the connection is lost.
    fn listen(&self, listener: &mut Listener) -> bool {
        let heard = listener.hear(PING);
        let heard = heard.and_then(|calls| {
            if calls.is_empty() && self.state().quiet.is_none() {
                self.ping(listener)?;
            }
            Ok(calls)
        });
        match heard {
            Ok(calls) => {
                self.call(&calls);
                true
            }
            Err(failure) => {
                log::debug!("the listening connection is lost: {failure:?}");
                false
            }
        }
    }
}
