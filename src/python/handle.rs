//! State that the Python objects of one configuration share.

use crate::engine::Name;
use crate::service::{self, Locks};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// The locks of a configuration, and the defaults for acquiring them.
pub struct Shared {
    /// The core.
    pub locks: Arc<Locks>,
    /// The configured `timeout`; `None` means for ever.
    pub timeout: Option<Duration>,
    /// The configured `autoextend`.
    pub autoextend: bool,
}

impl Shared {
    /// How long one call may take.
    pub fn limit(&self) -> Duration {
        self.locks.store().timeout()
    }
}

/// The same, as a configuration passes it to its Lock objects.
#[pyclass(name = "_Shared", module = "score.distlock", frozen)]
pub struct Configured(Arc<Shared>);

impl Configured {
    /// Wraps it for Python.
    pub fn new(shared: &Arc<Shared>) -> Configured {
        Configured(shared.clone())
    }

    /// The shared state of a configuration.
    pub fn of(conf: &Bound<'_, PyAny>) -> PyResult<Arc<Shared>> {
        let shared = conf.getattr_opt(intern!(conf.py(), "_shared"))?;
        let shared = shared
            .as_ref()
            .and_then(|shared| shared.cast::<Configured>().ok());
        let Some(shared) = shared else {
            return Err(PyTypeError::new_err(format!(
                "conf must be a ConfiguredDistlockModule, not {}",
                conf.get_type().name()?
            )));
        };
        Ok(shared.get().0.clone())
    }
}

/// A Lock object, as the core sees it.
#[derive(Clone)]
pub struct Handle {
    /// Its identity and name.
    pub core: Arc<service::Lock>,
    /// What it shares with the other Lock objects.
    pub shared: Arc<Shared>,
}

impl Handle {
    /// A new handle.
    pub fn new(shared: Arc<Shared>, name: Name) -> Handle {
        let core = Arc::new(service::Lock::new(name));
        Handle { core, shared }
    }

    /// The locks it belongs to.
    pub fn locks(&self) -> &Arc<Locks> {
        &self.shared.locks
    }
}
