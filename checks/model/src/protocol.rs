//! The transitions: what the database does with a statement, what a process does with an
//! answer, and what may go wrong. Each names what it stands for in [`STANDS_FOR`].

use crate::sizes::{Mutant, Sizes};
use crate::state::{
    Attempt, Hold, Kind, Late, Message, OLD, Owed, Process, Reply, Row, State, Ticket, Token,
    Watch, small,
};
use stateright::{Model, Property};

/// Which of the statements of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// That of the leader.
    Call,
    /// That of a release, of the extending thread, or of who leaves the queue.
    Back,
    /// That of the settling thread.
    Look,
    /// One whose answer nobody waits for.
    Late,
}

/// A transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Somebody wants the lock: leads, or waits behind the leader.
    Begin { process: usize },
    /// The leader sends the statement that its situation asks for.
    Ask { process: usize },
    /// The database executes a statement, or the next step of it.
    Execute { process: usize, slot: Slot },
    /// The process reads the answer.
    Receive { process: usize, slot: Slot },
    /// Fault: the connection breaks before that; the statement is repeated.
    Break { process: usize, slot: Slot },
    /// Fault: nobody wants what the leader asks for any more.
    GiveUp { process: usize },
    /// A block ends.
    Release { process: usize },
    /// The hold is to be extended.
    Extend { process: usize },
    /// The settling thread, or a newcomer, looks for unwanted holds.
    Look { process: usize },
    /// The settling thread takes a ticket out of the queue that may have entered late.
    LeaveLate { process: usize },
    /// The process leaves the queue of the database.
    Leave { process: usize },
    /// A notification arrives.
    Hear { process: usize },
    /// Fault: the listening connection is lost. Both ends notice.
    LoseListener { process: usize },
    /// There is a new one.
    Listen { process: usize },
    /// Fault: the process is killed.
    Crash { process: usize },
    /// A statement that nobody waits for is cancelled.
    Vanish { process: usize },
    /// A free row is deleted.
    Vacuum,
    /// 0.2.5 deletes what looks expired to it, and inserts its own row.
    OldAcquire,
    /// 0.2.5 extends its hold.
    OldExtend,
    /// 0.2.5 deletes its row.
    OldRelease,
    /// The process of 0.2.5 is killed, or forgets its hold.
    OldCrash,
    /// Time passes: half a second.
    Tick,
}

/// For each transition what it stands for: a statement in `src/store/sql`, or a function
/// (`file::function`). A test looks for each.
#[cfg_attr(not(test), allow(dead_code))] // for the tests and the reader
pub const STANDS_FOR: &[(&str, &[&str])] = &[
    (
        "Begin",
        &["service/acquisition.rs::new", "service/waiters.rs::join"],
    ),
    (
        "Ask",
        &["engine/queue.rs::plan", "service/granting.rs::ask"],
    ),
    (
        "Execute: Acquire",
        &["acquire.sql", "retake.sql", "taking.sql", "awaited.sql"],
    ),
    (
        "Execute: Wait, Take",
        &["wait.sql", "take.sql", "ahead.sql", "dead.sql"],
    ),
    ("Execute: Number", &["number.sql", "drawn.sql"]),
    ("Execute: Extend", &["extend.sql", "renew.sql", "live.sql"]),
    (
        "Execute: Release",
        &[
            "release.sql",
            "release_awaited.sql",
            "survivors.sql",
            "notified.sql",
        ],
    ),
    ("Execute: Leave", &["leave.sql", "notified.sql"]),
    (
        "Execute: Look, Undo",
        &["holder.sql", "service/owed.rs::look"],
    ),
    (
        "Receive",
        &[
            "store/statements/acquire.rs::taken",
            "service/acquisition.rs::accept",
            "engine/lease.rs::new",
            "engine/queue.rs::found",
            "service/acquisition/asking.rs::granted",
            "engine/late.rs::add",
            "engine/unresolved.rs::executed",
            "engine/late.rs::looked",
            "engine/late.rs::left",
        ],
    ),
    (
        "Break",
        &[
            "store/statements/execute.rs::try_again",
            "store/clock.rs::after",
        ],
    ),
    (
        "GiveUp",
        &[
            "service/acquisition.rs::give_up",
            "engine/unresolved.rs::owe",
            "engine/late.rs::add",
        ],
    ),
    (
        "Release",
        &[
            "service/ending.rs::begin_exit",
            "engine/holds/ending.rs::leave",
        ],
    ),
    ("Extend", &["service/renewal.rs::renew"]),
    (
        "Look",
        &[
            "service/owed.rs::attend",
            "service/owed.rs::settle",
            "engine/unresolved.rs::of",
        ],
    ),
    (
        "LeaveLate",
        &["service/owed.rs::leave", "service/waiters.rs::uses"],
    ),
    ("Leave", &["service/ending.rs::leave_queue_now"]),
    (
        "Hear",
        &["service/waiters.rs::call", "engine/queue.rs::call_next"],
    ),
    (
        "LoseListener",
        &["service/waiters/listening.rs::set_listening"],
    ),
    ("Listen", &["service/waiters/listening.rs::attend", "listen.sql"]),
    ("Crash", &["dead.sql"]),
    ("Vacuum", &["vacuum.sql", "sweep.sql"]),
    ("Vanish", &["store/session.rs::cancel"]),
    (
        "OldAcquire, OldExtend, OldRelease, OldCrash",
        &["yielded.sql", "live.sql"],
    ),
    (
        "Tick",
        &[
            "engine/lease.rs::passed",
            "service/renewal.rs::due",
            "live.sql",
        ],
    ),
];

