//! Tensors as they stand in messages: a shape, an element type and shared immutable bytes.
//!
//! [`HostTensor`] is the one type in which numbers travel between actors and nodes. It is cheap to
//! clone, never changes, and is lent out as an `ndarray` view. In a message it stands outside the
//! encoded bytes as a raw little-endian segment (see the codec), so no tensor is ever written
//! element by element. Memory for what arrives comes from the node's [`BufferPool`].
//!
//! A sender that would rather send fewer bytes puts a [`WireTensor`] in the message instead: the
//! same tensor, its f32 elements in a [`WireFormat`] of two bytes or one.

mod dtype;
mod format;
mod host_tensor;
mod pool;
mod wire;
mod wire_tensor;

pub use dtype::{DType, Element};
pub use format::WireFormat;
#[cfg(feature = "torch")]
pub(crate) use host_tensor::byte_len;
pub use host_tensor::{HostTensor, MAX_RANK, TensorError};
pub use pool::{BufferPool, PoolBuffer};
pub use wire_tensor::WireTensor;

#[cfg(not(target_endian = "little"))]
compile_error!(
    "footlight sends tensors as raw little-endian memory; a big-endian target is not supported"
);
