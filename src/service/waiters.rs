//! The waiters of one process: wakes them, and runs the thread that listens for them. Each waiter's
//! [`Line`] decides what the waiter does.

use super::locked;
use super::registry::{Crowd, registry};
use super::wakeup::Wakeup;
use crate::engine::{Lease, Line, Name, Outcome, Plan, Seen, TICKET_BITS};
use crate::store::{Call, Queue};
use crate::sync::{Condvar, Instant, Mutex, process_id, random};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

mod listening;

/// A single waiter.
pub struct Waiter {
    number: u64,
    name: Name,
    wakeup: Arc<Wakeup>,
}

#[derive(Default)]
struct State {
    lines: HashMap<Name, Line<Arc<Wakeup>>>,
    /// The line of each ticket.
    tickets: HashMap<i64, Name>,
    /// The number of the listener, while notifications come through.
    listening: Option<i64>,
    /// Whether a thread listens, or tries to.
    attended: bool,
    last_ticket: i64,
    numbers: u64,
    /// Whether the registry knows these waiters.
    registered: bool,
    /// Since when nobody has been waiting.
    quiet: Option<Instant>,
    /// When we last looked for leaders that do not take their turn.
    looked: Option<Instant>,
}

/// The waiters of one process for the locks of one configuration.
#[derive(Default)]
pub struct Waiters {
    state: Mutex<State>,
    /// Wakes the listening thread while it cannot listen.
    somebody: Condvar,
}

/// How long a free lock is reserved for the first in the queue; see `wait.sql`.
const TURN: Duration = Duration::from_millis(500);
/// Range of the polling interval for a lock whose release would not be notified.
const POLL: std::ops::Range<f64> = 0.4..0.7;
/// How often, in seconds, a waiter rechecks the queue: an administrator may have emptied it.
const LOOK: f64 = 2.0;
/// How often the listening connection is pinged, and how long that may take before waiters look for
/// themselves.
const PING: Duration = Duration::from_millis(300);

fn jitter(seconds: std::ops::Range<f64>) -> Duration {
    Duration::from_secs_f64(random(seconds))
}

impl Crowd for Waiters {
    fn count(&self, name: &Name) -> (usize, bool) {
        let state = locked(&self.state);
        let line = state.lines.get(name);
        line.map_or((0, false), |line| (line.len(), line.is_queued()))
    }
}

impl Waiters {
    /// How many wait for each lock, and, while a thread listens, whether notifications come
    /// through.
    pub fn measured(&self) -> (Vec<(Name, usize)>, Option<bool>) {
        let state = locked(&self.state);
        let lines = state.lines.iter();
        let waiting = lines.map(|(name, line)| (name.clone(), line.len()));
        let listening = state.attended.then_some(state.listening.is_some());
        (waiting.collect(), listening)
    }

    /// Joins the end of the line.
    pub fn join(self: &Arc<Waiters>, name: &Name, wakeup: Arc<Wakeup>) -> Arc<Waiter> {
        let mut state = locked(&self.state);
        if !std::mem::replace(&mut state.registered, true) {
            let crowd: Weak<Waiters> = Arc::downgrade(self);
            registry(process_id()).add(crowd);
        }
        state.numbers += 1;
        let number = state.numbers;
        let now = Instant::now();
        let line = state.lines.entry(name.clone());
        let line = line.or_insert_with(|| Line::new(now));
        line.join(number, wakeup.clone(), now);
        state.quiet = None;
        Arc::new(Waiter {
            number,
            name: name.clone(),
            wakeup,
        })
    }

    /// Whether the waiter acts for its line now; the others just sleep.
    pub fn leads(&self, waiter: &Waiter) -> bool {
        self.at_line(waiter, |line| line.leads(waiter.number))
            .unwrap_or(true)
    }

