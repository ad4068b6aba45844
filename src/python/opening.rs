//! `init`, and opening a configuration with its table in the database.

use super::call::call;
use super::finalizing::ours;
use super::module::ConfiguredDistlockModule;
use crate::error::Error;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Initializes the module from a score configuration, and its table in the database.
///
/// :param confdict: the section of the configuration:
///
///     ``sqlalchemy.url``
///         ``postgresql://user:password@host/database``, or ``embedded:`` for development.
///     ``maxtime``
///         How long a hold lasts unless it is extended, a score interval; ``'1m'`` by default.
///     ``sqlalchemy.pool_size``, ``sqlalchemy.max_overflow``, ``sqlalchemy.pool_timeout``, …
///         The pool of connections, as SQLAlchemy means it.
///     ``timeout``
///         How long ``with`` waits for a lock that is held elsewhere, a score interval or
///         ``none`` for ever; 0 by default.
///     ``autoextend``
///         Whether ``with`` extends its hold in the background; false by default.
///     ``reentrant``
///         Whether the owner of a Lock may acquire it again; true by default.
///
/// :raises score.init.ConfigurationError: if a key is missing, unknown, or has a bad value.
/// :raises DatabaseUnavailable: if the database cannot be reached within ``pool_timeout``.
/// :raises DatabaseError: if the table cannot be created or upgraded.
#[pyfunction]
pub fn init<'py>(confdict: &Bound<'py, PyAny>) -> PyResult<Bound<'py, ConfiguredDistlockModule>> {
    let py = confdict.py();
    try_init(confdict).map_err(|error| {
        match ours(py, "_config", "of_file", (error.value(py), confdict)) {
            Ok(_) => error,
            // Ctrl-C, for instance.
            Err(interruption) => {
                interruption.set_cause(py, Some(error));
                interruption
            }
        }
    })
}

fn try_init<'py>(confdict: &Bound<'py, PyAny>) -> PyResult<Bound<'py, ConfiguredDistlockModule>> {
    let options = ours(confdict.py(), "_config", "read", (confdict,))?;
    open(options.cast::<PyDict>()?)
}

/// Constructs the module with these options and creates its table in the database.
#[pyfunction]
#[pyo3(name = "_open")]
pub fn open<'py>(options: &Bound<'py, PyDict>) -> PyResult<Bound<'py, ConfiguredDistlockModule>> {
    let py = options.py();
    let conf = py
        .get_type::<ConfiguredDistlockModule>()
        .call((), Some(options))?
        .cast_into::<ConfiguredDistlockModule>()?;
    let shared = conf.get().shared();
    call(py, shared.limit(), |budget| {
        let store = shared.locks.store();
        store
            .ensure_schema(budget)
            .map_err(|error| for_an_administrator(error, &store.url().to_string()))
    })?;
    Ok(conf)
}

/// Adds where to run the error's SQL, if it has any, and the command that prints it again: as a SQL
/// comment, so that all of it can be copied.
fn for_an_administrator(mut error: Error, place: &str) -> Error {
    match &mut error {
        Error::Sql { message, .. } if message.contains("An administrator must run:") => {
            let place = place.replace(['\n', '\r'], " ");
            *message = format!(
                "{message}\n-- Run it in this database, {place}, with psql for instance, as the \
                 database's owner or a superuser; as another role, also set table_owner to it. \
                 `python -m score.distlock schema --grant ROLE` prints it too."
            );
        }
        _ => {}
    }
    error
}
