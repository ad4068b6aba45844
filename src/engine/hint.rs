//! What this process last saw of each lock. It only decides which statement goes first: the one for
//! the likely case, or the one for all cases.

use super::Name;
use std::collections::HashMap;

/// The last known state of a lock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hint {
    /// Released, and nobody was waiting.
    Free,
    /// Held by another owner.
    Held,
    /// Others were waiting for it.
    Awaited,
}

/// The hints of the locks used most recently.
#[derive(Debug, Default)]
pub struct Hints(HashMap<Name, Hint>);

impl Hints {
    /// The most names to remember. Beyond that all are forgotten, which costs each of them one
    /// statement that does too much.
    const MANY: usize = 4096;

    /// The hint for a lock.
    #[must_use]
    pub fn of(&self, name: &Name) -> Option<Hint> {
        self.0.get(name).copied()
    }

    /// Remembers the state of a lock; `None` if it says nothing about the next call.
    pub fn remember(&mut self, name: &Name, hint: Option<Hint>) {
        match (hint, self.0.get_mut(name)) {
            (Some(hint), Some(known)) => *known = hint,
            (Some(hint), None) => {
                if self.0.len() >= Hints::MANY {
                    self.0.clear();
                }
                self.0.insert(name.clone(), hint);
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
    fn one_name_is_not_forgotten_for_another() {
        let mut hints = Hints::default();
        let (one, two) = (Name::new("one").unwrap(), Name::new("two").unwrap());
        hints.remember(&one, Some(Hint::Free));
        hints.remember(&two, Some(Hint::Held));
        assert_eq!(hints.of(&one), Some(Hint::Free));
        hints.remember(&one, None);
        assert_eq!(hints.of(&one), None);
        assert_eq!(hints.of(&two), Some(Hint::Held));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut hints = Hints::default();
        for number in 0..2 * Hints::MANY {
            let name = Name::new(&number.to_string()).unwrap();
            hints.remember(&name, Some(Hint::Free));
            assert_eq!(hints.of(&name), Some(Hint::Free));
        }
        assert!(hints.0.len() <= Hints::MANY);
    }
}
