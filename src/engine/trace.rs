//! What this process saw last of each lock. It decides about nothing but which
//! statement is asked first: the one for what is likely, or the one for everything.

use super::Name;
use std::collections::HashMap;

/// What a lock was like when it was seen last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trace {
    /// Released, and nobody waited for it.
    Free,
    /// Held by somebody else.
    Held,
    /// Others waited for it.
    Awaited,
}

/// The traces of the locks used most recently.
#[derive(Debug, Default)]
pub struct Traces(HashMap<Name, Trace>);

impl Traces {
    /// So many names are remembered at most. When there are more, all are forgotten,
    /// which costs each of them one statement that does too much.
    const MANY: usize = 4096;

    /// What is known of a lock.
    #[must_use]
    pub fn of(&self, name: &Name) -> Option<Trace> {
        self.0.get(name).copied()
    }

    /// Remembers what a lock is like now; `None` if that will tell nothing.
    pub fn leave(&mut self, name: &Name, trace: Option<Trace>) {
        match (trace, self.0.get_mut(name)) {
            (Some(trace), Some(known)) => *known = trace,
            (Some(trace), None) => {
                if self.0.len() >= Traces::MANY {
                    self.0.clear();
                }
                self.0.insert(name.clone(), trace);
            }
            (None, Some(_)) => {
                self.0.remove(name);
            }
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_bounded() {
        let mut traces = Traces::default();
        for number in 0..2 * Traces::MANY {
            let name = Name::new(&number.to_string()).unwrap();
            traces.leave(&name, Some(Trace::Free));
            assert_eq!(traces.of(&name), Some(Trace::Free));
        }
        assert!(traces.0.len() <= Traces::MANY);
    }
}
