//! What is checked, and what is to come of it.

use crate::progress;
use crate::protocol::{BACKED, FENCES_RISE, KNOWN, NO_GHOSTS, ONE_HOLD, Protocol};
use crate::sizes::{Mutant, Sizes};
use serde_json::{Value, json};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The protocol as it is: every property holds.
    Promise,
    /// A fault that was built in: this property has to notice it.
    Mutant(&'static str),
}

/// One exploration.
pub struct Run {
    /// What it is called.
    pub name: &'static str,
    /// What is explored.
    pub sizes: Sizes,
    /// What for.
    pub purpose: Purpose,
    /// Only where a larger run is asked for.
    pub large: bool,
    /// Only to this depth (the first state has depth 1), as all of it would take too long.
    pub depth: Option<usize>,
}

/// The name of the property that `progress.rs` checks.
pub const PROGRESS: &str = "who waits gets the lock";

const TWO: Sizes = Sizes {
    processes: 2,
    lease: 2,
    waits: false,
    behind: 0,
    extends: false,
    faults: 0,
    loses: false,
    outlives: false,
    crashes: false,
    deafness: false,
    silent: false,
    vacuums: false,
    old: false,
    watched: false,
    mutant: None,
};
/// Two that wait, with the shortest lease.
const WAIT: Sizes = Sizes {
    waits: true,
    lease: 1,
    ..TWO
};
const WATCH: Sizes = Sizes {
    watched: true,
    ..WAIT
};

fn run(name: &'static str, purpose: Purpose, sizes: Sizes) -> Run {
    Run {
        name,
        sizes,
        purpose,
        large: false,
        depth: None,
    }
}

fn large(name: &'static str, sizes: Sizes) -> Run {
    Run {
        large: true,
        ..run(name, Purpose::Promise, sizes)
    }
}

fn mutant(mutant: Mutant, property: &'static str, sizes: Sizes) -> Run {
    let sizes = Sizes {
        mutant: Some(mutant),
        ..sizes
    };
    run("mutant", Purpose::Mutant(property), sizes)
}

/// All runs.
#[rustfmt::skip] // one a line
pub fn all() -> Vec<Run> {
    let promise = |name, sizes| run(name, Purpose::Promise, sizes);
    vec![
        promise("two processes", TWO),
        promise("holds are extended, rows vacuumed", Sizes { extends: true, vacuums: true, ..TWO }),
        promise("a process of 0.2.5", Sizes { vacuums: true, old: true, ..TWO }),
        promise("a crash", Sizes { extends: true, crashes: true, faults: 1, ..TWO }),
        promise("lost answers", Sizes { loses: true, faults: 1, ..TWO }),
        promise("lost answers, statements that outlive them", Sizes { loses: true, outlives: true, faults: 1, ..TWO }),
        Run { depth: Some(29), ..large("two that wait, lost answers: 28 steps", Sizes { loses: true, outlives: true, faults: 1, ..WAIT }) },
        promise("two that wait", WAIT),
        promise("progress: two that wait", WATCH),
        promise("progress: no notification arrives", Sizes { silent: true, ..WATCH }),
        mutant(Mutant::TakesWhatIsHeld, ONE_HOLD, TWO),
        mutant(Mutant::FenceDrawnEarly, FENCES_RISE, Sizes { vacuums: true, ..TWO }),
        mutant(Mutant::NeverLooks, PROGRESS, Sizes { silent: true, ..WATCH }),
        mutant(Mutant::NeverTooLate, KNOWN, Sizes { loses: true, faults: 1, ..TWO }),
        mutant(Mutant::ExtendsAnyHold, BACKED, Sizes { extends: true, ..TWO }),
        mutant(Mutant::ForgetsRelease, KNOWN, Sizes { loses: true, faults: 1, ..TWO }),
        mutant(Mutant::CountsFromAnswer, BACKED, TWO),
        mutant(Mutant::RepetitionNotWatched, KNOWN, Sizes { loses: true, outlives: true, faults: 1, ..TWO }),
        mutant(Mutant::SettledByFinding, KNOWN, Sizes { loses: true, outlives: true, faults: 2, lease: 1, ..TWO }),
        mutant(Mutant::LastByAnswer, KNOWN, Sizes { loses: true, faults: 1, ..TWO }),
        mutant(Mutant::EndsTheGranted, BACKED, Sizes { loses: true, faults: 1, ..TWO }),
        mutant(Mutant::SettlesWhatCameLater, KNOWN, Sizes { loses: true, faults: 1, ..TWO }),
        mutant(Mutant::NumbersAgain, BACKED, Sizes { loses: true, outlives: true, faults: 2, lease: 1, ..TWO }),
        mutant(Mutant::TicketNotWatched, NO_GHOSTS, Sizes { loses: true, faults: 1, ..WAIT }),
        Run { large: true, ..mutant(Mutant::TrustsWhoWaits, NO_GHOSTS, Sizes { loses: true, outlives: true, faults: 1, ..WAIT }) },
        large("three processes", Sizes { processes: 3, ..TWO }),
        Run { depth: Some(24), ..large("two lost answers: 23 steps", Sizes { loses: true, outlives: true, faults: 2, ..TWO }) },
        large("two that wait, rows vacuumed", Sizes { vacuums: true, ..WAIT }),
        large("two that wait, a process of 0.2.5", Sizes { old: true, ..WAIT }),
        promise("two that wait, a crash", Sizes { crashes: true, faults: 1, ..WAIT }),
        large("one more waits behind", Sizes { behind: 1, ..WAIT }),
        promise("progress: a crash", Sizes { crashes: true, faults: 1, ..WATCH }),
        large("progress: a listening connection is lost", Sizes { deafness: true, faults: 1, ..WATCH }),
    ]
}

