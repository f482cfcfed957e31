//! Computing with libtorch, away from the async threads.
//!
//! libtorch's calls block, keep state for each thread (autograd, cuBLAS), and tell of errors by
//! C++ exceptions. So a [`ComputeThread`] owns models and optimisers and runs closures on them one
//! by one; an actor sends a closure and awaits its result. Errors are values ([`ComputeError`]).
//! Tensors cross over as [`HostTensor`](crate::tensor::HostTensor)s; inside a closure they are
//! `tch` tensors. [`Transfers`] copies to and from a GPU while it computes.
//!
//! libtorch itself is one for the whole process, with its settings, its CUDA and its count of
//! threads for a sum; that is the one thing here that several nodes in a process share.

mod convert;
mod cuda;
mod cudart;
mod deterministic;
mod device;
mod error;
mod memory;
mod thread;
mod transfer;

pub use cuda::{CudaLibrary, load_cuda};
pub use deterministic::deterministic;
pub use device::{Device, DeviceChoice, NoSuchName, libtorch_version};
pub use error::ComputeError;
pub use thread::{ComputeOptions, ComputeThread};
pub use transfer::{Download, Transfers, Upload};
