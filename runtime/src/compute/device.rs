//! Where a computation runs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ComputeError, CudaLibrary, load_cuda};

/// A device of this machine.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number, from 0.
    Cuda(usize),
}

/// What a user asks for: `auto`, `cpu` or `cuda:N`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum DeviceChoice {
    /// A GPU if there is one, else the processor. The first GPU, or each in turn for computations that
    /// share a machine: [`DeviceChoice::resolve_nth`].
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// That GPU, and no other.
    Cuda(usize),
}

/// Text that names no device.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("`{text}` is no device: write {expected}")]
pub struct NoSuchName {
    text: String,
    expected: &'static str,
}

impl Device {
    /// The same device as tch calls it.
    pub fn to_tch(self) -> tch::Device {
        match self {
            Device::Cpu => tch::Device::Cpu,
            Device::Cuda(index) => tch::Device::Cuda(index),
        }
    }
}

impl DeviceChoice {
    /// The device that the choice means on this machine. Loads CUDA if it is installed.
    ///
    /// # Errors
    /// [`ComputeError::NoDevice`] for a GPU that isn't there.
    pub fn resolve(self) -> Result<Device, ComputeError> {
        self.resolve_nth(0)
    }

    /// The same for one of several computations that share this machine, counted from 0: `auto` gives
    /// them the GPUs in turn, as far as this process may see them.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn resolve_nth(self, nth: usize) -> Result<Device, ComputeError> {
        if self == DeviceChoice::Cpu {
            return Ok(Device::Cpu);
        }
        let library = load_cuda();
        let count = match library {
            CudaLibrary::Loaded if tch::Cuda::is_available() => {
                usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
            }
            _ => 0,
        };
        pick(self, nth, count, &library)
    }
}

fn pick(
    choice: DeviceChoice,
    nth: usize,
    count: usize,
    library: &CudaLibrary,
) -> Result<Device, ComputeError> {
    match choice {
        DeviceChoice::Cuda(index) if index < count => Ok(Device::Cuda(index)),
        DeviceChoice::Auto if count > 0 => Ok(Device::Cuda(nth % count)),
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(index) => Err(ComputeError::NoDevice {
            wanted: format!("cuda:{index}"),
            why: match (count, library) {
                (0, CudaLibrary::Loaded) => {
                    "CUDA finds no GPU with a driver that suits it (see nvidia-smi)".into()
                }
                (0, CudaLibrary::Absent) => {
                    format!("{library}; where there is a GPU, `cargo xtask setup --cuda` gets them")
                }
                (0, failed) => failed.to_string(),
                (1, _) => "there is one GPU, cuda:0".into(),
                (n, _) => format!("there are {n} GPUs, cuda:0 to cuda:{}", n - 1),
            },
        }),
    }
}

/// The version of the libtorch that is running, such as `2.11.0`; none if it doesn't tell (before
/// 2.9) or not on Linux and macOS.
pub fn libtorch_version() -> Option<String> {
    #[cfg(unix)]
    {
        type AbiVersion = unsafe extern "C" fn() -> u64;
        // SAFETY: looks a name up among the libraries that are loaded.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"aoti_torch_abi_version".as_ptr()) };
        if symbol.is_null() {
            return None;
        }
        // SAFETY: libtorch declares this as `uint64_t aoti_torch_abi_version()` in its stable C
        // interface (torch/csrc/inductor/aoti_torch/c/shim.h).
        let version = unsafe { std::mem::transmute::<*mut libc::c_void, AbiVersion>(symbol)() };
        // torch/headeronly/version.h: a byte each, from the highest.
        let [major, minor, patch, ..] = version.to_be_bytes();
        Some(format!("{major}.{minor}.{patch}"))
    }
    #[cfg(not(unix))]
    None
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        DeviceChoice::from(*self).fmt(f)
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl From<Device> for DeviceChoice {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => DeviceChoice::Cpu,
            Device::Cuda(index) => DeviceChoice::Cuda(index),
        }
    }
}

