//! What is started again when an actor ends: [`strategy`] decides, without I/O; [`supervisor`] does
//! what it says.

pub mod child;
mod run;
pub mod strategy;
pub mod supervisor;

pub use child::{Attempt, ChildError, ChildEvent, ChildSpec, STOP_PATIENCE};
pub use strategy::{
    Action, Backoff, Ending, Intensity, OneForAll, OneForOne, RestForOne, Restart, Restarts,
    Strategy, Supervision, TooManyRestarts,
};
pub use supervisor::{Places, Supervisor};
