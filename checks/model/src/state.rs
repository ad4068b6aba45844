//! What a moment of the system looks like: the row, the processes, what is under way.
//!
//! There is no absolute time: each timer tells how many ticks are left, or how old something
//! is, and stops where a difference would not matter any more. Tokens and tickets are numbered
//! anew when nothing mentions an old one, and of the fences only their order is kept. So the
//! number of states is finite although no run is bounded.

use crate::sizes::Sizes;

/// Which of the tokens of a process; 0 is none.
pub type Token = u8;

/// Which of the tickets of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// Its number.
    pub number: u8,
    /// Its listening connection is gone: `dead.sql` says so to everybody.
    pub dead: bool,
}

/// The process of 0.2.5 as the holder of the row.
pub const OLD: u8 = u8::MAX;

/// The row of the lock, `schema.sql`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// Whose hold it is, and with which token; `None` if it is over, as nothing asks then.
    pub holder: Option<(u8, Token)>,
    /// Ticks until the lease is over; 0 or less since then, down to `-Sizes::OVER`.
    pub left: i8,
    /// It ended by a release, not by its lease.
    pub released: bool,
    /// 0 if 0.2.5 inserted the row.
    pub fence: u8,
    /// 0.2.5 has written it last (`touched <> updated`).
    pub old: bool,
    /// The column `waiters`: which ticket of which process.
    pub waiters: Vec<(u8, Ticket)>,
}

/// A statement, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `retake.sql`, or else `acquire.sql`.
    Acquire,
    /// `take.sql`, or else `wait.sql`.
    Take { ticket: Ticket, more: bool },
    /// `wait.sql`.
    Wait {
        ticket: Ticket,
        previous: Option<Ticket>,
        more: bool,
    },
    /// `number.sql`, for a hold of so many ticks, whose row has the fence `before`. If it was
    /// taken through the queue, with which ticket, and whether that is in the queue.
    Number {
        lease: u8,
        before: u8,
        queued: Option<(Ticket, bool)>,
    },
    /// `extend.sql` or `renew.sql`.
    Extend,
    /// `release.sql`, or else `release_awaited.sql`.
    Release,
    /// `leave.sql`.
    Leave { ticket: Ticket },
    /// `holder.sql`: whether an unwanted hold is there.
    Look,
    /// The release of an unwanted hold that a look has found.
    Undo,
}

/// What the database answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reply {
    /// The lock is held, for so many ticks from the sending on.
    Granted { fence: u8, lease: u8 },
    /// It could not be taken. `queued` if the ticket is in the queue, to look again after
    /// `due` ticks if nobody calls.
    Refused { queued: bool, due: u8 },
    /// Whether there was such a hold.
    Found(bool),
}

/// A statement under way, then its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    /// What it does.
    pub kind: Kind,
    /// With which token.
    pub token: Token,
    /// Ticks since it was sent.
    pub age: u8,
    /// `INSERT … ON CONFLICT` has drawn this fence and not yet inserted; 0 is none.
    pub drawn: u8,
    /// It may take a lock, and an answer to it was lost: `Outcome::repeated`.
    pub repeated: bool,
    /// It was executed, and this is the answer.
    pub reply: Option<Reply>,
}

/// What a process believes to hold: `engine/holds.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hold {
    /// The proof.
    pub token: Token,
    /// Ticks until the local deadline, `engine/lease.rs`.
    pub left: u8,
}

/// The attempt to acquire of the first one who wants the lock: `service/acquisition.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// The token to take it with; the same for each repetition.
    pub token: Token,
    /// It has asked without the queue, in vain.
    pub tried: bool,
    /// An answer was lost: the token may turn out to be that of a hold.
    pub unknown: bool,
}

/// A release that is owed: `engine/unresolved.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owed {
    /// Of which token.
    pub token: Token,
    /// It is that of an acquire.
    pub acquires: bool,
    /// The statement of the block's end is under way: `InFlight`.
    pub in_flight: bool,
    /// The look under way asks for it.
    pub asked: bool,
    /// Ticks until it does not matter any more.
    pub until: u8,
}

/// What a statement may do that is executed late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Late {
    /// It takes the lock with this token. The fence of a hold with that token that was granted,
    /// and stays; 0 is none.
    Taking { token: Token, granted: u8 },
    /// It puts this ticket into the queue.
    Entering(Ticket),
}