/// How a wait ended.
#[derive(Clone, Copy)]
enum Outcome {
    /// With the lock; whether the statement has put the ticket to the queue's end or out of it,
    /// `None` if it did not ask through the queue.
    Acquired(Option<bool>),
    GaveUp,
}

impl State {
    fn next_fence(&mut self, above: u8) -> u8 {
        // taking.sql: `greatest(nextval, fence + 1)`; the sequence is never set back here.
        self.sequence += 1;
        self.sequence.max(above + 1)
    }

    /// `notified.sql`, with `survivors.sql`: calls the first who waits and lives, and tells
    /// the first of another process that it is next.
    fn notify(&mut self, sizes: &Sizes) {
        let Some(row) = self.row.as_ref().filter(|_| !sizes.silent) else {
            return;
        };
        let mut alive = row.waiters.iter().filter(|(_, ticket)| !ticket.dead);
        let Some(first) = alive.next() else { return };
        let next = alive.find(|(process, _)| *process != first.0);
        // A ticket that the process does not know is not passed on: `Waiters::call`.
        let of = &mut self.processes[usize::from(first.0)];
        of.turn |= of.ticket == Some(first.1);
        if let Some((process, ticket)) = next {
            let of = &mut self.processes[usize::from(*process)];
            of.next |= of.ticket == Some(*ticket);
        }
    }

    /// Executes a statement of a process. `None` if it was not the last that the message
    /// stands for.
    fn execute(&mut self, sizes: &Sizes, process: usize, message: &mut Message) -> Option<Reply> {
        let timely = message.is_timely(sizes);
        match message.kind {
            Kind::Acquire => self.acquire(sizes, process, message, timely),
            Kind::Take { ticket, more } => {
                let first = self.row.as_ref().is_some_and(|row| {
                    !row.live()
                        && !row.old
                        && row.waiters.first() == Some(&(small(process), ticket))
                });
                if first && timely {
                    return Some(self.take(sizes, process, message, (Some(ticket), None, more)));
                }
                // No row came back: wait.sql finds out, and is sent now.
                message.age = 0;
                message.repeated = false;
                message.kind = Kind::Wait {
                    ticket,
                    previous: None,
                    more,
                };
                None
            }
            Kind::Wait {
                ticket,
                previous,
                more,
            } => self.wait(sizes, process, message, (ticket, previous, more)),
            Kind::Number { lease, before, .. } => {
                let fence = match &self.row {
                    Some(row) if row.held_by(process, message.token) => row.fence,
                    _ => {
                        let due = Sizes::TURN;
                        return Some(Reply::Refused { queued: false, due });
                    }
                };
                if fence != before && !sizes.is(Mutant::NumbersAgain) {
                    return Some(Reply::Granted { fence, lease });
                }
                let fence = self.next_fence(fence);
                if let Some(row) = &mut self.row {
                    row.fence = fence;
                }
                Some(Reply::Granted { fence, lease })
            }
            Kind::Extend => {
                let Some(row) = &mut self.row else {
                    return Some(Reply::Found(false));
                };
                if sizes.is(Mutant::ExtendsAnyHold) {
                    row.holder = Some((small(process), message.token));
                } else if !row.held_by(process, message.token) {
                    return Some(Reply::Found(false));
                }
                row.left = row.left.max(signed(sizes.lease));
                Some(Reply::Found(true))
            }
            Kind::Look => {
                let Some(token) = self.unwanted(sizes, process) else {
                    return Some(Reply::Found(false));
                };
                message.kind = Kind::Undo;
                message.token = token;
                None
            }
            Kind::Release | Kind::Undo => {
                let held = |row: &&mut Row| row.held_by(process, message.token);
                let Some(row) = self.row.as_mut().filter(held) else {
                    return Some(Reply::Found(false));
                };
                row.left = 0;
                row.released = true;
                // survivors.sql: those at the head that are gone.
                let dead = row
                    .waiters
                    .iter()
                    .take_while(|(_, ticket)| ticket.dead)
                    .count();
                row.waiters.drain(..dead);
                self.notify(sizes);
                Some(Reply::Found(true))
            }
            Kind::Leave { ticket } => {
                if let Some(row) = &mut self.row {
                    let before = row.waiters.len();
                    row.waiters
                        .retain(|other| *other != (small(process), ticket));
                    if row.waiters.len() < before && !row.live() {
                        self.notify(sizes);
                    }
                }
                Some(Reply::Found(true))
            }
        }
    }

    /// `end_unwanted`: the token of the hold, if the look under way asks for it.
    fn unwanted(&self, sizes: &Sizes, process: usize) -> Option<Token> {
        let row = self.row.as_ref().filter(|row| row.live())?;
        let (_, token) = row.holder.filter(|(of, _)| *of == small(process))?;
        let of = &self.processes[process];
        let owed = of.owed.iter().any(|owed| owed.asked && owed.token == token);
        let mut watches = of.watches.iter().filter(|watch| watch.asked);
        let late = watches.any(|watch| watch.means(token, row.fence, sizes));
        (owed || late).then_some(token)
    }

