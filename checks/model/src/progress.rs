//! Progress: whoever waits gets the lock, once nothing fails any more.
//!
//! `stateright`'s `eventually` cannot see a run that goes round in a circle, and that is what a
//! starved waiter does. So this explores the same graph itself and looks for circles.
//!
//! *Healthy* are the transitions in which nothing fails, nobody gives up, who holds the lock
//! releases it, and time passes only when everything that can happen at once has happened
//! ([`Protocol::healthy`]). Newcomers still come, each process one in a tick. From every state
//! that can be reached, also by faults, the healthy transitions are followed for as long as the
//! watched process waits. If these lead round in no circle, every healthy run from any such state
//! gives it the lock, after a bounded number of steps, in whatever order the others act. A state
//! in which only time passes, and changes nothing, counts as a circle: a lost wake-up is that.

use crate::protocol::{Action, Protocol};
use crate::state::State;
use stateright::Model;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// What the exploration found.
pub struct Progress {
    /// How many states there are.
    pub states: usize,
    /// In how many of them the watched process waits.
    pub waiting: usize,
    /// In how many of these it may wait for ever.
    pub starving: usize,
}

/// Two hashes of 64 bits, so that no two states are ever taken for one.
fn fingerprint(state: &State) -> (u64, u64) {
    let of = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        state.hash(&mut hasher);
        hasher.finish()
    };
    (of(0), of(1))
}

fn waits(state: &State) -> bool {
    state
        .processes
        .iter()
        .any(|of| of.watched && of.attempt.is_some())
}

fn holds(state: &State) -> bool {
    state
        .processes
        .iter()
        .any(|of| of.watched && of.hold.is_some())
}

/// Explores all states, and looks for those in which the watched process may starve.
pub fn check(protocol: &Protocol) -> Progress {
    let mut numbers: HashMap<(u64, u64), usize> = HashMap::new();
    let mut frontier: VecDeque<State> = VecDeque::new();
    let mut number = |state: State, frontier: &mut VecDeque<State>| {
        let next = numbers.len();
        *numbers.entry(fingerprint(&state)).or_insert_with(|| {
            frontier.push_back(state);
            next
        })
    };
    for state in protocol.init_states() {
        number(state, &mut frontier);
    }
    // For each state those from which a healthy transition leads to it while the wait goes on;
    // and how many such transitions lead on from it.
    let mut sources: Vec<Vec<usize>> = Vec::new();
    let mut left: Vec<usize> = Vec::new();
    let mut waiting = Vec::new();
    while let Some(state) = frontier.pop_front() {
        // They come off the queue in the order of their numbers.
        let from = left.len();
        left.push(0);
        waiting.push(waits(&state));
        let mut actions = Vec::new();
        protocol.actions(&state, &mut actions);
        for action in actions {
            let next = protocol.next_state(&state, action);
            let healthy = waiting[from] && protocol.healthy(&state, action);
            let (to, goes_on) = match next {
                Some(next) => {
                    let goes_on = waits(&next) && (holds(&state) || !holds(&next));
                    (number(next, &mut frontier), goes_on)
                }
                // Time passes and changes nothing.
                None => (from, action == Action::Tick),
            };
            if healthy && goes_on {
                if sources.len() <= to {
                    sources.resize(to + 1, Vec::new());
                }
                sources[to].push(from);
                left[from] += 1;
            }
        }
    }
    sources.resize(left.len(), Vec::new());
    // Takes away what cannot go on for ever, until nothing is left but what leads into circles.
    let mut ended: Vec<usize> = (0..left.len()).filter(|state| left[*state] == 0).collect();
    while let Some(state) = ended.pop() {
        for source in std::mem::take(&mut sources[state]) {
            left[source] -= 1;
            if left[source] == 0 {
                ended.push(source);
            }
        }
    }
    Progress {
        states: left.len(),
        waiting: waiting.iter().filter(|waits| **waits).count(),
        starving: left.iter().filter(|left| **left > 0).count(),
    }
}
