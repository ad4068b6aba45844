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
}

/// The releases under the old token. Meanwhile nobody is given the new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Releases {
    /// This many are in progress.
    UnderWay(u32),
    /// One has ended the hold, or will.
    Done,
}

impl Releases {
    const NONE: Releases = Releases::UnderWay(0);
}

/// A transfer whose caller does not know that it succeeded.
#[derive(Clone, Debug)]
struct Transfer {
    /// The token that the hold may have.
    new: Token,
    /// When it no longer matters.
    until: Deadline,
    progress: Progress,
    releases: Releases,
    /// The latest attempt.
    attempt: u64,
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
    transfers: HashMap<Token, Transfer>,
    attempts: u64,
}

impl Transfers {
    /// Begins a transfer: from now on the hold of `old` may have a new token, which is that of an
    /// earlier failed attempt if there was one. `None` while another transfer or a release is in
    /// progress.
    pub fn begin(&mut self, old: &Token, lease: Lease, now: Moment) -> Option<Claim> {
        self.transfers
            .retain(|_, transfer| !transfer.until.passed(now));
        self.attempts += 1;
        let attempt = self.attempts;
        let (until, progress) = (Deadline::new(now, lease.seconds()), Progress::UnderWay);
        let transfer = self
            .transfers
            .entry(old.clone())
            .or_insert_with(|| Transfer {
                new: Token::random(),
                until,
                progress: Progress::Failed,
                releases: Releases::NONE,
                attempt,
            });
        let new = match (transfer.releases, transfer.progress) {
            (Releases::NONE, Progress::Failed) => {
                (transfer.progress, transfer.attempt) = (progress, attempt);
                transfer.new.clone()
            }
            // That one's caller is about to get it, or the hold has ended. This one is too late.
            (Releases::NONE, Progress::Unread) | (Releases::Done, _) => Token::random(),
            (Releases::UnderWay(_), _) => return None,
        };
        let old = old.clone();
        Some(Claim { old, new, attempt })
    }