    /// `acquire.sql`, which also covers `retake.sql`.
    fn acquire(
        &mut self,
        sizes: &Sizes,
        process: usize,
        message: &mut Message,
        timely: bool,
    ) -> Option<Reply> {
        let Some(row) = &self.row else {
            return self.insert(sizes, process, message, timely);
        };
        if message.conflicts() {
            return None;
        }
        let free = !row.live() || sizes.is(Mutant::TakesWhatIsHeld);
        let over = -row.left < signed(Sizes::AWAITED);
        let awaited = !row.waiters.is_empty() && !row.old && over;
        if free && timely && !awaited {
            return Some(self.take(sizes, process, message, (None, None, false)));
        }
        if row.held_by(process, message.token) {
            return self.mine(message, None);
        }
        Some(Reply::Refused {
            queued: false,
            due: Sizes::TURN,
        })
    }

    /// `wait.sql`: takes the lock if it is this ticket's turn, or enters the queue.
    fn wait(
        &mut self,
        sizes: &Sizes,
        process: usize,
        message: &mut Message,
        (ticket, previous, more): (Ticket, Option<Ticket>, bool),
    ) -> Option<Reply> {
        let timely = message.is_timely(sizes);
        let Some(row) = &mut self.row else {
            return self.insert(sizes, process, message, timely);
        };
        if message.conflicts() {
            return None;
        }
        let ahead = row.ahead(process, ticket, previous);
        let free = !row.live() || sizes.is(Mutant::TakesWhatIsHeld);
        // An old row's `expires` is not to be relied on, and nobody comes first.
        let turn = row.old || -row.left >= signed(ahead * Sizes::TURN);
        if free && timely && turn {
            return Some(self.take(sizes, process, message, (Some(ticket), previous, more)));
        }
        let own = (small(process), ticket);
        if row.held_by(process, message.token) {
            let queued = row.waiters.contains(&own);
            return self.mine(message, Some((ticket, queued)));
        }
        if timely && !row.waiters.contains(&own) {
            let previous = previous.map(|ticket| (own.0, ticket));
            match row
                .waiters
                .iter_mut()
                .find(|other| Some(**other) == previous)
            {
                Some(other) => *other = own,
                None => row.waiters.push(own),
            }
        }
        // `Waiters::pause`: when it can have the lock if nobody calls, or to look after the queue.
        let due = if ahead > 1 {
            Sizes::LOOK
        } else {
            let due = (row.left + signed(ahead * Sizes::TURN)).max(0);
            Sizes::LOOK.min(due.unsigned_abs())
        };
        Some(Reply::Refused {
            queued: row.waiters.contains(&own),
            due,
        })
    }

    /// `taking.sql`. What a waiter's statement also does: its ticket leaves, or goes to the end.
    fn take(
        &mut self,
        sizes: &Sizes,
        process: usize,
        message: &Message,
        (ticket, previous, more): (Option<Ticket>, Option<Ticket>, bool),
    ) -> Reply {
        let above = self.row.as_ref().map_or(0, |row| row.fence);
        let fence = self.next_fence(above);
        let lease = sizes.lease;
        let mut row = Row::held(small(process), message.token, lease, fence);
        row.waiters = self.row.take().map_or(Vec::new(), |row| row.waiters);
        row.waiters.retain(|(of, other)| {
            *of != small(process) || Some(*other) != ticket && Some(*other) != previous
        });
        let end = ticket
            .filter(|_| more)
            .map(|ticket| (small(process), ticket));
        row.waiters.extend(end);
        self.row = Some(row);
        Reply::Granted { fence, lease }
    }

    /// `INSERT … ON CONFLICT DO NOTHING`: draws a fence first, and inserts in another step.
    fn insert(
        &mut self,
        sizes: &Sizes,
        process: usize,
        message: &mut Message,
        timely: bool,
    ) -> Option<Reply> {
        if !timely {
            let due = Sizes::TURN;
            return Some(Reply::Refused { queued: false, due });
        }
        if message.drawn == 0 {
            message.drawn = self.next_fence(0);
            return None;
        }
        let fence = std::mem::take(&mut message.drawn);
        let lease = sizes.lease;
        let mut row = Row::held(small(process), message.token, lease, fence);
        let queued = match message.kind {
            Kind::Wait { ticket, more, .. } => Some((ticket, more)),
            _ => None,
        };
        if let Some((ticket, true)) = queued {
            row.waiters.push((small(process), ticket));
        }
        self.row = Some(row);
        if fence == self.sequence || sizes.is(Mutant::FenceDrawnEarly) {
            return Some(Reply::Granted { fence, lease });
        }
        // Not the newest: it may be older than others of the name.
        message.kind = Kind::Number {
            lease,
            before: fence,
            queued,
        };
        None
    }

    /// A repetition has found its own token: `number.sql` gives it a fence.
    fn mine(&mut self, message: &mut Message, queued: Option<(Ticket, bool)>) -> Option<Reply> {
        let row = self.row.as_ref()?;
        message.kind = Kind::Number {
            lease: row.left.unsigned_abs(),
            before: row.fence,
            queued,
        };
        None
    }

    /// The wait of the leader is over: the next one of the process leads, or the ticket is to
    /// leave the queue. `Line::left` of `engine/queue.rs`.
    fn end_wait(&mut self, process: usize, outcome: Outcome, lease: u8) {
        let token = self.fresh_token(process);
        let of = &mut self.processes[process];
        let Some(mut attempt) = of.attempt.take() else {
            return;
        };
        match outcome {
            Outcome::GaveUp => of.due = 0,
            Outcome::Acquired(queued) => {
                of.called = false;
                of.queued = queued == Some(true);
                of.due = if of.queued { lease } else { 0 };
                if queued.is_some() {
                    of.previous = None;
                }
                if queued == Some(false) {
                    of.lose_ticket();
                }
                attempt.tried = queued.is_some();
            }
        }
        if of.behind > 0 {
            of.behind -= 1;
            attempt.token = token;
            attempt.unknown = false;
            of.attempt = Some(attempt);
        } else {
            of.leaving = of.leaving.or(of.ticket);
            of.previous = None;
            of.queued = false;
            of.called = false;
            of.due = 0;
            of.lose_ticket();
        }
    }

