//! The options of the pool.

use std::time::Duration;

/// No limit: more than a PostgreSQL can serve. `r2d2` reserves memory for all of them.
pub const UNLIMITED: usize = 16_384;

/// The options `sqlalchemy.pool_*`, with SQLAlchemy's meaning and defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections that stay open; 0 means no limit.
    pub size: usize,
    /// Connections beyond `size` while all are in use; `None` means no limit.
    pub overflow: Option<usize>,
    /// How long one call may take in total: waiting for a connection, connecting, executing and
    /// repeating.
    pub timeout: Duration,
    /// Connections older than this are replaced.
    pub recycle: Option<Duration>,
    /// Whether to ping the server before each use.
    pub pre_ping: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            size: 5,
            overflow: Some(10),
            timeout: Duration::from_secs(30),
            recycle: None,
            pre_ping: false,
        }
    }
}

impl Settings {
    /// How many sessions stay open.
    pub(super) fn keep(&self) -> usize {
        if self.size == 0 { UNLIMITED } else { self.size }
    }

    /// How many sessions may be open at once.
    pub(super) fn limit(&self) -> usize {
        let beyond = self.overflow.unwrap_or(UNLIMITED);
        self.keep().saturating_add(beyond).min(UNLIMITED)
    }
}
