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
        self.by_old.retain(|_, transfer| transfer.matters(now));
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
                self.by_old.remove(&claim.old);
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
        self.by_old.remove(&claim.old);
        true
    }

    /// The hold has neither token any more, or never had the new one.
    pub fn over(&mut self, old: &Token, new: &Token) {
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
                    self.by_old.remove(old);
                }
                Progress::Over if left == 0 => {
                    self.by_old.remove(old);
                }
                _ => {}
            }
        }
    }

    /// The token that a transfer was to replace, if this is its new one, which nobody has read: who
    /// names no token means the one that the hold has.
    fn origin(&self, token: &Token) -> Token {
        let failed = |(_, transfer): &(&Token, &Transfer)| {
            transfer.progress == Progress::Failed && transfer.new == *token
        };
        let found = self.by_old.iter().find(failed);
        found.map_or_else(|| token.clone(), |(old, _)| old.clone())
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
        // While its statement is under way there is no limit.
        assert_eq!(all.meant(&old, now + SECOND), Some(new.clone()));
        all.failed(&claim);
        assert_eq!(all.meant(&new, now), None);
        assert_eq!(all.meant(&old, later), Some(new.clone()));
        assert_eq!(all.meant(&old, now + SECOND), None);
        assert_eq!(all.begin_release(&old, now + SECOND).1, None);
        all.end_release(&old, false);
        all.stands(&old, &new, second, later);
        assert_eq!(all.meant(&old, now + SECOND), Some(new.clone()));
        all.stands(&old, &Token::random(), second, later + SECOND);
        assert_eq!(all.meant(&old, later + SECOND), None);
        // Others are forgotten when they no longer matter.
        all.begin(&Token::random(), second, later + SECOND);
        assert_eq!(all.by_old.len(), 1);
    }

    #[test]
    fn of_two_transfers_of_a_token_one_is_under_way() {
        let (mut all, old, second, now) = start();
        assert!(!all.is_busy(&old));
        let first = all.begin(&old, second, now).unwrap();
        assert!(all.is_busy(&old));
        assert_eq!(all.begin(&old, second, now + SECOND), None);
        // A failed transfer is repeated with the same token, as the database may have it.
        all.failed(&first);
        assert!(!all.is_busy(&old));
        let claim = all.begin(&old, second, now).unwrap();
        assert_eq!(claim.new, first.new);
        assert_eq!(all.begin(&old, second, now), None);
        // The outcome of the first attempt no longer matters.
        all.failed(&first);
        assert!(all.is_busy(&old));
        all.made(&first);
        assert!(all.is_busy(&old));
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
                Progress::Unread => all.made(&claim),
                Progress::Failed => all.failed(&claim),
                _ => {}
            }
            // During two releases nobody is given the token, and transfers wait.
            for _ in 0..2 {
                assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
            }
            all.made(&claim);
            assert_eq!(all.begin(&old, second, now), None);
            assert!(all.is_busy(&old));
            assert!(!all.read(&claim));
            all.end_release(&old, false);
            assert!(all.is_busy(&old));
            assert!(!all.read(&claim));
            // Both have failed: as before.
            all.end_release(&old, false);
            assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
            all.end_release(&old, false);
            all.failed(&claim);
            let claim = all.begin(&old, second, now).unwrap();
            assert_eq!(claim.new, new);
            all.made(&claim);
            // One has succeeded, whatever the others report, and nothing revives the hold.
            for _ in 0..2 {
                assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
            }
            all.end_release(&old, true);
            all.end_release(&old, false);
            assert!(!all.read(&claim));
            all.over(&old, &new);
            assert_eq!(all.begin_release(&old, now).1, Some(new.clone()));
            all.end_release(&old, false);
            assert!(!all.is_busy(&old));
            assert!(!all.read(&claim));
            assert_ne!(all.begin(&old, second, now).unwrap().new, new);
            // The caller has been told, and nothing needs to be remembered.
            all.failed(&claim);
            assert!(all.by_old.is_empty() && all.releases.is_empty());
        }
    }

    #[test]
    fn the_slower_of_two_releases_finds_nothing_before_the_faster_one_ends() {
        let (mut all, old, second, now) = start();
        let claim = all.begin(&old, second, now).unwrap();
        all.made(&claim);
        all.begin_release(&old, now);
        all.begin_release(&old, now);
        all.over(&old, &claim.new);
        all.end_release(&old, false);
        all.end_release(&old, true);
        assert!(!all.read(&claim));
    }

    #[test]
    fn a_release_after_a_failed_transfer_leaves_nothing() {
        let (mut all, old, second, now) = start();
        let claim = all.begin(&old, second, now).unwrap();
        all.failed(&claim);
        assert_eq!(all.begin_release(&old, now).1, Some(claim.new));
        all.end_release(&old, true);
        assert!(all.by_old.is_empty() && all.releases.is_empty());
    }

    #[test]
    fn the_new_token_of_a_failed_transfer_means_that_transfer() {
        let (mut all, old, second, now) = start();
        let first = all.begin(&old, second, now).unwrap();
        all.failed(&first);
        // The owner names no token, and the hold has the new one.
        let claim = all.begin(&first.new, second, now).unwrap();
        assert_eq!((&claim.old, &claim.new), (&old, &first.new));
        all.failed(&claim);
        assert_eq!(all.begin_release(&first.new, now), (old.clone(), None));
        assert!(all.is_busy(&old) && all.is_busy(&first.new));
        assert_eq!(all.begin(&first.new, second, now), None);
        all.end_release(&old, true);
        assert!(all.by_old.is_empty() && all.releases.is_empty());
    }

    #[test]
    fn a_transfer_waits_for_a_release_that_began_before() {
        let (mut all, old, second, now) = start();
        assert_eq!(all.begin_release(&old, now).1, None);
        assert_eq!(all.begin(&old, second, now), None);
        assert!(all.is_busy(&old));
        all.end_release(&old, true);
        assert!(!all.is_busy(&old));
        assert!(all.begin(&old, second, now).is_some());
    }

    #[test]
    fn what_a_release_finds_gone_is_forgotten_afterwards() {
        let (mut all, old, second, now) = start();
        let claim = all.begin(&old, second, now).unwrap();
        for _ in 0..2 {
            all.begin_release(&old, now);
        }
        all.over(&old, &claim.new);
        all.made(&claim);
        all.failed(&claim);
        all.end_release(&old, false);
        assert!(all.is_busy(&old));
        assert!(!all.read(&claim));
        all.end_release(&old, false);
        assert!(!all.is_busy(&old));
        assert_eq!(all.meant(&old, now), None);
        assert_ne!(all.begin(&old, second, now).unwrap().new, claim.new);
    }

    #[test]
    fn after_it_was_read_a_release_finds_nothing() {
        let (mut all, old, second, now) = start();
        let claim = all.begin(&old, second, now).unwrap();
        all.made(&claim);
        assert!(all.read(&claim));
        assert_eq!(all.begin_release(&old, now).1, None);
        all.end_release(&old, true);
        assert_eq!(all.meant(&old, now), None);
        assert!(all.releases.is_empty());
    }
}