    /// Whether a transfer of this token has to wait for another transfer or a release.
    #[must_use]
    pub fn is_busy(&self, old: &Token, now: Moment) -> bool {
        self.transfers.get(old).is_some_and(|transfer| {
            let busy = match transfer.releases {
                Releases::NONE => transfer.progress == Progress::UnderWay,
                Releases::UnderWay(_) => true,
                Releases::Done => false,
            };
            busy && !transfer.until.passed(now)
        })
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
        if let Some(transfer) = self.claimed(claim) {
            transfer.progress = Progress::Failed;
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
        let transfer = self.transfers.get(old)?;
        (!transfer.until.passed(now)).then(|| transfer.new.clone())
    }

    /// Gives the new token to the caller of a transfer, and voids the old one. `false` if it must
    /// not: a release under the old token was faster, or another caller is trying again.
    pub fn read(&mut self, claim: &Claim) -> bool {
        let Some(transfer) = self.find(&claim.old, &claim.new) else {
            return true; // a lease has passed since
        };
        if transfer.releases != Releases::NONE || transfer.attempt != claim.attempt {
            return false;
        }
        self.transfers.remove(&claim.old);
        true
    }

    /// The hold has neither token any more, or never had the new one.
    pub fn over(&mut self, old: &Token, new: &Token) {
        if self
            .find(old, new)
            .is_some_and(|transfer| transfer.releases == Releases::NONE)
        {
            self.transfers.remove(old);
        }
    }

    /// Begins a release under the old token. Returns the token that the hold may have.
    pub fn begin_release(&mut self, old: &Token, now: Moment) -> Option<Token> {
        let transfer = self.transfers.get_mut(old)?;
        if transfer.until.passed(now) {
            return None;
        }
        if let Releases::UnderWay(count) = &mut transfer.releases {
            *count += 1;
        }
        Some(transfer.new.clone())
    }

    /// A release has ended the hold, or will in the background (`done`), or it has failed.
    pub fn end_release(&mut self, old: &Token, new: &Token, done: bool) {
        let Some(transfer) = self.find(old, new) else {
            return;
        };
        transfer.releases = match transfer.releases {
            Releases::UnderWay(count) if !done => Releases::UnderWay(count.saturating_sub(1)),
            _ => Releases::Done,
        };
    }

    fn claimed(&mut self, claim: &Claim) -> Option<&mut Transfer> {
        let transfer = self.find(&claim.old, &claim.new)?;
        (transfer.attempt == claim.attempt).then_some(transfer)
    }

    fn find(&mut self, old: &Token, new: &Token) -> Option<&mut Transfer> {
        let transfer = self.transfers.get_mut(old)?;
        (transfer.new == *new).then_some(transfer)
    }
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // of constants
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn start() -> (Transfers, Token, Lease, Moment) {
        let lease = Lease::from_seconds(1.0).unwrap();
        (Transfers::default(), Token::random(), lease, Moment::now())
    }

    #[test]
    fn the_token_that_a_hold_may_have_is_known_for_a_lease() {
        let (mut all, old, second, now) = start();
        let later = now + (SECOND - Duration::from_millis(1));
        let claim = all.begin(&old, second, now).unwrap();
        let new = claim.new.clone();
        assert_eq!(all.meant(&new, now), None);
        assert_eq!(all.meant(&old, later), Some(new.clone()));
        assert_eq!(all.meant(&old, now + SECOND), None);
        assert_eq!(all.begin_release(&old, now + SECOND), None);
        all.stands(&old, &new, second, later);
        assert_eq!(all.meant(&old, now + SECOND), Some(new.clone()));
        all.stands(&old, &Token::random(), second, later + SECOND);
        assert_eq!(all.meant(&old, later + SECOND), None);
        // Others are forgotten when they no longer matter.
        all.begin(&new, second, later + SECOND);
        assert_eq!(all.transfers.len(), 1);
    }

    #[test]
    fn of_two_transfers_of_a_token_one_is_under_way() {
        let (mut all, old, second, now) = start();
        assert!(!all.is_busy(&old, now));
        let first = all.begin(&old, second, now).unwrap();
        assert!(all.is_busy(&old, now));
        assert!(!all.is_busy(&old, now + SECOND));
        assert_eq!(all.begin(&old, second, now), None);
        // A failed transfer is repeated with the same token, as the database may have it.
        all.failed(&first);
        assert!(!all.is_busy(&old, now));
        let claim = all.begin(&old, second, now).unwrap();
        assert_eq!(claim.new, first.new);
        assert_eq!(all.begin(&old, second, now), None);
        // The outcome of the first attempt no longer matters.
        all.failed(&first);
        assert!(all.is_busy(&old, now));
        all.made(&first);
        assert!(all.is_busy(&old, now));
        assert!(!all.read(&first));
        // A caller that comes before the first one knows gets its own token, in vain.
        all.made(&claim);
        let other = all.begin(&old, second, now).unwrap();
        assert_ne!(other.new, claim.new);
        all.over(&old, &other.new);
        all.failed(&other);
        assert_eq!(all.meant(&old, now), Some(claim.new.clone()));
        // A cancelled attempt stays failed, whatever the database says afterwards.
        all.failed(&claim);
        all.made(&claim);
        let claim = all.begin(&old, second, now).unwrap();
        assert_eq!(claim.new, first.new);
        // Once read, nothing revives it.
        assert!(all.read(&claim));
        all.stands(&old, &claim.new, second, now);
        all.made(&claim);
        assert_eq!(all.meant(&old, now), None);
        assert_ne!(all.begin(&old, second, now).unwrap().new, claim.new);
    }

    #[test]
    fn a_release_or_a_transfer_has_the_hold() {
        for progress in [Progress::UnderWay, Progress::Unread, Progress::Failed] {
            let (mut all, old, second, now) = start();
            let claim = all.begin(&old, second, now).unwrap();
            let new = claim.new.clone();
            match progress {
                Progress::UnderWay => {}
                Progress::Unread => all.made(&claim),
                Progress::Failed => all.failed(&claim),
            }
            // During two releases nobody is given the token, and transfers wait.
            for _ in 0..2 {
                assert_eq!(all.begin_release(&old, now), Some(new.clone()));
            }
            all.made(&claim);
            assert_eq!(all.begin(&old, second, now), None);
            assert!(all.is_busy(&old, now));
            assert!(!all.read(&claim));
            all.over(&old, &new);
            all.end_release(&old, &new, false);
            assert!(all.is_busy(&old, now));
            assert!(!all.read(&claim));
            // Both have failed: back to the start.
            all.end_release(&old, &new, false);
            assert_eq!(all.begin_release(&old, now), Some(new.clone()));
            all.end_release(&old, &new, false);
            all.failed(&claim);
            let claim = all.begin(&old, second, now).unwrap();
            assert_eq!(claim.new, new);
            all.made(&claim);
            // One has succeeded, whatever the others report, and nothing revives the hold.
            for _ in 0..2 {
                assert_eq!(all.begin_release(&old, now), Some(new.clone()));
            }
            all.end_release(&old, &new, true);
            all.end_release(&old, &new, false);
            assert!(!all.read(&claim));
            all.failed(&claim);
            all.over(&old, &new);
            assert_eq!(all.begin_release(&old, now), Some(new.clone()));
            assert!(!all.is_busy(&old, now));
            assert!(!all.read(&claim));
            assert_ne!(all.begin(&old, second, now).unwrap().new, new);
        }
    }

    #[test]
    fn after_it_was_read_a_release_finds_nothing() {
        let (mut all, old, second, now) = start();
        let claim = all.begin(&old, second, now).unwrap();
        let new = claim.new.clone();
        all.made(&claim);
        assert!(all.read(&claim));
        assert_eq!(all.begin_release(&old, now), None);
        all.end_release(&old, &new, true);
        assert_eq!(all.meant(&old, now), None);
    }
}
