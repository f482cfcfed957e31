//! What is started again when an actor ends: [`strategy`] decides, without I/O; [`supervisor`] does
//! what it says.

pub mod child;
pub mod strategy;
pub mod supervisor;

pub use child::{ChildEvent, ChildSpec};
pub use strategy::{
    Action, Backoff, Intensity, OneForAll, OneForOne, RestForOne, Restart, Restarts, Strategy,
    Supervision, TooManyRestarts,
};
pub use supervisor::Supervisor;
