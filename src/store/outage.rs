//! Since when the database is unreachable: one wait per outage, not one per call.
//!
//! | state       | a connection is needed              | it fails          | something succeeds |
//! |-------------|-------------------------------------|-------------------|--------------------|
//! | there       | try                                 | gone since now    | there              |
//! | gone        | try, until the limit has passed     | gone              | there              |
//! | given up    | one call at a time tries for a      | given up          | there              |
//! |             | moment; the others wait for that,   |                   |                    |
//! |             | and fail if it began after them     |                   |                    |

use super::budget::Budget;
use super::failure::Failure;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long one call tries while all others fail immediately, and how long an answer must be missing
/// to be a sign of an outage.
const MOMENT: Duration = Duration::from_secs(1);

struct Gone {
    since: Instant,
    reason: String,
    /// When the call began that, after we gave up, now tries and has not failed yet.
    trying: Option<Instant>,
    /// When the last such attempt began that failed.
    tried: Option<Instant>,
}

/// Whether the database is reachable.
pub struct Outage {
    /// How long calls wait for it.
    limit: Duration,
    /// Mirrors `state`, for a cheap check in each call.
    gone: AtomicBool,
    state: Mutex<Option<Gone>>,
}

impl Outage {
    /// Counts as reachable until something fails.
    pub fn new(limit: Duration) -> Outage {
        Outage {
            limit,
            gone: AtomicBool::new(false),
            state: Mutex::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<Gone>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the caller may try to connect.
    pub fn admit<'a>(&self, budget: Budget<'a>) -> Result<Budget<'a>, Failure> {
        let called = Instant::now();
        loop {
            let mut state = self.state();
            let Some(gone) = &mut *state else {
                return Ok(budget);
            };
            let left = self.limit.saturating_sub(gone.since.elapsed());
            if !left.is_zero() {
                // Even at the very end there is time for one attempt.
                return Ok(budget.at_most(left.max(MOMENT)));
            }
            // Only an attempt that began after this call shows whether it is back.
            let known = gone.tried.is_some_and(|began| began > called);
            if known || budget.over() {
                return Err(Failure::Broken(gone.reason.clone()));
            }
            if gone.trying.is_none_or(|began| began.elapsed() >= MOMENT) {
                gone.trying = Some(Instant::now());
                return Ok(budget.at_most(MOMENT));
            }
            drop(state);
            let pause = Duration::from_millis(5);
            budget.pause(pause).map_err(Failure::Stopped)?;
        }
    }

    /// Whether it has been unreachable for so long that callers no longer wait.
    pub fn is_given_up(&self) -> bool {
        let is_old = |gone: &Gone| gone.since.elapsed() >= self.limit;
        self.gone.load(Relaxed) && self.state().as_ref().is_some_and(is_old)
    }

    /// Whether an attempt that has waited this long for an answer is a sign of an outage.
    pub fn is_shown_by(&self, waited: Duration) -> bool {
        self.gone.load(Relaxed) || waited >= MOMENT.min(self.limit / 2)
    }

    /// It could not be reached. Returns whether an outage begins with this, as of `began`.
    pub fn failed(&self, began: Instant, reason: &str) -> bool {
        let mut state = self.state();
        let first = state.is_none();
        let gone = state.get_or_insert_with(|| Gone {
            since: began,
            reason: String::new(),
            trying: None,
            tried: None,
        });
        reason.clone_into(&mut gone.reason);
        gone.tried = gone.trying.take().or(gone.tried);
        self.gone.store(true, Relaxed);
        first
    }

    /// It has answered. Returns how long it was unreachable, if it was.
    pub fn ended(&self) -> Option<Duration> {
        if !self.gone.load(Relaxed) {
            return None;
        }
        let mut state = self.state();
        self.gone.store(false, Relaxed);
        state.take().map(|gone| gone.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn admitted(outage: &Outage) -> Option<Duration> {
        let budget = Budget::new(LONG, &|| Ok(()));
        outage.admit(budget).ok().map(Budget::left)
    }

    #[test]
    fn what_is_there_is_tried_for_as_long_as_the_caller_likes() {
        let outage = Outage::new(Duration::from_secs(30));
        assert!(admitted(&outage).unwrap() > LONG / 2);
        assert!(!outage.is_given_up());
        assert_eq!(outage.ended(), None);
    }

    #[test]
    fn a_short_wait_shows_no_outage_but_belongs_to_one() {
        let outage = Outage::new(Duration::from_millis(500));
        assert!(!outage.is_shown_by(Duration::from_millis(249)));
        assert!(outage.is_shown_by(Duration::from_millis(250)));
        outage.failed(Instant::now(), "refused");
        assert!(outage.is_shown_by(Duration::ZERO));
        outage.ended();
        assert!(!outage.is_shown_by(Duration::ZERO));
        let patient = Outage::new(LONG);
        assert!(!patient.is_shown_by(MOMENT / 2));
        assert!(patient.is_shown_by(MOMENT));
    }

    #[test]
    fn what_is_gone_is_waited_for_once() {
        let outage = Outage::new(Duration::from_secs(30));
        assert!(outage.failed(Instant::now(), "refused"));
        assert!(!outage.failed(Instant::now(), "refused again"));
        assert!(admitted(&outage).unwrap() <= Duration::from_secs(30));
        assert!(!outage.is_given_up());
        assert!(outage.ended().is_some());
        assert!(admitted(&outage).unwrap() > LONG / 2);
    }

    #[test]
    fn what_was_given_up_is_tried_by_one_at_a_time() {
        let outage = Outage::new(Duration::ZERO);
        outage.failed(Instant::now(), "refused");
        assert!(outage.is_given_up());
        assert!(admitted(&outage).unwrap() <= MOMENT);
        let budget = Budget::new(Duration::from_millis(20), &|| Ok(()));
        let others = outage.admit(budget);
        assert!(matches!(others, Err(Failure::Broken(reason)) if reason == "refused"));
        outage.failed(Instant::now(), "refused");
        assert!(admitted(&outage).is_some());
        outage.ended();
        assert!(!outage.is_given_up());
    }
}
