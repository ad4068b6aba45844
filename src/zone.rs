//! The host's time zone.
//!
//! Nothing that decides about a hold depends on it; but score.distlock 0.2.5
//! reads and writes naive timestamps in the zone of the host it runs on.

use chrono::{Local, Offset};

/// The host's present offset from UTC, in seconds, east positive.
#[must_use]
pub fn offset() -> f64 {
    f64::from(Local::now().offset().fix().local_minus_utc())
}
