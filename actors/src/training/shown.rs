//! A job's events, for people.

use super::event::JobEvent;
use crate::report::progress::{Progress, Tick};

/// Shows a job's events on standard error.
#[derive(Debug)]
pub struct Shown {
    epochs: u64,
    progress: Option<Progress>,
}

impl Shown {
    /// Shows a job of so many epochs.
    pub fn new(epochs: u64) -> Self {
        Shown { epochs, progress: None }
    }

    /// Shows one event.
    pub fn event(&mut self, event: &JobEvent) {
        if let JobEvent::Started { steps_per_epoch, .. } = event {
            self.progress = Some(Progress::new(self.epochs, u64::from(*steps_per_epoch)));
        }
        let Some(progress) = &mut self.progress else { return };
        match event {
            JobEvent::Step { steps, samples, loss, skipped, live_nodes, nodes, .. } => {
                if *skipped {
                    progress.note(&format!(
                        "step {steps} is left out: its gradient is not finite (NaN or infinity)"
                    ));
                }
                progress.update(&Tick {
                    steps: *steps,
                    loss: *loss,
                    samples: *samples,
                    live_nodes: *live_nodes as usize,
                    nodes: *nodes as usize,
                });
            }
            JobEvent::WorkerUp { worker, node, starts, .. } if *starts > 0 => {
                progress.note(&format!("{worker} is started again, on node {node}"));
            }
            JobEvent::WorkerLost { worker, node, why } => {
                progress.note(&format!("{worker} on node {node} is gone: {why}"));
            }
            JobEvent::LoaderLost { node, why } => {
                progress.note(&format!("the data loader on node {node} is gone: {why}"));
            }
            JobEvent::ShardLost { shard, node, why } => {
                progress.note(&format!("shard {shard} lost on node {node}: {why}"));
            }
            JobEvent::ShardUp { shard, node } => {
                progress.note(&format!("shard {shard} goes on on node {node}"));
            }
            JobEvent::BackupUp { shard, node } => {
                progress.note(&format!("shard {shard} has a backup on node {node}"));
            }
            JobEvent::LoaderUp { node } => {
                progress.note(&format!("a data loader is started again, on node {node}"));
            }
            JobEvent::Resumed { trainer } => {
                progress.note(&format!("the job goes on with its trainer on node {trainer}"));
            }
            JobEvent::FromCheckpoint { steps, .. } => {
                progress.note(&format!("the job goes on from its checkpoint after step {steps}"));
            }
            JobEvent::Saved { steps, bytes, .. } => {
                let size = indicatif::HumanBytes(*bytes);
                progress.note(&format!("the state after step {steps} is saved: {size}"));
            }
            JobEvent::ResidualLost { slot, step } => {
                progress.note(&format!(
                    "what int8 had rounded off slot {slot} before step {step} is lost with the two nodes that had it"
                ));
            }
            JobEvent::NotSaved { steps, why } => {
                progress.note(&format!("the state after step {steps} is not saved: {why}"));
            }
            JobEvent::Evaluated { accuracy, loss, .. } => progress.note(&match accuracy {
                Some(accuracy) => {
                    format!("  test accuracy {:.2} %, loss {loss:.4}", accuracy * 100.0)
                }
                None => format!("  test loss {loss:.4}"),
            }),
            _ => {}
        }
    }

    /// Shows a line of the caller's.
    pub fn note(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.note(text),
            None => eprintln!("{text}"),
        }
    }
}
