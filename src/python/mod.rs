//! The extension module `score.distlock._distlock`: the only part that knows Python.

// Its doc comments are Sphinx docstrings; its methods have the signatures that Python's interfaces
// require.
#![allow(clippy::doc_markdown, clippy::unused_self)]

mod acquire;
mod aio;
mod all;
mod arguments;
mod call;
mod database;
mod ending;
mod engine;
mod errors;
mod events;
mod exit;
mod finalizing;
mod handle;
mod hold;
mod insight;
mod levels;
mod lock;
mod lost;
mod module;
mod objects;
mod opening;
mod options;
mod owner;
mod telemetry;
mod transfer;

use pyo3::pymodule;

/// The locks, written in Rust.
#[pymodule]
mod _distlock {
    #[allow(clippy::wildcard_imports)]
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::hold::Hold;
    #[pymodule_export]
    use super::levels::Levels;
    #[pymodule_export]
    use super::lock::Lock;
    #[pymodule_export]
    use super::lost::{Lost, Watch};
    #[pymodule_export]
    use super::module::ConfiguredDistlockModule;
    #[pymodule_export]
    use super::opening::{init, open};

    /// The SQL that creates or upgrades the table; see ``python -m score.distlock``.
    #[pyfunction]
    #[pyo3(signature = (schema=None, role=None))]
    fn _schema(schema: Option<&str>, role: Option<&str>) -> String {
        crate::store::schema_sql(schema, role)
    }

    #[pymodule_export]
    use super::database::_understood;

    #[pymodule_export]
    use super::aio::{Acquisition, Confirmation, Inbox};
    #[pymodule_export]
    use super::all::{_enter_all, _release_all, Method};
    #[pymodule_export]
    use super::ending::Exit;
    #[pymodule_export]
    use super::events::{_claim_events, _deliver_all, _next_event};
    #[pymodule_export]
    use super::exit::{AsyncExit, Leaving, Opened};
    #[pymodule_export]
    use super::finalizing::_finalizing;
    #[pymodule_export]
    use super::telemetry::{_count_seen, _measured, _next_seen, _observe};
    #[pymodule_export]
    use super::transfer::Transfer;

    /// All statements, on the table of a schema, for tests and benchmarks: name, text, and
    /// parameter types.
    #[pyfunction]
    #[pyo3(signature = (schema=None))]
    fn _statements(schema: Option<&str>) -> Vec<(&'static str, String, Vec<String>)> {
        use crate::store::sql::{Schema, Statements};
        Statements::new(&Schema::new(schema))
            .iter()
            .map(|statement| {
                let types = statement.types.iter().map(|kind| kind.name().to_owned());
                (statement.title, statement.text.clone(), types.collect())
            })
            .collect()
    }

    /// The connections' descriptors that a process inherited from its parent, right after a fork.
    #[pyfunction]
    fn _inherited() -> Vec<i32> {
        crate::store::inherited()
    }

    /// Seconds for which a hold is certainly held; `None` if the level was left or the hold lost.
    #[pyfunction]
    fn _left(level: (u64, u64)) -> Option<f64> {
        let now = crate::engine::Moment::now();
        crate::service::registry(std::process::id()).with(|holds| {
            let (hold, _) = holds.watched(super::hold::entered(level))?;
            Some(hold.deadline.remaining(now))
        })
    }

    /// How many waiters of this process wait for a lock, and how many tickets they have.
    #[pyfunction]
    fn _waiting(name: &str) -> (usize, usize) {
        let name = crate::engine::Name::new(name);
        let registry = crate::service::registry(std::process::id());
        name.map_or((0, 0), |name| registry.waiting(&name))
    }

    #[pymodule_init]
    fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        super::events::install();
        // The classes are defined in Python; export them here too.
        let errors = py.import("score.distlock._errors")?;
        for name in ["CouldNotAcquireLock", "LockExpired"] {
            module.add(name, errors.getattr(name)?)?;
        }
        // Python spells Cargo's pre-release 1.0.0-dev.0 as 1.0.0.dev0.
        let version = env!("CARGO_PKG_VERSION").replace("-dev.", ".dev");
        module.add("__version__", version)?;
        // A Rust class cannot inherit from a Python class; the base class is an ABC whose behaviour
        // we have in full, so registering is as good.
        py.import("score.init")?
            .getattr("ConfiguredModule")?
            .call_method1("register", (py.get_type::<ConfiguredDistlockModule>(),))?;
        Ok(())
    }
}