    /// The lock was granted to the leader, or to one that does not wait: `Acquisition::accept`.
    fn accept(&mut self, sizes: &Sizes, process: usize, fence: u8, left: u8, queued: Option<bool>) {
        let of = &mut self.processes[process];
        let Some(attempt) = of.attempt else { return };
        let token = attempt.token;
        if attempt.unknown && !sizes.is(Mutant::RepetitionNotWatched) {
            // A statement before may take it once more.
            let granted = fence;
            of.watch(Late::Taking { token, granted }, Sizes::VALID + 1);
        }
        self.end_wait(process, Outcome::Acquired(queued), sizes.lease);
        let of = &mut self.processes[process];
        if left == 0 || of.hold.is_some() {
            // Too late: the hold is given back.
            of.owe(token, false, sizes.lease);
            return;
        }
        of.hold = Some(Hold { token, left });
        self.fence_fell |= fence <= self.told;
        self.told = self.told.max(fence);
    }

    fn receive(&mut self, sizes: &Sizes, process: usize, slot: Slot) {
        let of = &mut self.processes[process];
        let Some(message) = of.slot(slot).take() else {
            return;
        };
        let age = if sizes.is(Mutant::CountsFromAnswer) {
            0
        } else {
            message.age
        };
        if message.repeated {
            of.watch_ticket(sizes, message.kind);
        }
        match (message.reply, message.kind) {
            (Some(Reply::Granted { fence, lease }), kind) => {
                let queued = match kind {
                    Kind::Wait { more, .. } | Kind::Take { more, .. } => Some(more),
                    Kind::Number { queued, .. } => queued.map(|(_, queued)| queued),
                    _ => None,
                };
                self.accept(sizes, process, fence, lease.saturating_sub(age), queued);
            }
            (Some(Reply::Refused { queued, due }), _) => {
                if of.attempt.is_none() {
                    return;
                }
                let without_queue = matches!(message.kind, Kind::Acquire);
                of.queued = queued || without_queue && of.queued;
                // Who listens, and was refused without the queue, enters it at once.
                of.due = if without_queue && of.listening {
                    0
                } else {
                    due
                };
                if !sizes.waits {
                    of.give_up(sizes);
                    of.attempt = None;
                }
            }
            (Some(Reply::Found(found)), Kind::Extend) => {
                let hold = of.hold.as_mut().filter(|hold| hold.token == message.token);
                let Some(hold) = hold else { return };
                if found {
                    hold.left = hold.left.max(sizes.lease.saturating_sub(age));
                } else {
                    of.hold = None;
                }
            }
            // `Owed::resolved`.
            (_, Kind::Release) => of.owed.retain(|owed| owed.token != message.token),
            (Some(Reply::Found(found)), Kind::Look | Kind::Undo) => {
                of.looked(sizes, &message, found);
            }
            (_, Kind::Leave { ticket }) if slot == Slot::Look => {
                of.watches
                    .retain(|watch| watch.late != Late::Entering(ticket));
            }
            _ => {}
        }
    }

    fn tick(&mut self, sizes: &Sizes) {
        if let Some(row) = &mut self.row {
            row.left = (row.left - 1).max(-Sizes::OVER);
        }
        self.old = self.old.saturating_sub(1);
        for of in &mut self.processes {
            of.began = false;
            of.due = of.due.saturating_sub(1);
            let messages = [&mut of.call, &mut of.back, &mut of.look, &mut of.late];
            for message in messages.into_iter().flatten() {
                message.age = (message.age + 1).min(sizes.oldest());
            }
            // What is too late to take anything does nothing, nor does it enter the queue.
            of.late = of.late.filter(|late| {
                !late.kind.takes() || late.age <= Sizes::VALID || sizes.is(Mutant::NeverTooLate)
            });
            for owed in &mut of.owed {
                owed.until = owed.until.saturating_sub(1);
            }
            of.owed.retain(|owed| owed.in_flight || owed.until > 0);
            for watch in &mut of.watches {
                watch.left = watch.left.saturating_sub(1);
            }
            if let Some(hold) = &mut of.hold {
                hold.left -= 1;
                if hold.left == 0 {
                    // `LockExpired`. The row may be live a little longer: `Ending::Lost`.
                    let hold = *hold;
                    of.hold = None;
                    of.owe(hold.token, false, sizes.lease);
                }
            }
        }
    }
}

impl Watch {
    /// Whether it is the one to end this hold.
    fn means(self, hold: Token, fence: u8, sizes: &Sizes) -> bool {
        let Late::Taking { token, granted } = self.late else {
            return false;
        };
        token == hold && (granted != fence || sizes.is(Mutant::EndsTheGranted))
    }
}

impl Message {
    /// Whether it was about to insert and there is a row by now: `ON CONFLICT DO NOTHING`. It is
    /// sent again.
    fn conflicts(&mut self) -> bool {
        let conflicts = std::mem::take(&mut self.drawn) != 0;
        if conflicts {
            self.age = 0;
        }
        conflicts
    }

