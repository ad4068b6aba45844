//! The live Lock objects of a configuration.

use super::lock::Lock;
use crate::engine::Name;
use pyo3::prelude::*;
use pyo3::types::PyWeakrefReference;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One Lock object for each name, for as long as it is referenced.
#[derive(Default)]
pub struct LockObjects(Mutex<Alive>);

/// Only touched with the GIL held, so no fork can find it locked.
#[derive(Default)]
struct Alive {
    references: HashMap<Name, Py<PyWeakrefReference>>,
    /// How many entries remained after the last cleanup.
    left: usize,
}

impl Alive {
    fn find<'py>(&self, py: Python<'py>, name: &Name) -> Option<Bound<'py, PyAny>> {
        let reference = self.references.get(name)?;
        reference.bind(py).upgrade()
    }
}

impl LockObjects {
    /// Below this many entries there is no cleanup.
    const MANY: usize = 1000;

    fn alive(&self) -> MutexGuard<'_, Alive> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Lock object of a name; makes one if there is none.
    pub fn get<'py>(
        &self,
        py: Python<'py>,
        name: Name,
        make: impl FnOnce(Name) -> Lock,
    ) -> PyResult<Bound<'py, Lock>> {
        let known = self.alive().find(py, &name);
        if let Some(lock) = known {
            return Ok(lock.cast_into()?);
        }
        self.forget_the_dead(py);
        // Making the object may run the garbage collector, and with it other Python code; hence not
        // under the mutex, and look again.
        let made = Bound::new(py, make(name.clone()))?;
        let reference = PyWeakrefReference::new(&made)?.unbind();
        let mut alive = self.alive();
        if let Some(other) = alive.find(py, &name) {
            drop(alive);
            return Ok(other.cast_into()?);
        }
        let dead = alive.references.insert(name, reference);
        drop(alive);
        drop(dead);
        Ok(made)
    }

    /// Removes the entries of dead Lock objects whenever there are twice as many entries as
    /// remained last time.
    fn forget_the_dead(&self, py: Python<'_>) {
        let mut alive = self.alive();
        if alive.references.len() < (2 * alive.left).max(LockObjects::MANY) {
            return;
        }
        let is_dead = |reference: &Py<PyWeakrefReference>| reference.bind(py).upgrade().is_none();
        let gone = alive.references.iter();
        let gone = gone.filter(|(_, reference)| is_dead(reference));
        let gone: Vec<Name> = gone.map(|(name, _)| name.clone()).collect();
        let dead = gone.iter().filter_map(|name| alive.references.remove(name));
        let dead: Vec<_> = dead.collect();
        alive.left = alive.references.len();
        drop(alive);
        // Not under the mutex.
        drop(dead);
    }
}
