//! Transfers, by their old token, whose callers do not know yet that they succeeded.
//!
//! Until then the old token stands for the new one. If a transfer and a release meet under the old
//! token, one of them gets the hold, and the other is refused.

use crate::engine::{Deadline, Lease, Moment, Token};
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
    /// The hold has neither token. It is forgotten when the releases are over.
    Over,
}

/// A transfer whose caller does not know that it succeeded.
#[derive(Clone, Debug)]
struct Transfer {
    /// The token that the hold may have.
    new: Token,
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
    /// The token to be replaced.
    pub old: Token,
    /// The token that the hold may have from now on.
    pub new: Token,
    attempt: u64,
}

/// The transfers of one process.
#[derive(Debug, Default)]
pub struct Transfers {
    by_old: HashMap<Token, Transfer>,
    /// The old token by the new one: each release asks for it.
    by_new: HashMap<Token, Token>,
    /// How many releases are under way under a token. A transfer of that token waits for them,
    /// and one that was faster is not read meanwhile.
    releases: HashMap<Token, u32>,
    attempts: u64,
}

impl Transfers {
    /// Begins a transfer: from now on the hold of `old` may have a new token, which is that of an
    /// earlier failed attempt if there was one. `None` while another transfer or a release is in
    /// progress.
    pub fn begin(&mut self, old: &Token, lease: Lease, now: Moment) -> Option<Claim> {
        self.by_old.retain(|_, transfer| {
            let matters = transfer.matters(now);
            if !matters {
                self.by_new.remove(&transfer.new);
            }
            matters
        });
        let old = &self.origin(old);
        if self.releases.contains_key(old) {
            return None;
        }
        self.attempts += 1;
        let attempt = self.attempts;
        let fresh = || Transfer {
            new: Token::random(),
            until: Deadline::new(now, lease.seconds()),
            progress: Progress::Failed,
            attempt,
        };
        let transfer = self.by_old.entry(old.clone()).or_insert_with(fresh);
        let new = match transfer.progress {
            Progress::UnderWay => return None,
            Progress::Failed => {
                (transfer.progress, transfer.attempt) = (Progress::UnderWay, attempt);
                self.by_new.insert(transfer.new.clone(), old.clone());
                transfer.new.clone()
            }
            // That one's caller is about to have it, or it has ended. This one comes too late.
            Progress::Unread | Progress::Released | Progress::Over => Token::random(),
        };
        let old = old.clone();
        Some(Claim { old, new, attempt })
    }

    /// Whether a transfer of this token has to wait for another transfer or a release.
    #[must_use]
    pub fn is_busy(&self, old: &Token) -> bool {
        let old = &self.origin(old);
        let under_way = |transfer: &Transfer| transfer.progress == Progress::UnderWay;
        self.releases.contains_key(old) || self.by_old.get(old).is_some_and(under_way)
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
        let releasing = self.releases.contains_key(&claim.old);
        let Some(transfer) = self.claimed(claim) else {
            return;
        };
        match transfer.progress {
            Progress::UnderWay | Progress::Unread => transfer.progress = Progress::Failed,
            Progress::Failed => {}
            Progress::Over if releasing => {}
            // There is nobody left who must not read it.
            Progress::Released | Progress::Over => {
                self.forget(&claim.old);
            }
        }
    }

    /// The hold of a transfer stands: the old token stands for the new one for another lease.
    pub fn stands(&mut self, old: &Token, new: &Token, lease: Lease, now: Moment) {
        if let Some(transfer) = self.find(old, new) {
            transfer.until = Deadline::new(now, lease.seconds());
        }
    }

    /// The token that the hold of `old` may have.
    #[must_use]
    pub fn meant(&self, old: &Token, now: Moment) -> Option<Token> {
        let transfer = self.by_old.get(old)?;
        transfer.matters(now).then(|| transfer.new.clone())
    }

    /// Gives the new token to the caller of a transfer, and voids the old one. `false` if it must
    /// not: a release under the old token was faster, or another caller is trying again.
    pub fn read(&mut self, claim: &Claim) -> bool {
        let releasing = self.releases.contains_key(&claim.old);
        let Some(transfer) = self.find(&claim.old, &claim.new) else {
            return true; // a lease has passed since
        };
        let ended = matches!(transfer.progress, Progress::Released | Progress::Over);
        if releasing || ended || transfer.attempt != claim.attempt {
            return false;
        }
        self.forget(&claim.old);
        true
    }

    /// The hold has neither token any more, or never had the new one.
    pub fn over(&mut self, old: &Token, new: &Token) {
        let releasing = self.releases.contains_key(old);
        match self.find(old, new) {
            Some(transfer) if transfer.progress == Progress::Released => {}
            Some(transfer) if releasing => transfer.progress = Progress::Over,
            Some(_) => {
                self.forget(old);
            }
            None => {}
        }
    }

    /// A release under this token begins. Returns the token that it is counted under, for
    /// [`Transfers::end_release`], and another one that the hold may have by a transfer.
    pub fn begin_release(&mut self, token: &Token, now: Moment) -> (Token, Option<Token>) {
        let old = self.origin(token);
        *self.releases.entry(old.clone()).or_default() += 1;
        let new = self.meant(&old, now).filter(|new| new != token);
        (old, new)
    }

    /// A release has ended the hold, or is done in the background (`done`), or it has failed.
    pub fn end_release(&mut self, old: &Token, done: bool) {
        let left = self.releases.get_mut(old).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            self.releases.remove(old);
        }
        if let Some(transfer) = self.by_old.get_mut(old) {
            match transfer.progress {
                Progress::UnderWay | Progress::Unread | Progress::Over if done => {
                    transfer.progress = Progress::Released;
                }
                Progress::Failed if done => {
                    self.forget(old);
                }
                Progress::Over if left == 0 => {
                    self.forget(old);
                }
                _ => {}
            }
        }
    }

    /// The token that a transfer was to replace, if this is its new one, which nobody has read: who
    /// names no token means the one that the hold has.
    fn origin(&self, token: &Token) -> Token {
        let failed = |old: &&Token| {
            let transfer = self.by_old.get(*old);
            transfer.is_some_and(|transfer| transfer.progress == Progress::Failed)
        };
        self.by_new
            .get(token)
            .filter(failed)
            .unwrap_or(token)
            .clone()
    }

    fn forget(&mut self, old: &Token) {
        if let Some(transfer) = self.by_old.remove(old) {
            self.by_new.remove(&transfer.new);
        }
    }

    fn claimed(&mut self, claim: &Claim) -> Option<&mut Transfer> {
        let transfer = self.find(&claim.old, &claim.new)?;
        (transfer.attempt == claim.attempt).then_some(transfer)
    }

    fn find(&mut self, old: &Token, new: &Token) -> Option<&mut Transfer> {
        let transfer = self.by_old.get_mut(old)?;
        (transfer.new == *new).then_some(transfer)
    }
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // of constants
mod tests;
