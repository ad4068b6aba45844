//! How large the model is, what may go wrong in it, and what is wrong with it.

/// A fault that is built into the model, to see that the properties notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A statement that takes the lock does not ask whether somebody holds it.
    TakesWhatIsHeld,
    /// The fence that an insertion has drawn early is told without `number.sql`.
    FenceDrawnEarly,
    /// Notifications do not arrive, and nobody looks without being called.
    NeverLooks,
    /// A statement takes the lock however late it is executed.
    NeverTooLate,
    /// An extension asks for the name only, and not for the token.
    ExtendsAnyHold,
    /// The end of a block whose release had no answer owes nothing.
    ForgetsRelease,
    /// The deadline is counted from the answer instead of the sending.
    CountsFromAnswer,
    /// Nobody looks for what the statement does that was repeated before the grant.
    RepetitionNotWatched,
    /// An acquire that was given up is settled by a release that has found a hold.
    SettledByFinding,
    /// A look is the last if it is answered late, instead of sent late.
    LastByAnswer,
    /// A look ends the hold that was granted too.
    EndsTheGranted,
    /// A look also settles a release that was owed after it was sent: it did not ask for that
    /// one, but for another hold with its token.
    SettlesWhatCameLater,
    /// `number.sql` draws another fence though it finds another than it was told.
    NumbersAgain,
    /// Nobody looks for a ticket that enters the queue late.
    TicketNotWatched,
    /// Nor any more, once somebody of the process waits with it when the look for it is due.
    TrustsWhoWaits,
}

/// How large the model is, and what may happen in it.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // they are independent of each other
pub struct Sizes {
    /// Processes of this version.
    pub processes: usize,
    /// The lease, in ticks.
    pub lease: u8,
    /// Attempts wait, instead of being refused at once.
    pub waits: bool,
    /// How many may wait behind the first one of a process.
    pub behind: u8,
    /// Holds are extended.
    pub extends: bool,
    /// How many of the faults below happen in one run at most.
    pub faults: u8,
    /// Answers are lost, and attempts given up; their statements may be executed later.
    pub loses: bool,
    /// A broken connection leaves a statement that may be executed after its own repetition.
    pub outlives: bool,
    /// Processes are killed.
    pub crashes: bool,
    /// Listening connections are lost.
    pub deafness: bool,
    /// No notification arrives.
    pub silent: bool,
    /// A vacuum deletes free rows.
    pub vacuums: bool,
    /// There is a process of 0.2.5.
    pub old: bool,
    /// One process is told from the others, to look at its progress.
    pub watched: bool,
    /// What is wrong with the protocol.
    pub mutant: Option<Mutant>,
}

impl Sizes {
    /// `VALID` of `engine/late.rs`, in ticks.
    pub const VALID: u8 = 1;
    /// For how long a free lock belongs to the first in the queue: half a second.
    pub const TURN: u8 = 1;
    /// For how long newcomers leave a free lock to those who wait: a second, `awaited.sql`.
    pub const AWAITED: u8 = 2;
    /// How often the queue is looked after, `LOOK` of `service/waiters.rs`.
    pub const LOOK: u8 = 2;
    /// After so many ticks nothing depends any more on how long a lease has been over.
    pub const OVER: i8 = 2;

    /// Whether this is what is wrong.
    #[must_use]
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// At this age a message is as old as it can be.
    #[must_use]
    pub fn oldest(&self) -> u8 {
        self.lease.max(Sizes::VALID + 1)
    }
}
