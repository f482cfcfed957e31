//! What a node has to compute with, and who has reserved what of it.
//!
//! * [`Resources`]: processors, GPUs and whatever else a node has, or has left.
//! * [`Needs`]: what an actor asks for. [`Granted`]: what it got.
//! * `pool`: the account that a node keeps of its own. Only the node that hosts an actor decides;
//!   what the others know of its free resources is a hint, a moment old.
//! * `detect`: what this machine has.
//!
//! Resources are counted, not enforced: an actor that asked for one processor can use them all.

mod detect;
mod needs;
mod pool;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

pub(crate) use detect::{Told, detect};
pub use needs::{DoesNotFit, Needs};
pub(crate) use pool::Shared;
pub use pool::{Granted, GrantedGpu};

/// Parts of a GPU: an actor has all, or a part that it shares with others.
pub(crate) const WHOLE: u16 = 1000;

/// Processors, GPUs and whatever else a node has, or has left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor cores.
    pub cpus: u32,
    /// GPUs, by index.
    pub gpus: Vec<Gpu>,
    /// What the node's owner counts: licences, slots, anything; by name.
    pub custom: BTreeMap<String, u64>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its number on its node, as CUDA counts in the node's process.
    pub index: u32,
    /// Its model.
    pub name: String,
    /// Its memory, in bytes; 0 if nobody knows.
    pub memory_bytes: u64,
    /// How much of it there is, in thousandths: 1000 is all of it. Less among the free resources
    /// of a node says that some actors share it and so much is left.
    pub share: u16,
}

impl Gpu {
    /// A whole GPU.
    pub fn new(index: u32, name: impl Into<String>, memory_bytes: u64) -> Self {
        Gpu { index, name: name.into(), memory_bytes, share: WHOLE }
    }
}

impl Resources {
    /// So many processor cores, and nothing else.
    pub fn cpus(cpus: u32) -> Self {
        Resources { cpus, ..Self::default() }
    }

    /// One more GPU.
    pub fn gpu(mut self, gpu: Gpu) -> Self {
        self.gpus.push(gpu);
        self.gpus.sort_by_key(|gpu| gpu.index);
        self.gpus.dedup_by_key(|gpu| gpu.index);
        self
    }

    /// So much of something of one's own.
    pub fn custom(mut self, name: impl Into<String>, count: u64) -> Self {
        self.custom.insert(name.into(), count);
        self
    }
}

/// `1 CPU`, `3 CPUs`.
fn counted(f: &mut fmt::Formatter<'_>, count: u64, what: &str) -> fmt::Result {
    write!(f, "{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

impl fmt::Display for Resources {
    /// `4 CPUs, 2 GPUs (0: H200 140.4 GiB; 1: H200 140.4 GiB, 50 %), 3 licence`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        counted(f, self.cpus.into(), "CPU")?;
        f.write_str(", ")?;
        counted(f, self.gpus.len() as u64, "GPU")?;
        for (number, gpu) in self.gpus.iter().enumerate() {
            let before = if number == 0 { " (" } else { "; " };
            write!(f, "{before}{}: {}", gpu.index, gpu.name)?;
            if gpu.memory_bytes > 0 {
                write!(f, " {:.1} GiB", gibibytes(gpu.memory_bytes))?;
            }
            if gpu.share < WHOLE {
                write!(f, ", {:.0} %", f64::from(gpu.share) / 10.0)?;
            }
        }
        if !self.gpus.is_empty() {
            f.write_str(")")?;
        }
        self.custom.iter().try_for_each(|(name, count)| write!(f, ", {count} {name}"))
    }
}