/// A statement that may be executed late: `engine/late.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Watch {
    /// What it may do.
    pub late: Late,
    /// Ticks until it cannot do that any more.
    pub left: u8,
    /// The look under way asks for it.
    pub asked: bool,
    /// And is the last one: it was sent when `left` was 0.
    pub last: bool,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[allow(clippy::struct_excessive_bools)] // they are independent of each other
pub struct Process {
    /// Whether it is the one whose progress is looked at.
    pub watched: bool,
    /// It was killed.
    pub crashed: bool,
    /// It has begun an attempt since the last tick.
    pub began: bool,
    /// The attempt of the leader.
    pub attempt: Option<Attempt>,
    /// How many wait behind it in the local queue, `engine/queue.rs`.
    pub behind: u8,
    /// What it believes to hold.
    pub hold: Option<Hold>,
    /// What it owes.
    pub owed: Vec<Owed>,
    /// What may be executed late.
    pub watches: Vec<Watch>,
    /// It has a listening connection.
    pub listening: bool,
    /// Its place in the queue of the database.
    pub ticket: Option<Ticket>,
    /// The ticket before the present listening connection.
    pub previous: Option<Ticket>,
    /// The ticket was found in the queue.
    pub queued: bool,
    /// It was called.
    pub called: bool,
    /// Ticks until it asks without being called.
    pub due: u8,
    /// A notification `turn` is under way to it; one `next` is.
    pub turn: bool,
    pub next: bool,
    /// A ticket that is to leave the queue.
    pub leaving: Option<Ticket>,
    /// The statement of the leader.
    pub call: Option<Message>,
    /// The statement of a release, of the extending thread, or of who leaves the queue.
    pub back: Option<Message>,
    /// The statement of the settling thread.
    pub look: Option<Message>,
    /// A statement that is under way though nobody waits for its answer.
    pub late: Option<Message>,
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row, if there is one.
    pub row: Option<Row>,
    /// The last number that the sequence of fences has handed out.
    pub sequence: u8,
    /// The highest fence that any holder was told.
    pub told: u8,
    /// Somebody was told a fence that is not above all before. Only a fault sets it.
    pub fence_fell: bool,
    /// The processes of this version.
    pub processes: Vec<Process>,
    /// What the process of 0.2.5 believes to hold: ticks until it is over.
    pub old: u8,
    /// How many faults there were.
    pub faults: u8,
}

impl Row {
    /// `live.sql`: somebody holds the lock.
    pub fn live(&self) -> bool {
        self.left > 0
    }

    /// Whether the token of a process holds the lock.
    pub fn held_by(&self, process: usize, token: Token) -> bool {
        self.live() && self.holder == Some((small(process), token))
    }

    /// `ahead.sql`: how many other processes come before the ticket.
    pub fn ahead(&self, process: usize, ticket: Ticket, previous: Option<Ticket>) -> u8 {
        let process = small(process);
        let position = |ticket| {
            let mut waiters = self.waiters.iter();
            waiters.position(|other| *other == (process, ticket))
        };
        let place = position(ticket)
            .or_else(|| previous.and_then(position))
            .unwrap_or(self.waiters.len());
        let mut seen = 0_u8;
        for (other, _) in self.waiters[..place]
            .iter()
            .filter(|(_, ticket)| !ticket.dead)
        {
            seen |= 1 << other;
        }
        u8::try_from(seen.count_ones()).unwrap_or(u8::MAX)
    }
}

impl Process {
    fn messages(&mut self) -> impl Iterator<Item = &mut Message> {
        [
            &mut self.call,
            &mut self.back,
            &mut self.look,
            &mut self.late,
        ]
        .into_iter()
        .flatten()
    }

    /// All that mention a token.
    fn tokens(&mut self) -> Vec<&mut Token> {
        let mut all: Vec<&mut Token> = Vec::new();
        all.extend(self.attempt.iter_mut().map(|attempt| &mut attempt.token));
        all.extend(self.hold.iter_mut().map(|hold| &mut hold.token));
        all.extend(self.owed.iter_mut().map(|owed| &mut owed.token));
        let watched = self.watches.iter_mut();
        all.extend(watched.filter_map(|watch| match &mut watch.late {
            Late::Taking { token, .. } => Some(token),
            Late::Entering(_) => None,
        }));
        let messages = [
            &mut self.call,
            &mut self.back,
            &mut self.look,
            &mut self.late,
        ];
        let messages = messages.into_iter().flatten();
        all.extend(messages.map(|message| &mut message.token));
        all.retain(|token| **token != 0);
        all
    }

