//! The time of day.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// Tells the time of day: for people, reports and the validity of certificates. Protocols measure
/// time with tokio's `Instant` instead, which never jumps.
pub trait WallClock: Send + Sync + fmt::Debug {
    /// Microseconds since 1970-01-01 00:00 UTC.
    fn now_unix_micros(&self) -> u64;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemWallClock;

impl WallClock for SystemWallClock {
    /// A clock that is set before 1970 reads 0.
    fn now_unix_micros(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}