    /// `timely`: whether a statement that takes the lock may still do so.
    fn is_timely(&self, sizes: &Sizes) -> bool {
        self.age <= Sizes::VALID || sizes.is(Mutant::NeverTooLate)
    }
}

impl Row {
    /// A row that somebody has just taken or inserted.
    fn held(process: u8, token: Token, lease: u8, fence: u8) -> Row {
        Row {
            holder: Some((process, token)),
            left: signed(lease),
            released: false,
            fence,
            old: process == OLD,
            waiters: Vec::new(),
        }
    }

    /// What 0.2.5 takes for expired: `yielded.sql` lets a release look like a hold for as long
    /// as the first in the queue has its turn.
    fn looks_expired(&self) -> bool {
        let turn = self.released && !self.waiters.is_empty();
        !self.live() && (!turn || -self.left >= signed(Sizes::TURN))
    }
}

impl Process {
    fn slot(&mut self, slot: Slot) -> &mut Option<Message> {
        match slot {
            Slot::Call => &mut self.call,
            Slot::Back => &mut self.back,
            Slot::Look => &mut self.look,
            Slot::Late => &mut self.late,
        }
    }

    fn send(&mut self, slot: Slot, kind: Kind, token: Token) {
        *self.slot(slot) = Some(Message {
            kind,
            token,
            age: 0,
            drawn: 0,
            repeated: false,
            reply: None,
        });
    }

    /// `Unresolved::owe`.
    fn owe(&mut self, token: Token, acquires: bool, until: u8) {
        self.owed.retain(|owed| owed.token != token);
        self.owed.push(Owed {
            token,
            acquires,
            in_flight: false,
            asked: false,
            until: until.max(1),
        });
    }

    /// `Watches::add`.
    fn watch(&mut self, late: Late, left: u8) {
        self.watches.retain(|watch| watch.late != late);
        self.watches.push(Watch {
            late,
            left,
            asked: false,
            last: false,
        });
    }

    /// A `wait.sql` has no answer: its ticket may enter the queue late.
    fn watch_ticket(&mut self, sizes: &Sizes, kind: Kind) {
        let (Kind::Wait { ticket, .. }
        | Kind::Number {
            queued: Some((ticket, _)),
            ..
        }) = kind
        else {
            return;
        };
        if !sizes.is(Mutant::TicketNotWatched) {
            self.watch(Late::Entering(ticket), Sizes::VALID + 1);
        }
    }

    /// Somebody looks for all that is unwanted now.
    fn look_now(&mut self) {
        for owed in self.owed.iter_mut().filter(|owed| !owed.in_flight) {
            owed.asked = true;
        }
        for watch in &mut self.watches {
            watch.asked = matches!(watch.late, Late::Taking { .. });
            watch.last = watch.asked && watch.left == 0;
        }
        self.send(Slot::Look, Kind::Look, 0);
    }

    /// No look is under way any more.
    fn forget_look(&mut self) {
        for owed in &mut self.owed {
            owed.asked = false;
        }
        for watch in &mut self.watches {
            watch.asked = false;
            watch.last = false;
        }
    }

    /// `Unresolved::executed`, for each token that the look has asked for.
    fn looked(&mut self, sizes: &Sizes, message: &Message, found: bool) {
        let owed = self.owed.iter().filter(|owed| owed.asked);
        let mut tokens: Vec<Token> = owed.map(|owed| owed.token).collect();
        let watches = self.watches.iter().filter(|watch| watch.asked);
        tokens.extend(watches.filter_map(|watch| match watch.late {
            Late::Taking { token, .. } => Some(token),
            Late::Entering(_) => None,
        }));
        let by_answer = sizes.is(Mutant::LastByAnswer);
        self.watches
            .retain(|watch| !(watch.last || by_answer && watch.asked && watch.left == 0));
        for token in tokens {
            let any = sizes.is(Mutant::SettlesWhatCameLater);
            let done = |owed: &Owed| owed.token == token && (owed.asked || any && !owed.in_flight);
            let Some(place) = self.owed.iter().position(done) else {
                continue;
            };
            let owed = self.owed.remove(place);
            let found = found && message.token == token;
            if owed.acquires && !(found && sizes.is(Mutant::SettledByFinding)) {
                // One of its statements may be under way yet, whatever was found.
                let left = (Sizes::VALID + 1).saturating_sub(message.age);
                self.watch(Late::Taking { token, granted: 0 }, left);
            }
        }
        self.forget_look();
    }

    /// A ticket that may have entered the queue late, and can do so no more. Not while somebody
    /// waits with it.
    fn late_ticket(&self, sizes: &Sizes) -> Option<Ticket> {
        let any = sizes.is(Mutant::TrustsWhoWaits);
        self.watches.iter().find_map(|watch| match watch.late {
            Late::Entering(ticket) if watch.left == 0 => {
                (any || self.ticket != Some(ticket)).then_some(ticket)
            }
            _ => None,
        })
    }

    /// Whether there is anything to look for, and whether it is due.
    fn looks(&self) -> (bool, bool) {
        let owes = self.owed.iter().any(|owed| !owed.in_flight);
        let mut takings = self
            .watches
            .iter()
            .filter(|watch| matches!(watch.late, Late::Taking { .. }));
        let watches = takings.clone().next().is_some();
        (
            owes || watches,
            owes || takings.any(|watch| watch.left == 0),
        )
    }

