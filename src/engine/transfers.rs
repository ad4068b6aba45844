//! Transfers, by their old key, whose callers do not know yet that they succeeded.
//!
//! Until then the old token stands for the new one. If a transfer and a release meet under the old
//! token, one of them gets the hold, and the other is refused.

use super::{Deadline, Key, Lease, Moment, Token};
use std::collections::HashMap;

/// The progress of a transfer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Progress {
    /// Its statement is in flight, or about to be.
    UnderWay,
    /// It has succeeded, and its caller has not been told yet.
    Unread,
    /// Its caller does not know the new token, and may try again.
    Failed,
    /// A release under the old token has ended the hold, or is going to. Nobody gets the new one.
    Released,
    /// The hold has neither token. The last release that is under way forgets it.
    Over,
}

/// A transfer whose caller does not know that it succeeded.
#[derive(Clone, Debug)]
struct Transfer {
    /// The token that the hold may have.
    new: Token,
    /// Whether it may have it whatever becomes of the statement in flight: an earlier attempt may
    /// have succeeded, or another caller's statement may have completed this one.
    perhaps: bool,
    /// When it no longer matters.
    until: Deadline,
    progress: Progress,
    /// The latest attempt.
    attempt: u64,
}

impl Transfer {
    /// Whether the old token may stand for the new one. The statement of a transfer always ends.
    fn matters(&self, now: Moment) -> bool {
        self.progress == Progress::UnderWay || !self.until.passed(now)
    }
}

/// An attempt to transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The key to be replaced.
    pub old: Key,
    /// The token that the hold may have from now on.
    pub new: Token,
    attempt: u64,
}

/// How a release ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// The hold has ended.
    Done,
    /// It goes on in the background, until the hold is over after this lease.
    GoesOn(Lease),
    /// It had no effect.
    Failed,
}

/// Whether a transfer can begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Begin {
    /// It begins: send its statement.
    Now(Claim),
    /// Another transfer or a release is in progress: wait for it.
    Later,
    /// The hold has ended, or is going to.
    TooLate,
}

/// The transfers of one process.
#[derive(Debug, Default)]
pub struct Transfers {
    by_old: HashMap<Key, Transfer>,
    /// How many releases are under way under a key. A transfer of that key waits for them, and one
    /// that was faster is not read meanwhile.
    releases: HashMap<Key, u32>,
    /// The releases that go on in the background, and until when the hold may last.
    going_on: HashMap<Key, Deadline>,
    /// At this many, forget those whose hold is over.
    many: usize,
    attempts: u64,
}

impl Transfers {
    /// Begins a transfer: from now on the hold of `old` may have a new token. That is the token of
    /// an earlier attempt if one may have succeeded: of one known here, or the `pending` one of the
    /// hold.
    pub fn begin(&mut self, old: &Key, pending: Option<Token>, lease: Lease, now: Moment) -> Begin {
        self.by_old.retain(|_, transfer| transfer.matters(now));
        if self.releases.contains_key(old) {
            return Begin::Later;
        }
        if self
            .going_on
            .get(old)
            .is_some_and(|until| !until.passed(now))
        {
            return Begin::TooLate;
        }
        self.attempts += 1;
        let attempt = self.attempts;
        let fresh = || Transfer {
            perhaps: pending.is_some(),
            new: pending.unwrap_or_else(Token::random),
            until: Deadline::new(now, lease.seconds()),
            progress: Progress::Failed,
            attempt,
        };
        let transfer = self.by_old.entry(old.clone()).or_insert_with(fresh);
        match transfer.progress {
            Progress::UnderWay | Progress::Unread => Begin::Later,
            Progress::Failed => {
                (transfer.progress, transfer.attempt) = (Progress::UnderWay, attempt);
                let (old, new) = (old.clone(), transfer.new.clone());
                Begin::Now(Claim { old, new, attempt })
            }
            Progress::Released | Progress::Over => Begin::TooLate,
        }
    }

    /// The database has made the transfer; its caller is about to be told.
    pub fn made(&mut self, claim: &Claim) {
        if let Some(transfer) = self.claimed(claim) {
            if transfer.progress == Progress::UnderWay {
                transfer.progress = Progress::Unread;
            }
        }
    }

    /// The caller of a transfer will not learn that it succeeded.
    pub fn failed(&mut self, claim: &Claim) {
        let Some(transfer) = self.claimed(claim) else {
            return;
        };
        transfer.perhaps = true;
        match transfer.progress {
            Progress::UnderWay | Progress::Unread => transfer.progress = Progress::Failed,
            Progress::Failed | Progress::Over => {}
            // There is nobody left who must not read it.
            Progress::Released => {
                self.by_old.remove(&claim.old);
            }
        }
    }