/// What `text` names, if it does.
fn parse(text: &str) -> Option<DeviceChoice> {
    match text {
        "auto" => Some(DeviceChoice::Auto),
        "cpu" => Some(DeviceChoice::Cpu),
        "cuda" => Some(DeviceChoice::Cuda(0)),
        _ => text.strip_prefix("cuda:")?.parse().ok().map(DeviceChoice::Cuda),
    }
}

impl FromStr for DeviceChoice {
    type Err = NoSuchName;
    fn from_str(text: &str) -> Result<Self, NoSuchName> {
        parse(text).ok_or_else(|| NoSuchName {
            text: text.into(),
            expected: "auto, cpu, or cuda:N with N from 0",
        })
    }
}

impl FromStr for Device {
    type Err = NoSuchName;
    fn from_str(text: &str) -> Result<Self, NoSuchName> {
        match parse(text) {
            Some(DeviceChoice::Cpu) => Ok(Device::Cpu),
            Some(DeviceChoice::Cuda(index)) => Ok(Device::Cuda(index)),
            Some(DeviceChoice::Auto) | None => {
                Err(NoSuchName { text: text.into(), expected: "cpu, or cuda:N with N from 0" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_read_again() {
        for text in ["auto", "cpu", "cuda:0", "cuda:11"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(Device::Cpu.to_string(), "cpu");
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("`{text}` is no device: write auto, cpu, or cuda:N with N from 0")
            );
        }
        assert!("auto".parse::<Device>().is_err());
    }

    #[test]
    fn auto_is_a_gpu_or_else_the_processor() {
        assert_eq!(pick(DeviceChoice::Auto, 0, 2, &CudaLibrary::Loaded), Ok(Device::Cuda(0)));
        assert_eq!(pick(DeviceChoice::Auto, 1, 0, &CudaLibrary::Absent), Ok(Device::Cpu));
        assert_eq!(pick(DeviceChoice::Cuda(1), 0, 2, &CudaLibrary::Loaded), Ok(Device::Cuda(1)));
    }

    #[test]
    fn auto_gives_those_who_share_a_machine_its_gpus_in_turn_and_a_named_one_stays() {
        let four = |choice| [0, 1, 2, 3].map(|nth| pick(choice, nth, 3, &CudaLibrary::Loaded));
        assert_eq!(four(DeviceChoice::Auto), [0, 1, 2, 0].map(|gpu| Ok(Device::Cuda(gpu))));
        assert_eq!(four(DeviceChoice::Cuda(2)), [2; 4].map(|gpu| Ok(Device::Cuda(gpu))));
        assert_eq!(four(DeviceChoice::Cpu), [Device::Cpu; 4].map(Ok));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_why() {
        let why = |count, library| {
            pick(DeviceChoice::Cuda(2), 0, count, &library).unwrap_err().to_string()
        };
        assert_eq!(
            why(2, CudaLibrary::Loaded),
            "no device cuda:2: there are 2 GPUs, cuda:0 to cuda:1"
        );
        assert_eq!(
            why(0, CudaLibrary::Failed("libcudart.so.13: not found".into())),
            "no device cuda:2: libtorch's CUDA libraries can't be loaded: libcudart.so.13: not found"
        );
        assert!(why(0, CudaLibrary::Absent).contains("cargo xtask setup --cuda"));
        assert!(why(0, CudaLibrary::Loaded).contains("nvidia-smi"));
    }

    #[test]
    fn this_machine_gives_what_it_says_it_has() {
        assert_eq!(DeviceChoice::Cpu.resolve(), Ok(Device::Cpu));
        let auto = DeviceChoice::Auto.resolve().unwrap();
        assert_eq!(DeviceChoice::from(auto).resolve(), Ok(auto));
        assert!(DeviceChoice::Cuda(4096).resolve().is_err());
    }

    #[test]
    fn libtorch_tells_its_version() {
        tch::get_num_threads();
        let version = libtorch_version().unwrap();
        assert!(version.starts_with("2."), "{version}");
    }
}