    /// Whether waiters of this process precede a caller that does not wait. While notifications
    /// come through, the queue in the database decides that, for all processes.
    pub fn come_first(&self, name: &Name) -> bool {
        let state = locked(&self.state);
        let line = state.lines.get(name).filter(|_| state.listening.is_none());
        line.is_some_and(|line| line.comes_first(Instant::now(), TURN))
    }

    /// The lock may just have become free.
    pub fn look_at_once(&self, waiter: &Waiter) {
        self.at_line(waiter, |line| line.look_at_once(Instant::now()));
    }

    /// What the waiter should do now.
    pub fn plan(&self, waiter: &Waiter) -> Plan {
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        let Some(line) = state.lines.get_mut(&waiter.name) else {
            return Plan::Sleep(None);
        };
        let now = Instant::now();
        let mut last = state.last_ticket;
        let before = line.ticket();
        let plan = line.plan(waiter.number, now, state.listening, || {
            last = (last + 1) % (1 << TICKET_BITS);
            last
        });
        state.last_ticket = last;
        let ticket = line.ticket();
        if ticket != before {
            state.tickets.remove(&before);
            state.tickets.insert(ticket, waiter.name.clone());
        }
        // Another waiter leads, and may have to act before this one.
        let leader = matches!(plan, Plan::Sleep(None)).then(|| line.wake(now));
        drop(guard);
        if let Some(leader) = leader.flatten() {
            if !Arc::ptr_eq(&leader, &waiter.wakeup) {
                leader.wake();
            }
        }
        plan
    }

    fn at_line<T>(
        &self,
        waiter: &Waiter,
        work: impl FnOnce(&mut Line<Arc<Wakeup>>) -> T,
    ) -> Option<T> {
        let mut state = locked(&self.state);
        state.lines.get_mut(&waiter.name).map(work)
    }

    /// The waiter asked and found this queue.
    pub fn found(&self, waiter: &Waiter, queue: Queue) {
        let now = Instant::now();
        self.at_line(waiter, |line| {
            let busy = queue.is_busy();
            let due = if queue.queued {
                now + Waiters::pause(line, &queue, now)
            } else {
                now + jitter(0.01..0.05)
            };
            let limit = (0.002 * 1.5_f64.powi(line.busy())).min(0.3);
            let seen = Seen {
                queued: queue.queued,
                busy,
                due,
                tickets: queue.tickets,
            };
            line.found(waiter.number, seen, now, jitter(limit / 2.0..limit));
        });
    }

    /// How long a queued waiter need not ask again.
    fn pause(line: &mut Line<Arc<Wakeup>>, queue: &Queue, now: Instant) -> Duration {
        let turn = TURN * queue.ahead.min(1000);
        let time = |seconds: f64| {
            // NaN counts as zero.
            Duration::try_from_secs_f64(seconds.clamp(0.0, Lease::MAX_SECONDS)).unwrap_or_default()
        };
        let left = time(queue.remaining);
        if !queue.live {
            // Nobody holds it: it is the turn of an earlier waiter, or the row is locked.
            let since = time(-queue.remaining);
            return turn.saturating_sub(since) + jitter(0.001..0.004);
        }
        let poll = jitter(POLL);
        if queue.foreign {
            // Nobody announces the end of this hold.
            return (left + turn).min(poll * (queue.ahead + 1)) + Duration::from_millis(1);
        }
        let processes: HashSet<i64> = queue
            .tickets
            .iter()
            .map(|ticket| ticket >> TICKET_BITS)
            .collect();
        // At most one statement a second in total, however many wait.
        #[allow(clippy::cast_precision_loss)] // far from 2⁵²
        let look = jitter(0.8..1.2).mul_f64(LOOK.max(processes.len() as f64));
        let expires = now + left;
        let extended = line
            .seen
            .replace((queue.fence, expires))
            .is_some_and(|(fence, before)| {
                fence == queue.fence && expires > before + Duration::from_millis(5)
            });
        if queue.ahead > 1 {
            return look;
        }
        // The holder extends, so it is alive and will announce the end.
        let least = Duration::from_secs(u64::from(extended) * u64::from(1 + queue.ahead));
        (left + turn + Duration::from_millis(2))
            .max(least)
            .min(look)
    }