    /// A statement that nobody waits for any more may be executed yet.
    fn abandon(&mut self, slot: Slot) {
        let message = self.slot(slot).take();
        let acts = |message: &Message| message.reply.is_none() && message.kind != Kind::Look;
        if let Some(message) = message.filter(acts) {
            self.late = self.late.or(Some(message));
        }
    }

    /// The ticket is another one from now on: calls to the old one are for nobody.
    fn lose_ticket(&mut self) {
        self.ticket = None;
        self.turn = false;
        self.next = false;
    }

    /// What the attempt of the leader leaves behind: `Acquisition::end`.
    fn give_up(&mut self, sizes: &Sizes) {
        let Some(attempt) = self.attempt else { return };
        let under_way = self.call;
        self.abandon(Slot::Call);
        if let Some(call) = under_way {
            self.watch_ticket(sizes, call.kind);
        }
        if attempt.unknown || under_way.is_some() {
            self.owe(attempt.token, true, Sizes::VALID + 1 + sizes.lease);
        }
    }
}

fn signed(ticks: u8) -> i8 {
    i8::try_from(ticks).expect("times are short")
}

/// The protocol with its sizes: what `stateright` explores.
#[derive(Clone, Copy, Debug)]
pub struct Protocol(pub Sizes);

impl Protocol {
    /// What a process may do by itself, or what may happen to it.
    fn of_process(&self, process: usize, of: &Process, faults: u8, actions: &mut Vec<Action>) {
        let sizes = &self.0;
        let faults = faults < sizes.faults;
        for (slot, message) in [
            (Slot::Call, of.call),
            (Slot::Back, of.back),
            (Slot::Look, of.look),
            (Slot::Late, of.late),
        ] {
            let Some(message) = message else { continue };
            if message.reply.is_none() {
                actions.push(Action::Execute { process, slot });
            } else {
                actions.push(Action::Receive { process, slot });
            }
            if faults && sizes.loses && slot != Slot::Late {
                actions.push(Action::Break { process, slot });
            }
        }
        if of.late.is_some() {
            actions.push(Action::Vanish { process });
        }
        if of.crashed {
            return;
        }
        let idle = of.hold.is_none() && of.leaving.is_none() && of.owed.is_empty();
        let room = of.attempt.is_none() || sizes.waits && of.behind < sizes.behind;
        if !of.began && idle && room {
            actions.push(Action::Begin { process });
        }
        if self.may_ask(of) {
            actions.push(Action::Ask { process });
        }
        if faults && of.attempt.is_some() && sizes.loses {
            actions.push(Action::GiveUp { process });
        }
        if of.turn || of.next && of.call.is_none() {
            actions.push(Action::Hear { process });
        }
        // Without lost answers no watch is there, and one of these threads at a time is enough.
        let alone = |alone: bool| sizes.loses || alone;
        let idle_look = alone(of.look.is_none());
        if let Some(hold) = of.hold {
            let renews = of.back.is_some_and(|back| back.kind == Kind::Extend);
            if (of.back.is_none() || renews) && idle_look {
                actions.push(Action::Release { process });
            }
            if sizes.extends && of.back.is_none() && idle_look && hold.left < sizes.lease {
                actions.push(Action::Extend { process });
            }
        }
        if of.look.is_none() {
            if of.looks().0 && alone(of.back.is_none()) {
                actions.push(Action::Look { process });
            }
            if of.late_ticket(sizes).is_some() {
                actions.push(Action::LeaveLate { process });
            }
        }
        if of.back.is_none() && of.leaving.is_some() && idle_look {
            actions.push(Action::Leave { process });
        }
        if faults && sizes.deafness && of.listening {
            actions.push(Action::LoseListener { process });
        }
        if !of.listening && of.attempt.is_some() {
            actions.push(Action::Listen { process });
        }
        if faults && sizes.crashes && !of.watched {
            actions.push(Action::Crash { process });
        }
    }

    /// Whether the leader sends a statement: `Line::plan`.
    fn may_ask(&self, of: &Process) -> bool {
        let Some(attempt) = of.attempt.filter(|_| of.call.is_none()) else {
            return false;
        };
        let due = of.due == 0 && !(self.0.is(Mutant::NeverLooks) && of.queued);
        !attempt.tried || of.called || due
    }

    fn ask(state: &mut State, process: usize) {
        let fresh = state.fresh_ticket(process);
        let of = &mut state.processes[process];
        let Some(attempt) = &mut of.attempt else {
            return;
        };
        let token = attempt.token;
        let first = !std::mem::replace(&mut attempt.tried, true);
        if first || !of.listening {
            of.called = false;
            of.send(Slot::Call, Kind::Acquire, token);
            return;
        }
        if of.ticket.is_none_or(|ticket| ticket.dead) {
            of.previous = of.ticket;
            of.lose_ticket();
            of.ticket = Some(fresh);
            of.queued = false;
        }
        let Some(ticket) = of.ticket else { return };
        let more = of.behind > 0;
        let called = std::mem::take(&mut of.called) && of.queued;
        let kind = if called {
            Kind::Take { ticket, more }
        } else {
            Kind::Wait {
                ticket,
                previous: of.previous,
                more,
            }
        };
        of.send(Slot::Call, kind, token);
    }

    fn execute(&self, state: &mut State, process: usize, slot: Slot) {
        let Some(before) = *state.processes[process].slot(slot) else {
            return;
        };
        let mut message = before;
        message.reply = state.execute(&self.0, process, &mut message);
        // Nobody reads the answer of one that is late, nor sends what would come next.
        let goes_on = message.reply.is_none() && message.drawn != 0;
        let kept = slot != Slot::Late || goes_on;
        *state.processes[process].slot(slot) = Some(message).filter(|_| kept);
    }

