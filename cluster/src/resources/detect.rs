//! What this machine has, and what of it this process sees.

use std::collections::BTreeMap;

use super::{Gpu, Resources};

/// What the node's owner has said; the rest is looked up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) cpus: Option<u32>,
    pub(crate) gpus: Option<u32>,
    pub(crate) custom: BTreeMap<String, u64>,
}

/// What a node has: as told, else what the process may use of the machine. Asking the driver for
/// its GPUs may take a while.
pub(crate) fn detect(told: Told) -> Resources {
    let cpus = told.cpus.unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(cores).unwrap_or(u32::MAX)
    });
    let gpus = match told.gpus {
        Some(0) => Vec::new(),
        Some(count) => exactly(count, found_gpus()),
        None => found_gpus(),
    };
    Resources { cpus, gpus, custom: told.custom }
}

/// So many GPUs: the first of those that were found, and if there are fewer, some of which nothing
/// is known but their number.
fn exactly(count: u32, mut found: Vec<Gpu>) -> Vec<Gpu> {
    found.truncate(count as usize);
    let known = found.len() as u32;
    found.extend((known..count).map(|index| Gpu::new(index, "told, not found", 0)));
    found
}

/// Which GPU an entry of `CUDA_VISIBLE_DEVICES` means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Visible {
    Number(u32),
    /// `GPU-…` or `MIG-…`, of which a beginning is enough.
    Uuid(String),
}

/// The GPUs that CUDA shows to this process, in the order in which it counts them. As CUDA does, it
/// takes nothing behind an entry that makes no sense. No list means all.
fn visible(list: Option<&str>, count: u32) -> Vec<Visible> {
    let Some(list) = list else { return (0..count).map(Visible::Number).collect() };
    let mut seen = Vec::new();
    for entry in list.split(',').map(str::trim) {
        let entry = match entry.parse::<u32>() {
            Ok(number) if number < count => Visible::Number(number),
            Err(_) if entry.starts_with("GPU-") || entry.starts_with("MIG-") => {
                Visible::Uuid(entry.to_owned())
            }
            _ => break,
        };
        // Twice the same is a mistake that hides all.
        if seen.contains(&entry) {
            return Vec::new();
        }
        seen.push(entry);
    }
    seen
}

#[cfg(target_os = "linux")]
fn found_gpus() -> Vec<Gpu> {
    use nvml_wrapper::{Device, Nvml, error::NvmlError};

    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            tracing::debug!(%error, "no NVIDIA driver answers: this node tells of no GPU");
            return Vec::new();
        }
    };
    let look = || -> Result<Vec<Gpu>, NvmlError> {
        let count = nvml.device_count()?;
        let list = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let by_uuid = |wanted: &str| -> Result<Device<'_>, NvmlError> {
            for number in 0..count {
                let device = nvml.device_by_index(number)?;
                if device.uuid()?.starts_with(wanted) {
                    return Ok(device);
                }
            }
            nvml.device_by_uuid(wanted)
        };
        let mut gpus = Vec::new();
        for (index, entry) in visible(list.as_deref(), count).iter().enumerate() {
            let device = match entry {
                Visible::Number(number) => nvml.device_by_index(*number),
                Visible::Uuid(uuid) => by_uuid(uuid),
            };
            let device = match device {
                Ok(device) => device,
                Err(error) => {
                    tracing::warn!(?entry, %error, "CUDA_VISIBLE_DEVICES names no GPU here");
                    break;
                }
            };
            let name = device.name()?;
            gpus.push(Gpu::new(index as u32, name, device.memory_info()?.total));
        }
        Ok(gpus)
    };
    look().unwrap_or_else(|error| {
        tracing::warn!(%error, "the NVIDIA driver did not tell its GPUs: none are counted");
        Vec::new()
    })
}

#[cfg(not(target_os = "linux"))]
fn found_gpus() -> Vec<Gpu> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_counts_more_than_what_is_found() {
        let custom = BTreeMap::from([("licence".to_owned(), 3)]);
        let told = Told { cpus: Some(3), gpus: Some(0), custom: custom.clone() };
        assert_eq!(detect(told), Resources { cpus: 3, gpus: Vec::new(), custom });
        assert!(detect(Told { gpus: Some(0), ..Told::default() }).cpus >= 1);
        let found = vec![Gpu::new(0, "a", 1), Gpu::new(1, "b", 2)];
        assert_eq!(exactly(1, found.clone()), found[..1]);
        let three = exactly(3, found.clone());
        assert_eq!(three[..2], found);
        assert_eq!(three[2], Gpu::new(2, "told, not found", 0));
    }

    #[test]
    fn cuda_visible_devices_is_read_as_cuda_reads_it() {
        let numbers = |list: Option<&str>| visible(list, 4);
        let number = Visible::Number;
        assert_eq!(numbers(None), [0, 1, 2, 3].map(number));
        assert_eq!(numbers(Some("2, 0")), [2, 0].map(number));
        assert_eq!(numbers(Some("")), []);
        assert_eq!(numbers(Some("-1")), []);
        assert_eq!(numbers(Some("1,9,2")), [1].map(number));
        assert_eq!(numbers(Some("1,1")), []);
        assert_eq!(numbers(Some("GPU-8f,1")), [Visible::Uuid("GPU-8f".into()), number(1)]);
    }

    #[test]
    fn looking_for_gpus_does_not_fail_where_there_are_none() {
        let found = detect(Told::default());
        for (index, gpu) in found.gpus.iter().enumerate() {
            assert_eq!((gpu.index as usize, gpu.share), (index, 1000));
            assert!(gpu.memory_bytes > 0);
        }
    }
}
