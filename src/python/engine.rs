//! The SQLAlchemy Engine of a configuration.

use super::finalizing::{ours, python_code};
use crate::store::Url;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::sync::{Mutex, PoisonError};

/// The Engine that was given, or one that we create on first use.
pub enum Engine {
    Given(Py<PyAny>),
    Ours {
        options: Py<PyDict>,
        made: Mutex<Option<Py<PyAny>>>,
    },
}

impl Engine {
    /// `options` are for an Engine that we create.
    pub fn new(given: Option<Py<PyAny>>, options: Py<PyDict>) -> Engine {
        let made = Mutex::default();
        given.map_or(Engine::Ours { options, made }, Engine::Given)
    }

    /// The Engine, connected to the database of `url`.
    pub fn get<'py>(&self, py: Python<'py>, url: &Url) -> PyResult<Bound<'py, PyAny>> {
        let (options, slot) = match self {
            Engine::Given(engine) => return Ok(engine.bind(py).clone()),
            Engine::Ours { options, made } => (options, made),
        };
        let lock = || slot.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().as_ref().map(|engine| engine.bind(py).clone());
        if let Some(engine) = known {
            return Ok(engine);
        }
        // Not under the mutex: creating an engine runs Python, which may switch threads.
        let (driver, explicit) = url.explicit();
        let explicit = explicit
            .iter()
            .map(|(name, value)| (*name, PyBytes::new(py, value)));
        let explicit: Vec<_> = explicit.collect();
        let made = ours(py, "_engine", "create", (driver, explicit, options))?;
        Ok(lock().get_or_insert_with(|| made.unbind()).bind(py).clone())
    }

    /// Disposes of an Engine that we created; the next call creates another.
    pub fn dispose(&self, py: Python<'_>) -> PyResult<()> {
        let Engine::Ours { made, .. } = self else {
            return Ok(());
        };
        let engine = made.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            let _running = python_code(py);
            engine.bind(py).call_method0("dispose")?;
        }
        Ok(())
    }
}