    /// The connection breaks before the answer was read: `Store::try_again`.
    fn lose(&self, of: &mut Process, slot: Slot) {
        let Some(message) = *of.slot(slot) else {
            return;
        };
        // A statement that a time limit ended cannot take anything any more when it is repeated.
        if self.0.outlives || !message.kind.takes() {
            of.abandon(slot);
        }
        *of.slot(slot) = None;
        match (slot, message.kind) {
            (Slot::Call, kind) => {
                let Some(attempt) = &mut of.attempt else {
                    return;
                };
                attempt.unknown |= kind.takes();
                of.send(Slot::Call, kind, message.token);
                if let Some(call) = &mut of.call {
                    call.repeated = message.repeated || kind.takes();
                    if !kind.takes() {
                        call.age = message.age;
                    }
                }
            }
            (Slot::Back, Kind::Leave { ticket }) => {
                of.watch(Late::Entering(ticket), Sizes::VALID + 1);
            }
            (Slot::Back, Kind::Release) if self.0.is(Mutant::ForgetsRelease) => {}
            (Slot::Back, Kind::Release) => of.owe(message.token, false, self.0.lease),
            (Slot::Look, _) => of.forget_look(),
            // The hold is extended again.
            _ => {}
        }
    }

    /// Whether something happens by itself and at once as long as nothing fails: time does not
    /// pass before it has.
    pub fn urgent(state: &State, action: Action) -> bool {
        match action {
            Action::Ask { .. }
            | Action::Execute { .. }
            | Action::Receive { .. }
            | Action::Release { .. }
            | Action::Leave { .. }
            | Action::LeaveLate { .. }
            | Action::Hear { .. }
            | Action::Listen { .. }
            | Action::OldRelease => true,
            Action::Look { process } => state.processes[process].looks().1,
            _ => false,
        }
    }

    /// Whether it may happen while nothing fails and nobody gives up. Newcomers still come; but
    /// not where no notification arrives, as who is not called may be overtaken again and again.
    pub fn healthy(&self, state: &State, action: Action) -> bool {
        Protocol::urgent(state, action)
            || action == Action::Vacuum
            || matches!(action, Action::Begin { .. }) && !self.0.silent
            || action == Action::Tick && {
                let mut actions = Vec::new();
                self.actions(state, &mut actions);
                !actions.iter().any(|other| Protocol::urgent(state, *other))
            }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let process = |watched| Process {
            watched,
            listening: !self.0.deafness,
            ..Process::default()
        };
        let watched = |number| self.0.watched && number == 0;
        let mut state = State {
            row: None,
            sequence: 0,
            told: 0,
            fence_fell: false,
            processes: (0..self.0.processes)
                .map(|number| process(watched(number)))
                .collect(),
            old: 0,
            faults: 0,
        };
        state.normalize(&self.0);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (process, of) in state.processes.iter().enumerate() {
            self.of_process(process, of, state.faults, actions);
        }
        if self.0.vacuums {
            let deleted =
                |row: &Row| !row.live() && (row.waiters.is_empty() || row.left == -Sizes::OVER);
            if state.row.as_ref().is_some_and(deleted) {
                actions.push(Action::Vacuum);
            }
        }
        if self.0.old {
            if state.old > 0 {
                actions.extend([Action::OldExtend, Action::OldRelease, Action::OldCrash]);
            } else if state.row.as_ref().is_none_or(Row::looks_expired) {
                actions.push(Action::OldAcquire);
            }
        }
        actions.push(Action::Tick);
    }

