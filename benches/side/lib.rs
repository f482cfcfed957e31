//! What is measured with Footlight, and the same on bare quinn and on ractor.
//!
//! * The program `footlight-bench` is one side of a measurement between two processes; `cargo xtask
//!   peers` runs it in turn with the peers. What it does is in `footlight_side`, `step` (a step of the
//!   parameter server), `local` (within one process), and for the limits `raw`, `raw_behind`, `raw_step`
//!   (bare quinn) and `raw_memory` (the other process's memory).
//! * `cargo bench` measures the same and more with criterion, in `benches/criterion/`; `pair` gives it
//!   an other side in a process of its own.

pub mod footlight_side;
pub mod local;
mod measure;
pub mod pair;
pub mod raw;
pub mod raw_behind;
pub mod raw_memory;
mod raw_step;
mod step;

use std::io::Read;

use clap::ValueEnum;

/// Of all that links this. glibc's would give the memory of each packet that has come back to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is measured; docs/performance.md says what each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are those of the report")]
#[value(rename_all = "snake_case")]
pub enum Work {
    CallRtt,
    CallsPerSecond,
    CastsPerSecond,
    #[value(name = "tensor_put_100mib")]
    TensorPut100mib,
    TensorPutSameHost,
    CallBehindBulkP99,
    #[value(name = "parameter_step_f32")]
    ParameterStepF32,
    #[value(name = "parameter_step_bf16")]
    ParameterStepBf16,
    ParameterStepReplicated,
    ParameterStepSameHost,
    #[value(name = "peak_memory_256mib")]
    PeakMemory256mib,
    LocalCall,
}

/// What a side of a measurement came to.
#[derive(Debug)]
pub enum Outcome {
    /// Rank 1 has measured.
    Value(f64),
    /// Rank 0 has served.
    Served,
    /// This participant does not do that work.
    Cannot,
}

/// Waits until whoever started this process closes its stdin.
async fn until_stdin_ends() {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = tell.send(());
    });
    let _ = told.await;
}

fn ready() {
    println!("ready");
}
