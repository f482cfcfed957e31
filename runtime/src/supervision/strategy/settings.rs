//! What a user chooses for a supervisor: strategy, limit, back-off, and how each child restarts.

use std::time::Duration;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Which children are restarted when one fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Strategy {
    /// That one.
    OneForOne,
    /// All: they can't go on without one another.
    OneForAll,
    /// That one and those specified after it: each builds on those before it.
    RestForOne,
}

/// Whether a child is restarted when it ends (SV-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// Unless it ended normally.
    Transient,
    /// Never.
    Temporary,
}

/// How many failures a supervisor answers before it gives up (SV-2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intensity {
    /// At most so many restarts; 5 unless told. With 0 the first failure escalates.
    pub max: u32,
    /// In any span of this length; 60 s unless told.
    pub within: Duration,
}

impl Default for Intensity {
    fn default() -> Self {
        Intensity { max: 5, within: Duration::from_secs(60) }
    }
}

/// How long to wait before a restart (SV-7): `first * factor^n` for the n-th failure in a row,
/// at most `max`, shortened by a random part of up to `jitter` so that children that failed
/// together don't come back in step.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Backoff {
    /// Before the first restart; 100 ms unless told.
    pub first: Duration,
    /// The longest delay; 10 s unless told.
    pub max: Duration,
    /// The growth from one to the next; 2 unless told. Less than 1 counts as 1.
    pub factor: f64,
    /// The part of a delay that chance may take away, from 0 to 1; 0.2 unless told.
    pub jitter: f64,
    /// A child that was up for so long is healthy: its next failure is a first one. 60 s unless
    /// told.
    pub reset_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_millis(100),
            max: Duration::from_secs(10),
            factor: 2.0,
            jitter: 0.2,
            reset_after: Duration::from_secs(60),
        }
    }
}

impl Backoff {
    /// No wait at all.
    pub const NONE: Backoff = Backoff {
        first: Duration::ZERO,
        max: Duration::ZERO,
        factor: 1.0,
        jitter: 0.0,
        reset_after: Duration::ZERO,
    };

    /// The wait before a restart when `before` failures in a row came before this one.
    pub(super) fn delay(&self, before: u32, rng: &mut dyn Rng) -> Duration {
        // A NaN of the user's is harmless: of it and 1, `max` gives 1, and no Duration is made of it.
        let exponent = i32::try_from(before).unwrap_or(i32::MAX);
        let growth = self.factor.max(1.0).powi(exponent).min(1e18);
        let kept = 1.0 - self.jitter.clamp(0.0, 1.0) * rng.random::<f64>();
        let full = Duration::try_from_secs_f64(self.first.as_secs_f64() * growth)
            .unwrap_or(self.max)
            .min(self.max);
        Duration::try_from_secs_f64(full.as_secs_f64() * kept).unwrap_or(full).min(full)
    }
}

/// What a user chooses for a supervisor: strategy, limit and back-off.
///
/// ```
/// # use std::time::Duration;
/// # use footlight_runtime::supervision::strategy::{OneForOne, RestForOne};
/// let patient = OneForOne::new().at_most(20, Duration::from_secs(60));
/// let usual = RestForOne::new(); // 5 restarts in 60 s
/// # assert_eq!(patient.intensity.max, 20);
/// # assert_eq!(usual.intensity.max, 5);
/// ```
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Supervision {
    /// Which children are restarted together.
    pub strategy: Strategy,
    /// When to give up.
    pub intensity: Intensity,
    /// How long to wait before each restart.
    pub backoff: Backoff,
    /// Whether the supervisor lives on when no child is left, so that one can be added; without, it
    /// ends then. Not unless told.
    pub stays: bool,
}

impl Supervision {
    /// A strategy with the usual limit and back-off.
    pub fn new(strategy: Strategy) -> Self {
        Supervision {
            strategy,
            intensity: Intensity::default(),
            backoff: Backoff::default(),
            stays: false,
        }
    }

    /// Gives up after more than `max` restarts in a span of `within`.
    pub fn at_most(mut self, max: u32, within: Duration) -> Self {
        self.intensity = Intensity { max, within };
        self
    }

    /// Waits before restarts as `backoff` says.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Lives on when no child is left.
    pub fn stays(mut self) -> Self {
        self.stays = true;
        self
    }
}

macro_rules! strategies {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl $name {
            /// This strategy, with 5 restarts in 60 s and the usual back-off.
            #[expect(clippy::new_ret_no_self, reason = "the strategies differ in a value, not a type")]
            pub fn new() -> Supervision {
                Supervision::new(Strategy::$name)
            }
        }
    )*};
}

strategies! {
    /// Restarts the child that failed.
    OneForOne,
    /// Restarts all children when one fails.
    OneForAll,
    /// Restarts the child that failed and those specified after it.
    RestForOne,
}