    #[allow(clippy::too_many_lines)] // a few for each transition
    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let sizes = &self.0;
        match action {
            Action::Begin { process } => {
                let token = state.fresh_token(process);
                let of = &mut state.processes[process];
                of.began = sizes.watched;
                if of.attempt.is_some() {
                    of.behind += 1;
                } else {
                    of.attempt = Some(Attempt {
                        token,
                        tried: false,
                        unknown: false,
                    });
                    if of.call.is_none() {
                        Protocol::ask(&mut state, process);
                    }
                }
            }
            Action::Ask { process } => Protocol::ask(&mut state, process),
            Action::Execute { process, slot } => self.execute(&mut state, process, slot),
            Action::Receive { process, slot } => state.receive(sizes, process, slot),
            Action::Break { process, slot } => self.lose(&mut state.processes[process], slot),
            Action::GiveUp { process } => {
                state.processes[process].give_up(sizes);
                state.end_wait(process, Outcome::GaveUp, sizes.lease);
            }
            Action::Release { process } => {
                let of = &mut state.processes[process];
                let hold = of.hold.take()?;
                of.abandon(Slot::Back);
                if !sizes.is(Mutant::ForgetsRelease) {
                    of.owe(hold.token, false, sizes.lease);
                    let owed = of.owed.last_mut()?;
                    owed.in_flight = true;
                    owed.until = 0;
                }
                of.send(Slot::Back, Kind::Release, hold.token);
            }
            Action::Extend { process } => {
                let of = &mut state.processes[process];
                of.send(Slot::Back, Kind::Extend, of.hold?.token);
            }
            Action::Look { process } => state.processes[process].look_now(),
            Action::LeaveLate { process } => {
                let of = &mut state.processes[process];
                let ticket = of.late_ticket(sizes)?;
                if of.ticket == Some(ticket) {
                    // Only the mutant: it expects whoever waits with it to take it out.
                    of.watches
                        .retain(|watch| watch.late != Late::Entering(ticket));
                } else {
                    of.send(Slot::Look, Kind::Leave { ticket }, 0);
                }
            }
            Action::Leave { process } => {
                let of = &mut state.processes[process];
                let ticket = of.leaving.take()?;
                of.send(Slot::Back, Kind::Leave { ticket }, 0);
            }
            Action::Hear { process } => {
                let of = &mut state.processes[process];
                of.called |= std::mem::take(&mut of.turn);
                if of.call.is_none() && std::mem::take(&mut of.next) {
                    of.due = of.due.min(Sizes::TURN);
                }
            }
            Action::LoseListener { process } => {
                state.kill_tickets(process);
                let of = &mut state.processes[process];
                of.listening = false;
                of.queued = false;
                of.turn = false;
                of.next = false;
                of.due = 0;
            }
            Action::Listen { process } => {
                state.processes[process].listening = true;
                state.processes[process].due = 0;
            }
            Action::Crash { process } => {
                state.kill_tickets(process);
                let of = &mut state.processes[process];
                of.abandon(Slot::Call);
                of.abandon(Slot::Back);
                of.abandon(Slot::Look);
                *of = Process {
                    crashed: true,
                    late: of.late,
                    ..Process::default()
                };
            }
            Action::Vanish { process } => state.processes[process].late = None,
            Action::Vacuum => state.row = None,
            Action::OldAcquire => {
                state.row = Some(Row::held(OLD, 0, sizes.lease, 0));
                state.old = sizes.lease;
            }
            Action::OldExtend => {
                let row = state
                    .row
                    .as_mut()
                    .filter(|row| row.held_by(usize::from(OLD), 0))?;
                row.left = signed(sizes.lease);
                state.old = sizes.lease;
            }
            Action::OldRelease => {
                state.old = 0;
                if state
                    .row
                    .as_ref()
                    .is_some_and(|row| row.held_by(usize::from(OLD), 0))
                {
                    state.row = None;
                }
            }
            Action::OldCrash => state.old = 0,
            Action::Tick => state.tick(sizes),
        }
        state.faults += u8::from(matches!(
            action,
            Action::Break { .. }
                | Action::GiveUp { .. }
                | Action::LoseListener { .. }
                | Action::Crash { .. }
        ));
        state.normalize(sizes);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Protocol>> {
        vec![
            Property::always(ONE_HOLD, |_, state: &State| {
                let holds = state.processes.iter().filter(|of| of.hold.is_some());
                holds.count() + usize::from(state.old > 0) <= 1
            }),
            Property::always(BACKED, |_, state: &State| {
                let mut processes = state.processes.iter().enumerate();
                processes.all(|(process, of)| {
                    of.hold.is_none_or(|hold| {
                        state.row.as_ref().is_some_and(|row| {
                            row.held_by(process, hold.token) && row.left >= signed(hold.left)
                        })
                    })
                })
            }),
            Property::always(FENCES_RISE, |_, state: &State| !state.fence_fell),
            Property::always(KNOWN, |model, state: &State| {
                let live = state.row.as_ref().filter(|row| row.live());
                live.and_then(|row| row.holder)
                    .is_none_or(|holder| state.knows(&model.0, holder))
            }),
            Property::always(NO_GHOSTS, |_, state: &State| {
                let waiters = state.row.iter().flat_map(|row| &row.waiters);
                waiters
                    .filter(|(_, ticket)| !ticket.dead)
                    .all(|waiter| state.waits_for(*waiter))
            }),
        ]
    }
}

/// No two processes believe at once that they hold the lock.
pub const ONE_HOLD: &str = "one hold";
/// Who believes to hold the lock has the row, for at least as long as it believes.
pub const BACKED: &str = "a belief is backed by the row";
/// Each holder is told a fence above all that were told before.
pub const FENCES_RISE: &str = "fences rise";
/// A hold of a living process is known to it: it holds it, or asks for it, or owes its release.
pub const KNOWN: &str = "every hold is known";
/// The queue contains nobody who has left for ever.
pub const NO_GHOSTS: &str = "nobody in the queue has left";

impl State {
    fn knows(&self, sizes: &Sizes, (process, token): (u8, Token)) -> bool {
        let Some(of) = self.processes.get(usize::from(process)) else {
            return true; // it is 0.2.5
        };
        let under_way = [&of.call, &of.back].into_iter().flatten();
        let fence = self.row.as_ref().map_or(0, |row| row.fence);
        of.crashed
            || of.hold.is_some_and(|hold| hold.token == token)
            || of.attempt.is_some_and(|attempt| attempt.token == token)
            || of.owed.iter().any(|owed| owed.token == token)
            || of
                .watches
                .iter()
                .any(|watch| watch.means(token, fence, sizes))
            || under_way.into_iter().any(|message| message.token == token)
    }

    fn waits_for(&self, (process, ticket): (u8, Ticket)) -> bool {
        let of = &self.processes[usize::from(process)];
        let leaves = of
            .back
            .is_some_and(|back| back.kind == Kind::Leave { ticket });
        of.crashed
            || of.ticket == Some(ticket)
            || of.leaving == Some(ticket)
            || leaves
            || of
                .watches
                .iter()
                .any(|watch| watch.late == Late::Entering(ticket))
    }
}
