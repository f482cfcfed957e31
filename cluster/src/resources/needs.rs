//! What an actor asks of its node.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Gpu, Resources, WHOLE, counted, gibibytes};

/// What an actor needs of its node; reserved for it before it starts and until it has ended.
///
/// ```
/// # use footlight_cluster::Needs;
/// let trains = Needs::gpus(1).with_gpu_memory(24 << 30).with_cpus(4);
/// let serves = Needs::gpus(1).shared(0.25).with("licence", 1);
/// # assert_eq!(trains.to_string(), "4 CPUs, 1 GPU with at least 24.0 GiB");
/// # assert_eq!(serves.to_string(), "25 % of 1 GPU, 1 licence");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    cpus: u32,
    gpus: u32,
    gpu_memory: u64,
    /// Thousandths of each GPU.
    gpu_share: u16,
    custom: BTreeMap<String, u64>,
}

impl Default for Needs {
    fn default() -> Self {
        Needs { cpus: 0, gpus: 0, gpu_memory: 0, gpu_share: WHOLE, custom: BTreeMap::new() }
    }
}

impl Needs {
    /// Nothing: fits everywhere. The default.
    pub fn none() -> Self {
        Needs::default()
    }

    /// So many processor cores.
    pub fn cpus(count: u32) -> Self {
        Needs::none().with_cpus(count)
    }

    /// So many whole GPUs, which no other actor has at the same time.
    pub fn gpus(count: u32) -> Self {
        Needs::none().with_gpus(count)
    }

    /// So many processor cores as well.
    pub fn with_cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// So many GPUs as well.
    pub fn with_gpus(mut self, count: u32) -> Self {
        self.gpus = count;
        self
    }

    /// Each GPU has at least so much memory, in bytes: the GPU as a whole, also where it is shared.
    /// One whose memory nobody knows does not fit.
    pub fn with_gpu_memory(mut self, bytes: u64) -> Self {
        self.gpu_memory = bytes;
        self
    }

    /// Takes this part of each GPU, from 0.001 to 1, and shares it with others that ask so. What it
    /// then uses is up to the actor.
    pub fn shared(mut self, part: f64) -> Self {
        // What is no number counts as the smallest part.
        let thousandths = (part * f64::from(WHOLE)).round();
        self.gpu_share = thousandths.clamp(1.0, f64::from(WHOLE)) as u16;
        self
    }

    /// So much of what the node's owner counts (`--resource NAME=N`).
    pub fn with(mut self, name: impl Into<String>, count: u64) -> Self {
        self.custom.insert(name.into(), count);
        self
    }

    /// Whether nothing is asked for.
    pub fn is_nothing(&self) -> bool {
        self.cpus == 0 && self.gpus == 0 && self.custom.values().all(|&count| count == 0)
    }

    pub(super) fn cpu_count(&self) -> u32 {
        self.cpus
    }

    pub(super) fn gpu_count(&self) -> usize {
        self.gpus as usize
    }

    pub(super) fn custom_counts(&self) -> impl Iterator<Item = (&String, u64)> {
        self.custom.iter().map(|(name, &count)| (name, count)).filter(|&(_, count)| count > 0)
    }

    /// The part of each GPU, in thousandths.
    pub(super) fn share(&self) -> u16 {
        // It may come from another node.
        self.gpu_share.clamp(1, WHOLE)
    }

    pub(super) fn suits(&self, gpu: &Gpu) -> bool {
        gpu.share >= self.share() && gpu.memory_bytes >= self.gpu_memory
    }

    /// Whether there is as much as is asked for.
    pub fn fit(&self, free: &Resources) -> bool {
        self.cpus <= free.cpus
            && free.gpus.iter().filter(|gpu| self.suits(gpu)).count() >= self.gpu_count()
            && self
                .custom_counts()
                .all(|(name, count)| free.custom.get(name).is_some_and(|&free| free >= count))
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if self.cpus > 0 {
            counted(f, self.cpus.into(), "CPU")?;
            separator = ", ";
        }
        if self.gpus > 0 {
            f.write_str(separator)?;
            if self.share() < WHOLE {
                write!(f, "{} % of ", f64::from(self.share()) / 10.0)?;
            }
            counted(f, self.gpus.into(), "GPU")?;
            if self.gpu_memory > 0 {
                write!(f, " with at least {:.1} GiB", gibibytes(self.gpu_memory))?;
            }
            separator = ", ";
        }
        for (name, count) in self.custom_counts() {
            write!(f, "{separator}{count} {name}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

/// A node has less left than an actor asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("does not fit: asked {asked}; free {free}")]
pub struct DoesNotFit {
    /// What was asked for.
    pub asked: Needs,
    /// What the node has left.
    pub free: Resources,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_said_in_words() {
        assert_eq!(Needs::none().to_string(), "nothing");
        assert!(Needs::none().with("x", 0).is_nothing());
        let odd = Needs::gpus(2).shared(0.125).with_cpus(1);
        assert_eq!(odd.to_string(), "1 CPU, 12.5 % of 2 GPUs");
        assert_eq!(Needs::gpus(1).shared(f64::NAN).share(), 1);
        assert_eq!(Needs::gpus(1).shared(9.0).share(), WHOLE);
    }

    #[test]
    fn all_that_is_asked_for_must_be_there() {
        let free = Resources::cpus(4)
            .gpu(Gpu::new(0, "small", 8 << 30))
            .gpu(Gpu::new(1, "large", 80 << 30))
            .custom("licence", 2);
        let fits = |needs: Needs| needs.fit(&free);
        assert!(fits(Needs::none()));
        assert!(fits(Needs::cpus(4).with_gpus(2).with("licence", 2)));
        assert!(!fits(Needs::cpus(5)));
        assert!(!fits(Needs::gpus(3)));
        assert!(!fits(Needs::none().with("licence", 3)));
        assert!(!fits(Needs::none().with("other", 1)));
        assert!(fits(Needs::gpus(1).with_gpu_memory(80 << 30)));
        assert!(!fits(Needs::gpus(2).with_gpu_memory(80 << 30)));
        let told = Resources::default().gpu(Gpu::new(0, "told", 0));
        assert!(Needs::gpus(1).fit(&told));
        assert!(!Needs::gpus(1).with_gpu_memory(1).fit(&told));
    }
}
