//! How far apart workers may be: what parameters a gradient may come from, and when it is applied.
//!
//! ```text
//! bulk synchronous        worker 1  ├─ 0 ─┤├─ 1 ─┤├─ 2 ─┤       all of a step compute from the version before it,
//!                         worker 2  ├── 0 ──┤├── 1 ──┤          and wait for the slowest
//!
//! bounded staleness 1     worker 1  ├─ 0 ─┤├─ 1 ─┤├─ 2 ─┤       a step may begin when all but the last one
//!                         worker 2  ├──── 0 ────┤├── 1          before it are applied
//!
//! asynchronous            worker 1  ├─ 0 ─┤├─ 0 ─┤├─ 1 ─┤       each slot is applied when it comes,
//!                         worker 2  ├──── 1 ────┤├── 2          and nobody waits
//! ```
//!
//! Whatever is chosen, each slot's gradient is applied exactly once to each parameter, whoever dies. Only
//! bulk-synchronous training gives the same bits each time: in the others it depends on time which parameters a
//! gradient comes from.
//!
//! Sources: Valiant, *A bridging model for parallel computation* (1990); Ho et al., *More effective distributed ML via a
//! stale synchronous parallel parameter server* (NIPS'13), Wei et al., *Managed communication and consistency for fast
//! data-parallel iterative analytics* (SoCC'15, Bösen); Dean et al., *Large scale distributed deep networks* (NIPS'12,
//! Downpour SGD).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest staleness: each step of it takes room for all slots' gradients at the shards.
pub const MAX_STALENESS: u32 = 64;

/// How many steps an asynchronous job is ahead of a slot that nobody has finished, at most: then it waits for whoever
/// has it to finish, or to be declared lost.
pub const ASYNC_WINDOW: u64 = 256;

/// How far apart workers may be. See the [module](self).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// All slots of a step are computed from the parameters that all steps before it have led to, and are applied
    /// together. The same bits for any number of workers.
    #[default]
    BulkSynchronous,
    /// Steps are applied whole and in order, but a slot of step `t` may be computed as soon as step `t - 1 - s` is
    /// applied, from the newest parameters that there are. A worker that is slower for a while holds up nobody until
    /// it is `s` steps behind. 1 to [`MAX_STALENESS`].
    BoundedStaleness(u32),
    /// Each slot is applied when it comes, as a step of its own, and is computed from the newest parameters that there
    /// are. Nobody waits for anybody. The optimiser takes as many steps as there are slots: with Adam and its kin the
    /// learning rate should be lower by about that factor, with SGD it can stay.
    Asynchronous,
}

/// A consistency that there is not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConsistencyError {
    /// Out of range.
    #[error(
        "a staleness of {0} steps: choose 1 to {MAX_STALENESS}, or the bulk-synchronous mode for none"
    )]
    Staleness(u32),
    /// Not one of the names.
    #[error("`{0}` is no consistency: choose `bsp`, `stale:STEPS` or `async`")]
    Unknown(String),
}

impl Consistency {
    /// # Errors
    /// A staleness out of range.
    pub fn validate(self) -> Result<(), ConsistencyError> {
        match self {
            Self::BoundedStaleness(steps) if !(1..=MAX_STALENESS).contains(&steps) => {
                Err(ConsistencyError::Staleness(steps))
            }
            _ => Ok(()),
        }
    }

    /// Every gradient comes from exactly the parameters of its step.
    pub fn is_exact(self) -> bool {
        self == Self::BulkSynchronous
    }

    /// Each slot is a step of the optimiser.
    pub fn is_by_slot(self) -> bool {
        self == Self::Asynchronous
    }

    /// The oldest version that a slot of `step` may be computed from.
    pub fn oldest(self, step: u64) -> u64 {
        match self {
            Self::BulkSynchronous => step,
            Self::BoundedStaleness(steps) => step.saturating_sub(steps.into()),
            Self::Asynchronous => 0,
        }
    }

    /// How many steps past a chunk's version a gradient for it may be.
    pub fn window(self) -> u64 {
        match self {
            Self::BulkSynchronous => 0,
            Self::BoundedStaleness(steps) => steps.into(),
            Self::Asynchronous => ASYNC_WINDOW - 1,
        }
    }

    /// Slots are handed out of so many steps that are not applied yet. Where workers wait for a version, that is one
    /// step more than may be computed: its data travels meanwhile.
    pub fn ahead(self) -> u64 {
        match self {
            Self::BulkSynchronous | Self::BoundedStaleness(_) => self.window() + 2,
            Self::Asynchronous => ASYNC_WINDOW,
        }
    }
}

/// `bsp`, `stale:2`, `async`.
impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BulkSynchronous => f.write_str("bsp"),
            Self::BoundedStaleness(steps) => write!(f, "stale:{steps}"),
            Self::Asynchronous => f.write_str("async"),
        }
    }
}

impl FromStr for Consistency {
    type Err = ConsistencyError;

    fn from_str(text: &str) -> Result<Self, ConsistencyError> {
        let consistency = match (text, text.strip_prefix("stale:").map(str::parse)) {
            ("bsp", _) => Self::BulkSynchronous,
            ("async", _) => Self::Asynchronous,
            (_, Some(Ok(steps))) => Self::BoundedStaleness(steps),
            _ => return Err(ConsistencyError::Unknown(text.to_owned())),
        };
        consistency.validate().map(|()| consistency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_as_it_is_written_and_nothing_else() {
        for consistency in [
            Consistency::BulkSynchronous,
            Consistency::BoundedStaleness(1),
            Consistency::BoundedStaleness(MAX_STALENESS),
            Consistency::Asynchronous,
        ] {
            assert_eq!(consistency.to_string().parse(), Ok(consistency));
        }
        for text in ["", "ssp", "stale", "stale:", "stale:0", "stale:65", "stale:-1", "BSP"] {
            assert!(text.parse::<Consistency>().is_err(), "{text}");
        }
    }

    /// Otherwise a shard would refuse what a worker may compute.
    #[test]
    fn what_may_be_computed_may_be_pushed() {
        for consistency in [
            Consistency::BulkSynchronous,
            Consistency::BoundedStaleness(3),
            Consistency::Asynchronous,
        ] {
            let committed = 1000;
            let handed_out = committed + consistency.ahead() - 1;
            let may_compute = |step: &u64| consistency.oldest(*step) <= committed;
            let last = (committed..=handed_out).rfind(may_compute).unwrap();
            assert_eq!(last - committed, consistency.window(), "{consistency}");
        }
    }
}
