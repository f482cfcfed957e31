//! The account of one node's resources: what is reserved, for whom, and what is left.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use footlight_runtime::Claim;

use super::{DoesNotFit, Gpu, Needs, Resources};

/// One GPU, or a part of one, that an actor has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedGpu {
    /// Its number as CUDA counts in the actor's process: the device to open.
    pub index: u32,
    /// Its model.
    pub name: String,
    /// Its memory as a whole, in bytes; 0 if nobody knows.
    pub memory_bytes: u64,
    /// How much of it the actor has, in thousandths.
    pub share: u16,
}

/// The account. A state machine: asks nobody, tells nobody.
#[derive(Debug)]
pub(crate) struct Pool {
    all: Resources,
    free_cpus: u32,
    /// What is left of each GPU, in the order of `all`.
    free_shares: Vec<u16>,
    free_custom: BTreeMap<String, u64>,
}

/// What was taken out of the account at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    cpus: u32,
    gpus: Vec<GrantedGpu>,
    custom: BTreeMap<String, u64>,
}

impl Pool {
    pub(crate) fn new(all: Resources) -> Self {
        Pool {
            free_cpus: all.cpus,
            free_shares: all.gpus.iter().map(|gpu| gpu.share).collect(),
            free_custom: all.custom.clone(),
            all,
        }
    }

    pub(crate) fn free(&self) -> Resources {
        let gpus = self.all.gpus.iter().zip(&self.free_shares);
        Resources {
            cpus: self.free_cpus,
            gpus: gpus
                .filter(|&(_, &share)| share > 0)
                .map(|(gpu, &share)| Gpu { share, ..gpu.clone() })
                .collect(),
            custom: self.free_custom.clone(),
        }
    }

    /// Takes what is asked for, all or nothing.
    ///
    /// Of the GPUs that fit, those with the least left come first, then those with the least memory,
    /// then those with the smallest index: parts fill up a GPU that is shared already, and large
    /// ones stay for those who need them.
    pub(crate) fn reserve(&mut self, needs: &Needs) -> Result<Taken, DoesNotFit> {
        let free = self.free();
        if !needs.fit(&free) {
            return Err(DoesNotFit { asked: needs.clone(), free });
        }
        let mut fitting: Vec<&Gpu> = free.gpus.iter().filter(|gpu| needs.suits(gpu)).collect();
        fitting.sort_by_key(|gpu| (gpu.share, gpu.memory_bytes, gpu.index));
        let gpus: Vec<_> = fitting
            .into_iter()
            .take(needs.gpu_count())
            .map(|gpu| GrantedGpu {
                index: gpu.index,
                name: gpu.name.clone(),
                memory_bytes: gpu.memory_bytes,
                share: needs.share(),
            })
            .collect();
        let custom = needs.custom_counts().map(|(name, count)| (name.clone(), count)).collect();
        let taken = Taken { cpus: needs.cpu_count(), gpus, custom };
        self.free_cpus -= taken.cpus;
        self.change_shares(&taken, |free, share| free - share);
        for (name, count) in &taken.custom {
            if let Some(free) = self.free_custom.get_mut(name) {
                *free -= count;
            }
        }
        Ok(taken)
    }

    /// Puts back what was taken.
    pub(crate) fn put_back(&mut self, taken: &Taken) {
        self.free_cpus += taken.cpus;
        self.change_shares(taken, |free, share| free + share);
        for (name, count) in &taken.custom {
            if let Some(free) = self.free_custom.get_mut(name) {
                *free += count;
            }
        }
    }

    fn change_shares(&mut self, taken: &Taken, change: fn(u16, u16) -> u16) {
        for gpu in &taken.gpus {
            let at = self.all.gpus.iter().position(|known| known.index == gpu.index);
            if let Some(free) = at.and_then(|at| self.free_shares.get_mut(at)) {
                *free = change(*free, gpu.share);
            }
        }
    }
}

/// Told what is left whenever that has changed.
type Tell = Box<dyn Fn(Resources) + Send + Sync>;

/// The account as the actors of a node share it.
pub(crate) struct Shared {
    pool: Mutex<Pool>,
    tell: OnceLock<Tell>,
}

impl Shared {
    pub(crate) fn new(all: Resources) -> Arc<Self> {
        Arc::new(Shared { pool: Mutex::new(Pool::new(all)), tell: OnceLock::new() })
    }

    /// From now on `tell` learns of each change.
    pub(crate) fn on_change(&self, tell: impl Fn(Resources) + Send + Sync + 'static) {
        let _ = self.tell.set(Box::new(tell));
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Reserves what an actor needs, until [`Granted`] is given back or dropped.
    pub(crate) fn reserve(self: &Arc<Self>, needs: &Needs) -> Result<Arc<Granted>, DoesNotFit> {
        let taken = self.lock().reserve(needs)?;
        let counts = !needs.is_nothing();
        if counts {
            self.changed();
        }
        let pool = self.clone();
        Ok(Arc::new(Granted { taken, pool, given_back: AtomicBool::new(!counts) }))
    }

    /// Under the lock, so that of two changes the later is told later.
    fn changed(&self) {
        let pool = self.lock();
        if let Some(tell) = self.tell.get() {
            tell(pool.free());
        }
    }
}

/// What was reserved for one actor. It has it until it ends.
pub struct Granted {
    taken: Taken,
    pool: Arc<Shared>,
    given_back: AtomicBool,
}

impl Granted {
    /// The processor cores that it may use.
    pub fn cpus(&self) -> u32 {
        self.taken.cpus
    }

    /// The GPUs that it may use, by index.
    pub fn gpus(&self) -> &[GrantedGpu] {
        &self.taken.gpus
    }

    /// How much it has of what the node's owner counts.
    pub fn custom(&self, name: &str) -> u64 {
        self.taken.custom.get(name).copied().unwrap_or(0)
    }
}

impl Claim for Granted {
    fn give_back(&self) {
        if !self.given_back.swap(true, Ordering::AcqRel) {
            self.pool.lock().put_back(&self.taken);
            self.pool.changed();
        }
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Granted").field(&self.taken).finish()
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
