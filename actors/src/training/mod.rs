//! Training: the job, its trainer and its workers.
//!
//! ```text
//! TrainingJob ── submit ──► Trainer ── spawns ──► ParameterServer (shards)
//!     ▲                        │  └── spawns ──► DataLoader
//!     └── JobEvents ───────────┤  └── supervises ► Worker …
//!                              └── evaluates
//! Worker:  DataLoader ── slot ──► gradient ── push ──► shards ── next version ──► Worker
//! ```
//!
//! * [`job`]: what a user describes; `running` and `event`: what comes back; [`shown`]: the same for people.
//! * [`trainer`]: the actor that holds a job together.
//! * [`worker`]: the actor that computes slots.
//! * [`shards`]: where the parameters' shards are, also when one is lost.
//! * [`residuals`]: what int8 has rounded off gradients, and how it gets to the next step.
//! * [`weights`]: pulling and setting a model's parameters.

mod crew;
mod cuts;
mod event;
mod feed;
pub mod job;
mod keeper;
mod log;
mod parts;
pub mod residuals;
mod running;
mod saver;
mod seats;
pub mod shards;
pub mod shown;
pub mod trainer;
pub mod weights;
pub mod worker;

pub use event::{JobEvent, TrainingReport};
pub use job::{JobSpec, TrainingJob};
pub use running::RunningJob;
pub use trainer::Trainer;
pub use worker::Worker;
