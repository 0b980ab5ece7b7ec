//! The time of day.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, as replies and model cards tell the time.
pub fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