    /// The waiter's attempt without the queue failed. `true` if the caller must start a thread that
    /// calls [`Waiters::attend`].
    pub fn refused(&self, waiter: &Waiter) -> bool {
        self.at_line(waiter, |line| {
            // Soon after the first attempt: the listener may just be getting ready.
            let pause = if line.was_refused() {
                jitter(POLL)
            } else {
                jitter(0.05..0.1)
            };
            line.refused(waiter.number, Instant::now() + pause);
        });
        self.listen_soon()
    }

    /// Announces a waiter. `true` as above.
    pub fn listen_soon(&self) -> bool {
        self.somebody.notify_one();
        !std::mem::replace(&mut locked(&self.state).attended, true)
    }

    /// The waiter's statement failed.
    pub fn failed(&self, waiter: &Waiter) {
        self.at_line(waiter, |line| line.failed(waiter.number));
    }

    /// The waiter's wait has ended. Returns the ticket if it may be in the database's queue with no
    /// waiter left to use it.
    pub fn left(&self, waiter: &Waiter, outcome: Outcome) -> Option<i64> {
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        let line = state.lines.get_mut(&waiter.name)?;
        let now = Instant::now();
        let before = line.ticket();
        let ticket = line.left(waiter.number, outcome, now);
        let mut next = None;
        if before != line.ticket() || line.is_empty() {
            state.tickets.remove(&before);
        }
        if line.is_empty() {
            state.lines.remove(&waiter.name);
            if state.lines.is_empty() {
                state.quiet = Some(now);
            }
        } else {
            next = line.wake(now);
        }
        drop(guard);
        if let Some(next) = next {
            next.wake();
        }
        ticket
    }

    /// Sleeps until woken, but not beyond `until`.
    pub fn sleep(&self, waiter: &Waiter, until: Instant) {
        let Wakeup::Thread(condvar) = &*waiter.wakeup else {
            return;
        };
        let mut state = locked(&self.state);
        loop {
            let line = state.lines.get_mut(&waiter.name);
            if line.is_none_or(|line| line.sleeps_no_longer(waiter.number)) {
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

    /// Whether a waiter uses a ticket. Once none does, none will.
    pub fn uses(&self, ticket: i64) -> bool {
        locked(&self.state).tickets.contains_key(&ticket)
    }

    fn call(&self, calls: &[Call]) {
        let mut woken: Vec<Arc<Wakeup>> = Vec::new();
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        let now = Instant::now();
        for call in calls {
            let (Call::Turn(ticket) | Call::Next(ticket)) = *call;
            let name = state.tickets.get(&ticket);
            let Some(line) = name.and_then(|name| state.lines.get_mut(name)) else {
                continue;
            };
            let news = match call {
                Call::Turn(_) => line.call(now),
                // A little after the first one's turn ends.
                Call::Next(_) => line.call_next(now + TURN.mul_f64(1.04)),
            };
            if news {
                woken.extend(line.wake(now));
            }
        }
        // The woken waiters need the state.
        drop(guard);
        for wakeup in woken {
            wakeup.wake();
        }
    }

    /// Passes over leaders that do not take their turn.
    fn pass_by(&self) {
        let now = Instant::now();
        let mut state = locked(&self.state);
        if state.looked.is_some_and(|before| now < before + PING / 2) {
            return;
        }
        state.looked = Some(now);
        let lines = state.lines.values_mut();
        let woken: Vec<_> = lines
            .filter_map(|line| line.pass_by(now, TURN.mul_f64(1.1)))
            .collect();
        drop(state);
        for wakeup in woken {
            wakeup.wake();
        }
    }
}