    /// All that mention a ticket.
    fn tickets(&mut self) -> Vec<&mut Ticket> {
        let mut all: Vec<&mut Ticket> = Vec::new();
        all.extend(&mut self.ticket);
        all.extend(&mut self.previous);
        all.extend(&mut self.leaving);
        let watched = self.watches.iter_mut();
        all.extend(watched.filter_map(|watch| match &mut watch.late {
            Late::Entering(ticket) => Some(ticket),
            Late::Taking { .. } => None,
        }));
        let messages = [
            &mut self.call,
            &mut self.back,
            &mut self.look,
            &mut self.late,
        ];
        for message in messages.into_iter().flatten() {
            match &mut message.kind {
                Kind::Take { ticket, .. }
                | Kind::Leave { ticket }
                | Kind::Number {
                    queued: Some((ticket, _)),
                    ..
                } => all.push(ticket),
                Kind::Wait {
                    ticket, previous, ..
                } => {
                    all.push(ticket);
                    all.extend(previous);
                }
                _ => {}
            }
        }
        all
    }
}

impl Kind {
    /// Whether it may take a lock, and so is good for a limited time: `Sql::takes`.
    pub fn takes(self) -> bool {
        matches!(self, Kind::Acquire | Kind::Take { .. } | Kind::Wait { .. })
    }
}

impl State {
    /// A token of a process that nothing mentions.
    pub fn fresh_token(&mut self, process: usize) -> Token {
        self.process_tokens(process)
            .into_iter()
            .map(|token| *token)
            .max()
            .unwrap_or(0)
            + 1
    }

    /// A ticket of a process that nothing mentions.
    pub fn fresh_ticket(&mut self, process: usize) -> Ticket {
        let tickets = self.process_tickets(process).into_iter();
        Ticket {
            number: tickets.map(|ticket| ticket.number + 1).max().unwrap_or(0),
            dead: false,
        }
    }

    fn process_tokens(&mut self, process: usize) -> Vec<&mut Token> {
        let holder = self.row.iter_mut().flat_map(|row| &mut row.holder);
        let mut all = self.processes[process].tokens();
        all.extend(
            holder
                .filter(|(of, _)| *of == small(process))
                .map(|(_, token)| token),
        );
        all
    }

    fn process_tickets(&mut self, process: usize) -> Vec<&mut Ticket> {
        let waiters = self.row.iter_mut().flat_map(|row| &mut row.waiters);
        let mut all = self.processes[process].tickets();
        all.extend(
            waiters
                .filter(|(of, _)| *of == small(process))
                .map(|(_, ticket)| ticket),
        );
        all
    }

    /// The listening connection of a process is gone, and with it the lock that shows that
    /// its tickets are those of a living process.
    pub fn kill_tickets(&mut self, process: usize) {
        for ticket in self.process_tickets(process) {
            ticket.dead = true;
        }
    }

    /// Makes equal what differs in nothing that matters: the order of the processes, the
    /// numbers of tokens and tickets, times that nobody asks for any more, and of the fences
    /// all but their order.
    pub fn normalize(&mut self, sizes: &Sizes) {
        if let Some(row) = self.row.as_mut().filter(|row| !row.live()) {
            row.holder = None;
            if row.waiters.is_empty() {
                // Nobody comes first, so nobody asks since when it is free.
                row.left = -Sizes::OVER;
                row.released = false;
            }
        }
        for process in 0..self.processes.len() {
            let of = &mut self.processes[process];
            of.messages().for_each(|message| message.forget(sizes));
            let acquires = of.owed.iter().any(|owed| owed.asked && owed.acquires);
            if let Some(look) = of.look.as_mut().filter(|_| !acquires) {
                look.age = 0;
            }
            if of.attempt.is_none() {
                of.due = 0;
            }
            of.owed
                .sort_by_key(|owed| (owed.until, owed.acquires, owed.in_flight, owed.asked));
            of.watches.sort_by_key(|watch| {
                let (granted, ticket) = match watch.late {
                    Late::Taking { granted, .. } => (granted, None),
                    Late::Entering(ticket) => (0, Some(ticket)),
                };
                (watch.left, watch.asked, watch.last, granted, ticket)
            });
            renumber(self.process_tokens(process), |token| token, 1);
            renumber(
                self.process_tickets(process),
                |ticket| &mut ticket.number,
                0,
            );
        }
        self.sort_processes();
        self.rank_fences();
    }