impl Run {
    /// What it is called in the report.
    pub fn title(&self) -> String {
        match self.sizes.mutant {
            Some(mutant) => format!("mutant: {mutant:?}"),
            None => self.name.to_owned(),
        }
    }

    /// The property that is to fail, if there is one.
    pub fn fails(&self) -> Option<&'static str> {
        match self.purpose {
            Purpose::Promise => None,
            Purpose::Mutant(property) => Some(property),
        }
    }

    /// Explores, and tells whether everything came out as it is to, with the numbers.
    pub fn execute(&self, threads: usize) -> (bool, Value) {
        let started = Instant::now();
        let protocol = Protocol(self.sizes);
        let (violated, mut numbers) = if self.sizes.watched {
            let progress = progress::check(&protocol);
            let starving = (progress.starving > 0).then_some(PROGRESS);
            let numbers = json!({
                "states": progress.states,
                "waiting": progress.waiting,
                "starving": progress.starving,
            });
            (Vec::from_iter(starving), numbers)
        } else {
            self.explore(protocol, threads)
        };
        let right = match self.fails() {
            None => violated.is_empty(),
            Some(property) => violated.contains(&property),
        };
        numbers["name"] = self.title().into();
        numbers["purpose"] = match self.purpose {
            Purpose::Promise => "promise",
            Purpose::Mutant(_) => "mutant",
        }
        .into();
        numbers["violated"] = violated.into();
        numbers["as expected"] = right.into();
        numbers["seconds"] = started.elapsed().as_secs_f64().into();
        (right, numbers)
    }

    fn explore(&self, protocol: Protocol, threads: usize) -> (Vec<&'static str>, Value) {
        let names = match self.fails() {
            // One violation is enough, and ends it.
            Some(property) => vec![property],
            None => protocol
                .properties()
                .iter()
                .map(|property| property.name)
                .collect(),
        };
        let until = HasDiscoveries::AnyOf(names.into_iter().collect());
        let mut checker = protocol.checker().threads(threads).finish_when(until);
        if let Some(depth) = self.depth {
            checker = checker.target_max_depth(depth);
        }
        let checker = checker.spawn_bfs().join();
        let discoveries = checker.discoveries();
        let mut violated: Vec<&'static str> = discoveries.keys().copied().collect();
        violated.sort_unstable();
        let path = |property: &&str| discoveries.get(property).cloned();
        let shown = self.fails().as_ref().or(violated.first()).and_then(path);
        let steps = shown.map(|path| {
            let actions = path.into_actions().into_iter();
            actions
                .map(|action| format!("{action:?}"))
                .collect::<Vec<_>>()
        });
        let numbers = json!({
            "states": checker.unique_state_count(),
            "transitions": checker.state_count(),
            "depth": checker.max_depth(),
            "steps": steps,
        });
        (violated, numbers)
    }
}
