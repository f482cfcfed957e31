//! What a node is given from outside, so that it can be simulated: randomness, the time of day,
//! and tasks.
//!
//! Nothing in a node asks the process for these. A simulation hands every node one seed, a clock
//! of its own and a runtime whose time stands still until all tasks wait; two runs of one seed are
//! then the same run. Time within protocols is tokio's `Instant`, which such a runtime drives; the
//! time of day is for people and certificates only, never for a decision.

mod clock;
mod seeds;
mod spawner;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

pub use clock::{SystemWallClock, WallClock};
pub use seeds::Seeds;
pub use spawner::{Spawner, Unfinished};

/// No deadline is further away than this: 30 years.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The moment when `patience` from now is over. Any patience will do, [`Duration::MAX`] too: one of
/// more than 30 years counts as 30 years, where `Instant::now() + patience` may panic.
pub fn deadline_after(patience: Duration) -> Instant {
    Instant::now() + patience.min(FAR)
}

/// The outside of one node. Clones share it.
#[derive(Clone, Debug)]
pub struct Env {
    /// Where every random number of the node comes from.
    pub seeds: Seeds,
    /// The time of day.
    pub wall_clock: Arc<dyn WallClock>,
    /// The node's tasks.
    pub spawner: Spawner,
}

/// The process can't give a node what it needs.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum EnvError {
    /// There is no tokio runtime on this thread.
    #[error(
        "a node needs a tokio runtime: call this from within #[tokio::main] or Runtime::block_on"
    )]
    NoRuntime(#[source] tokio::runtime::TryCurrentError),
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    NoRandomness(String),
}

impl Env {
    /// The real outside: random seeds, the system's clock, tasks on the current tokio runtime.
    ///
    /// # Errors
    /// [`EnvError::NoRuntime`] outside a tokio runtime; [`EnvError::NoRandomness`] if the operating
    /// system has none.
    pub fn system() -> Result<Env, EnvError> {
        Ok(Env {
            seeds: Seeds::random()?,
            wall_clock: Arc::new(SystemWallClock),
            spawner: Spawner::current()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_runtime_there_is_an_error_and_no_panic() {
        let error = Env::system().unwrap_err();
        assert!(error.to_string().starts_with("a node needs a tokio runtime"), "{error}");
    }

    #[test]
    fn a_deadline_may_be_as_far_away_as_can_be_said() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert!(deadline_after(second) >= now + second);
        assert!(deadline_after(Duration::MAX) >= now + FAR);
    }

    #[tokio::test]
    async fn inside_a_runtime_there_is_everything_a_node_needs() {
        let env = Env::system().unwrap();
        assert!(env.wall_clock.now_unix_micros() > 1_700_000_000_000_000);
        assert_eq!(env.spawner.spawn(async {}).await.ok(), Some(()));
    }
}
