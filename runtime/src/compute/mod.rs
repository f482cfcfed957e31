//! Computing with libtorch, away from the async threads.
//!
//! libtorch's calls block, keep state for each thread (autograd, cuBLAS), and tell of errors by
//! C++ exceptions. So a [`ComputeThread`] owns models and optimisers and runs closures on them one
//! by one; an actor sends a closure and awaits its result. Errors are values ([`ComputeError`]).
//! Tensors cross over as [`HostTensor`](crate::tensor::HostTensor)s; inside a closure they are
//! `tch` tensors.
//!
//! libtorch itself is one for the whole process, with its settings, its CUDA and its count of
//! threads for a sum; that is the one thing here that several nodes in a process share.

mod convert;
mod cuda;
mod device;
mod error;
mod thread;

pub use cuda::{CudaLibrary, load_cuda};
pub use device::{Device, DeviceChoice, NoSuchName, libtorch_version};
pub use error::ComputeError;
pub use thread::{ComputeOptions, ComputeThread};
