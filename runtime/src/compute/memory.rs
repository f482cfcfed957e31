//! Where libtorch's memory on the CPU comes from: the C library's allocator.

use std::sync::Once;

/// The largest block that is not mapped for itself, and unmapped when it is freed: as large as glibc takes it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM: libc::c_int = 32 << 20;
/// So much that is free at an arena's end goes back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIMMED_FROM: libc::c_int = 256 << 20;
/// Who sets one of these knows better.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SETTINGS: [&str; 4] =
    ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"];

/// Has glibc keep what libtorch frees for what it takes next.
///
/// A step frees all that it took, and the next one takes it again. By default glibc returns most of that to the system
/// in between, and the kernel clears each page once more: of LeNet-5's training on two cores that was a quarter of the
/// time. The price is that a process keeps up to 256 MiB of what it has freed, for each thread that computes.
pub(super) fn keep_freed() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        if SETTINGS.iter().all(|name| std::env::var_os(name).is_none()) {
            // SAFETY: both are settings that `mallopt` knows, and it may be called at any time from any thread.
            let is_set = unsafe {
                libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM) == 1
                    && libc::mallopt(libc::M_TRIM_THRESHOLD, TRIMMED_FROM) == 1
            };
            if !is_set {
                tracing::debug!("the allocator does not keep what libtorch frees");
            }
        }
    });
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::compute::{ComputeThread, Device};

    /// Page faults of this thread that no disk was needed for.
    fn faults() -> i64 {
        // SAFETY: all zeros is a value of this type, and `getrusage` writes to nothing else.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage.ru_minflt
        }
    }

    #[tokio::test]
    async fn what_a_step_frees_serves_the_next_one() {
        if SETTINGS.iter().any(|name| std::env::var_os(name).is_some()) {
            eprintln!("the environment says how memory is kept: nothing to test");
            return;
        }
        let thread = ComputeThread::spawn("compute", Device::Cpu, |_| Ok(())).await.unwrap();
        let step = || {
            let of_a_mib = |_| Tensor::ones([1 << 18], (Kind::Float, tch::Device::Cpu));
            drop((0..20).map(of_a_mib).collect::<Vec<_>>());
        };
        let found = thread.run(move |()| {
            step();
            let before = faults();
            (0..50).for_each(|_| step());
            Ok(faults() - before)
        });
        // One step has 5,120 pages.
        let found = found.await.unwrap();
        assert!(found < 5_120, "{found} page faults");
    }
}