    /// The database has refused an attempt, whose statement has changed nothing. Returns whether
    /// the hold cannot have the new token.
    pub fn refused(&mut self, claim: &Claim) -> bool {
        let perhaps = self
            .find(&claim.old, &claim.new)
            .is_some_and(|transfer| transfer.perhaps);
        if perhaps {
            self.failed(claim);
        } else {
            self.over(&claim.old, &claim.new);
        }
        !perhaps
    }

    /// The hold of a transfer stands: the old token stands for the new one for another lease.
    pub fn stands(&mut self, old: &Key, new: &Token, lease: Lease, now: Moment) {
        if let Some(transfer) = self.find(old, new) {
            transfer.until = Deadline::new(now, lease.seconds());
        }
    }

    /// The token that the hold of `old` may have.
    #[must_use]
    pub fn meant(&self, old: &Key, now: Moment) -> Option<Token> {
        let transfer = self.by_old.get(old)?;
        transfer.matters(now).then(|| transfer.new.clone())
    }

    /// The old key of the transfer that may have given a hold this key.
    #[must_use]
    pub fn replaced(&self, new: &Key) -> Option<&Key> {
        let mut all = self.by_old.iter();
        let (old, _) = all.find(|(old, transfer)| old.with(&transfer.new) == *new)?;
        Some(old)
    }

    /// As [`Transfers::meant`], for a caller that is about to complete the transfer itself.
    pub fn complete(&mut self, old: &Key, now: Moment) -> Option<Token> {
        let new = self.meant(old, now)?;
        if let Some(transfer) = self.find(old, &new) {
            transfer.perhaps = true;
        }
        Some(new)
    }

    /// Gives the new token to the caller of a transfer, and voids the old one. `false` if it must
    /// not: the hold has ended since, a release under the old token was faster, or another caller
    /// is trying again.
    pub fn read(&mut self, claim: &Claim) -> bool {
        let releasing = self.releases.contains_key(&claim.old);
        let Some(transfer) = self.find(&claim.old, &claim.new) else {
            return false;
        };
        let ended = matches!(transfer.progress, Progress::Released | Progress::Over);
        if releasing || ended || transfer.attempt != claim.attempt {
            return false;
        }
        self.by_old.remove(&claim.old);
        true
    }

    /// The hold has neither token any more, or never had the new one.
    pub fn over(&mut self, old: &Key, new: &Token) {
        let releasing = self.releases.contains_key(old);
        match self.find(old, new) {
            Some(transfer) if transfer.progress == Progress::Released => {}
            Some(transfer) if releasing => transfer.progress = Progress::Over,
            Some(_) => {
                self.by_old.remove(old);
            }
            None => {}
        }
    }

    /// A release under this key begins. Returns another token that the hold may have by a transfer,
    /// which the release is about to complete.
    pub fn begin_release(&mut self, key: &Key, now: Moment) -> Option<Token> {
        *self.releases.entry(key.clone()).or_default() += 1;
        self.complete(key, now)
    }

    /// How many releases are under way under this key. Whoever finds no hold meanwhile has found what
    /// one of them has done.
    #[must_use]
    pub fn releases(&self, key: &Key) -> u32 {
        self.releases.get(key).copied().unwrap_or_default()
    }

    /// A release ends. Returns whether no other is under way under this key.
    pub fn end_release(&mut self, key: &Key, outcome: Outcome, now: Moment) -> bool {
        let left = self.releases.get_mut(key).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            self.releases.remove(key);
        }
        if let Outcome::GoesOn(lease) = outcome {
            self.remember_going_on(key, lease, now);
        }
        let done = outcome != Outcome::Failed;
        if let Some(transfer) = self.by_old.get_mut(key) {
            match transfer.progress {
                Progress::UnderWay | Progress::Unread | Progress::Over if done => {
                    transfer.progress = Progress::Released;
                }
                Progress::Failed if done => {
                    self.by_old.remove(key);
                }
                Progress::Over if left == 0 => {
                    self.by_old.remove(key);
                }
                _ => {}
            }
        }
        left == 0
    }

    fn remember_going_on(&mut self, key: &Key, lease: Lease, now: Moment) {
        if self.going_on.len() >= self.many.max(1000) {
            self.going_on.retain(|_, until| !until.passed(now));
            self.many = 2 * self.going_on.len();
        }
        let until = Deadline::new(now, lease.seconds());
        self.going_on.insert(key.clone(), until);
    }

    /// A release that went on in the background is settled.
    pub fn settled(&mut self, key: &Key) {
        self.going_on.remove(key);
    }

    fn claimed(&mut self, claim: &Claim) -> Option<&mut Transfer> {
        let transfer = self.find(&claim.old, &claim.new)?;
        (transfer.attempt == claim.attempt).then_some(transfer)
    }

    fn find(&mut self, old: &Key, new: &Token) -> Option<&mut Transfer> {
        let transfer = self.by_old.get_mut(old)?;
        (transfer.new == *new).then_some(transfer)
    }
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // of constants
mod tests;