    fn sort_processes(&mut self) {
        let row = self.row.as_ref();
        let mut order: Vec<usize> = (0..self.processes.len()).collect();
        order.sort_by_cached_key(|process| {
            let number = small(*process);
            let holds = row.is_some_and(|row| row.holder.is_some_and(|(of, _)| of == number));
            let waiters = row.map_or(&[][..], |row| &row.waiters).iter();
            let places: Vec<_> = waiters
                .map(|(of, ticket)| (*of == number, *ticket))
                .collect();
            (self.processes[*process].clone(), holds, places)
        });
        if order.is_sorted() {
            return;
        }
        let before = std::mem::take(&mut self.processes);
        self.processes
            .extend(order.iter().map(|process| before[*process].clone()));
        let place = |of: u8| order.iter().position(|before| small(*before) == of);
        if let Some(row) = &mut self.row {
            let holder = row.holder.iter_mut().map(|(of, _)| of);
            for of in holder.chain(row.waiters.iter_mut().map(|(of, _)| of)) {
                *of = place(*of).map_or(OLD, small);
            }
        }
    }

    fn rank_fences(&mut self) {
        let mut fences: Vec<&mut u8> = vec![&mut self.sequence, &mut self.told];
        fences.extend(self.row.iter_mut().map(|row| &mut row.fence));
        for of in &mut self.processes {
            let messages = [&mut of.call, &mut of.back, &mut of.look, &mut of.late];
            for message in messages.into_iter().flatten() {
                fences.push(&mut message.drawn);
                if let Some(Reply::Granted { fence, .. }) = &mut message.reply {
                    fences.push(fence);
                }
                if let Kind::Number { before, .. } = &mut message.kind {
                    fences.push(before);
                }
            }
            for watch in &mut of.watches {
                if let Late::Taking { granted, .. } = &mut watch.late {
                    fences.push(granted);
                }
            }
        }
        let mut order: Vec<u8> = fences.iter().map(|fence| **fence).collect();
        order.push(0);
        order.sort_unstable();
        order.dedup();
        for fence in fences {
            *fence = order.binary_search(fence).map_or(0, small);
        }
    }
}

impl Message {
    /// Forgets times that nobody asks for any more.
    fn forget(&mut self, sizes: &Sizes) {
        let counts = match (self.reply, self.kind) {
            (Some(Reply::Granted { .. }), _) | (_, Kind::Number { .. }) => true,
            (None, kind) => kind.takes() || kind == Kind::Extend,
            (Some(Reply::Found(found)), kind) => found && kind == Kind::Extend,
            (Some(Reply::Refused { .. }), _) => false,
        };
        if matches!(self.kind, Kind::Look | Kind::Undo) {
            // A watch that it leads to lasts so much shorter.
            self.age = self.age.min(Sizes::VALID + 1);
        } else if !counts {
            self.age = 0;
        }
        if sizes.loses {
            // The fence of a hold that is given back matters too, to a watch.
            return;
        }
        if let Some(Reply::Granted { fence, lease }) = &mut self.reply {
            if self.age >= *lease {
                // It comes too late, whatever it says.
                (*fence, self.age, *lease) = (0, sizes.lease, sizes.lease);
            }
        }
    }
}

fn renumber<T>(mentions: Vec<&mut T>, number: impl Fn(&mut T) -> &mut u8, first: u8) {
    let mut known: Vec<u8> = Vec::new();
    for mention in mentions {
        let number = number(mention);
        let place = known.iter().position(|other| other == number);
        let place = place.unwrap_or_else(|| {
            known.push(*number);
            known.len() - 1
        });
        *number = first + small(place);
    }
}

/// A small number.
pub fn small(number: usize) -> u8 {
    u8::try_from(number).expect("sizes are small")
}
