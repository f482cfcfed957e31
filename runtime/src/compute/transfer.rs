//! Copies between a device and the host that go on while the device computes.
//!
//! A GPU copies to and from pinned memory by itself, beside its computing, if the copy is in a queue of its own (a CUDA
//! stream) and nobody waits. [`Transfers`] has one queue each way, and keeps the pinned memory for the next time:
//! pinning takes longer than copying.
//!
//! ```text
//! compute   │ slot 1 ────────── │ slot 2 ────────── │ slot 3 …
//! up        │ slot 2's samples  │ slot 3's samples  │
//! down      │                   │ slot 1's gradient │ slot 2's gradient
//! ```
//!
//! - **TR-1** What goes down was computed first, and what is computed from what went up comes after it: the queues wait
//!   for each other, the host for neither.
//! - **TR-2** Memory on either side is not used again before the copy has ended; for what went up, before what was
//!   computed from it has.
//! - **TR-3** What a [`Download`] gives stays as it is, whatever happens on the device later.
//!
//! On the processor the same calls copy at once.

use std::{
    cell::RefCell,
    rc::Rc,
    slice,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use tch::{Kind, Tensor};

use super::{
    ComputeError, Device, convert,
    cudart::{self, Event, Stream},
    load_cuda,
};
use crate::tensor::{BufferPool, DType, HostTensor};

/// The copies of one thread that computes.
pub struct Transfers {
    device: Device,
    /// For what comes down on the processor.
    pool: BufferPool,
    gpu: Option<Gpu>,
}

struct Gpu {
    up: Stream,
    down: Arc<Stream>,
    lanes: Rc<RefCell<Vec<Lane>>>,
    pinned: Arc<Pinned>,
}

impl Gpu {
    /// The lane that the next copy goes through: one that nothing computes from any more, so that the copy does not wait
    /// for that. `None`: a new one, as those that there are would have to be waited for, and are few.
    fn idle(&self, len: usize) -> Result<Option<usize>, ComputeError> {
        let lanes = self.lanes.borrow();
        let fitting = || lanes.iter().enumerate().filter(|(_, lane)| lane.len() == len);
        for (at, lane) in fitting() {
            if lane.computed.has_happened()? {
                return Ok(Some(at));
            }
        }
        // The oldest comes first.
        Ok(fitting().next().map(|(at, _)| at).filter(|_| fitting().count() >= LANES / 2))
    }
}

impl Transfers {
    /// For the calling thread and a device, with at most `keep` bytes that are kept for gradients and the like to come.
    ///
    /// # Errors
    /// CUDA's, if the device is a GPU.
    pub fn new(device: Device, keep: usize) -> Result<Self, ComputeError> {
        let gpu = match device {
            Device::Cpu => None,
            Device::Cuda(index) => {
                load_cuda();
                cudart::set_device(index)?;
                let pinned = Pinned { device, keep, idle: Mutex::default() };
                Some(Gpu {
                    up: Stream::new()?,
                    down: Arc::new(Stream::new()?),
                    lanes: Rc::default(),
                    pinned: Arc::new(pinned),
                })
            }
        };
        Ok(Transfers { device, pool: BufferPool::new(keep), gpu })
    }

    /// Puts values on the device, for what is computed from here on. `values` are free again when this returns.
    ///
    /// # Errors
    /// If shape, type and length don't fit; libtorch's and CUDA's.
    pub fn upload(
        &self,
        values: &[u8],
        shape: &[usize],
        dtype: DType,
    ) -> Result<Upload, ComputeError> {
        let len = crate::tensor::byte_len(dtype, shape)?;
        if len != values.len() {
            let got = values.len();
            return Err(ComputeError::Torch(format!("{got} bytes are no {dtype:?} of {shape:?}")));
        }
        let (sizes, kind) = (convert::sizes(shape), convert::kind(dtype));
        let Some(gpu) = self.gpu.as_ref().filter(|_| !values.is_empty()) else {
            let tensor = Tensor::f_from_data_size(values, &sizes, kind)?;
            return Ok(Upload { tensor: tensor.f_to_device(self.device.to_tch())?, lane: None });
        };
        let lane = match gpu.idle(len)? {
            Some(at) => gpu.lanes.borrow_mut().remove(at),
            None => Lane::new(&gpu.up, len, self.device)?,
        };
        // The copy before last from here; it ended long ago.
        lane.copied.wait()?;
        // SAFETY: `lane` owns `len` bytes of pinned memory, and no copy reads them (TR-2).
        unsafe { slice::from_raw_parts_mut(lane.host.data_ptr().cast::<u8>(), len) }
            .copy_from_slice(values);
        gpu.up.wait_for(&lane.computed)?;
        // SAFETY: both are the lane's, which stays until `copied` has happened (see its Drop), and what computes waits
        // for it.
        unsafe { gpu.up.copy_to_device(lane.there.data_ptr(), lane.host.data_ptr(), len)? };
        gpu.up.record(&lane.copied)?;
        lane.copied.before_computing()?;
        let tensor = lane.there.f_view_dtype(kind)?.f_view(sizes.as_slice())?;
        Ok(Upload { tensor, lane: Some((lane, gpu.lanes.clone())) })
    }

    /// Writes numbers into a tensor of as many, which is on the device already; autograd doesn't see it. The host waits for
    /// no copy, and `values` are free again when this returns.
    ///
    /// # Errors
    /// If there are not as many; libtorch's.
    pub fn write(&self, values: &[f32], target: &Tensor) -> Result<(), ComputeError> {
        if target.numel() != values.len() {
            let (got, wants) = (values.len(), target.numel());
            return Err(ComputeError::Torch(format!("{got} values for a tensor of {wants}")));
        }
        if values.is_empty() {
            return Ok(());
        }
        let (sizes, kind) = (target.size(), Kind::Float);
        // SAFETY: the memory is `values`', as long as the sizes need, read only, and `host` is gone before this returns.
        let host = unsafe {
            Tensor::f_from_blob(values.as_ptr().cast(), &sizes, &[], kind, tch::Device::Cpu)?
        };
        let mut target = target.detach();
        match &self.gpu {
            None => target.f_copy_(&host)?,
            // libtorch keeps the pinned memory for the next time, when the copy from it has ended.
            Some(_) => {
                let pinned = host.f_pin_memory(self.device.to_tch())?;
                let there = pinned.f_internal_to_copy((kind, self.device.to_tch()), true)?;
                target.f_copy_(&there)?
            }
        };
        Ok(())
    }

    /// Begins to copy tensors of `f32` to the host, one behind the other, as soon as they are computed: one flat tensor.
    ///
    /// # Errors
    /// Tensors of another type; libtorch's and CUDA's.
    pub fn download_flat(&self, tensors: &[Tensor]) -> Result<Download, ComputeError> {
        let flat = tensors.iter().map(|tensor| tensor.detach().f_reshape([-1]));
        let flat = flat.collect::<Result<Vec<_>, _>>()?;
        if self.gpu.is_some() {
            return self.download(&Tensor::f_cat(&flat, 0)?);
        }
        let len: usize = flat.iter().map(Tensor::numel).sum();
        let mut buffer = self.pool.take(len * DType::F32.size());
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(&mut buffer);
        for tensor in &flat {
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(tensor.numel());
            tensor.f_contiguous()?.f_copy_data(place, place.len())?;
            rest = behind;
        }
        Ok(Download(State::Here(HostTensor::from_bytes(DType::F32, &[len], buffer.freeze())?)))
    }

    /// Begins to copy a tensor to the host, as soon as it is computed.
    ///
    /// # Errors
    /// As [`HostTensor::from_tensor`], and CUDA's.
    pub fn download(&self, tensor: &Tensor) -> Result<Download, ComputeError> {
        let (dtype, shape, len) = convert::describe(tensor)?;
        let Some(gpu) = self.gpu.as_ref().filter(|_| len > 0) else {
            return Ok(Download(State::Here(HostTensor::from_tensor_in(tensor, &self.pool)?)));
        };
        let source = tensor.detach().f_to_device(self.device.to_tch())?.f_contiguous()?;
        let target = gpu.pinned.take(len)?;
        let event = gpu.down.event()?;
        event.record_computed()?;
        gpu.down.wait_for(&event)?;
        // SAFETY: `copying` keeps both until the copy has ended, and gives `target` to nobody before.
        unsafe { gpu.down.copy_to_host(target.memory.data_ptr(), source.data_ptr(), len)? };
        gpu.down.record(&event)?;
        let copying = Copying {
            done: event,
            target: Some(target),
            dtype,
            shape,
            _source: source,
            _stream: gpu.down.clone(),
        };
        Ok(Download(State::OnItsWay(copying)))
    }
}

impl std::fmt::Debug for Transfers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Transfers").field(&self.device).finish()
    }
}

/// Values on a device. When it is dropped, their memory serves the next ones; so it must live until everything that
/// computes with [`tensor`](Self::tensor) has been called, `backward` included.
pub struct Upload {
    tensor: Tensor,
    lane: Option<(Lane, Rc<RefCell<Vec<Lane>>>)>,
}

impl Upload {
    /// The values.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some((lane, lanes)) = self.lane.take()
            // Without this mark its memory can't be used again.
            && lane.computed.record_computed().is_ok()
        {
            let mut lanes = lanes.borrow_mut();
            if lanes.len() >= LANES {
                lanes.remove(0);
            }
            lanes.push(lane);
        }
    }
}

/// So many stay for what goes up next: samples and labels, of this slot and of the next one.
const LANES: usize = 4;

/// Memory on both sides for what goes up.
struct Lane {
    host: Tensor,
    there: Tensor,
    copied: Event,
    /// What was computed from it.
    computed: Event,
}

impl Lane {
    fn new(stream: &Stream, len: usize, device: Device) -> Result<Self, ComputeError> {
        let there = Tensor::f_empty([len as i64], (Kind::Uint8, device.to_tch()))?;
        let computed = stream.event()?;
        // libtorch may have given memory that something which it has queued still uses.
        computed.record_computed()?;
        Ok(Lane { host: pinned(len, device)?, there, copied: stream.event()?, computed })
    }

    fn len(&self) -> usize {
        self.host.numel()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // An error means that the device is gone, and its copies with it.
        let _ = self.copied.wait();
    }
}

/// A copy to the host that may still be under way.
#[must_use = "a copy is begun for its values"]
pub struct Download(State);

#[allow(clippy::large_enum_variant, reason = "there are a handful at a time")]
enum State {
    Here(HostTensor),
    OnItsWay(Copying),
}

impl Download {
    /// The values; blocks until they are there, so an async task calls this on a thread for such work.
    ///
    /// # Errors
    /// CUDA's.
    pub fn wait(self) -> Result<HostTensor, ComputeError> {
        match self.0 {
            State::Here(values) => Ok(values),
            State::OnItsWay(mut copying) => {
                copying.done.wait()?;
                let memory = copying.target.take().map(Bytes::from_owner).unwrap_or_default();
                Ok(HostTensor::from_bytes(copying.dtype, &copying.shape, memory)?)
            }
        }
    }

    /// Whether [`wait`](Self::wait) may block.
    pub fn is_under_way(&self) -> bool {
        matches!(self.0, State::OnItsWay(_))
    }
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download").field("under_way", &self.is_under_way()).finish()
    }
}

struct Copying {
    done: Event,
    /// None once it was given away.
    target: Option<PinnedBuffer>,
    dtype: DType,
    shape: Vec<usize>,
    _source: Tensor,
    _stream: Arc<Stream>,
}

impl Drop for Copying {
    fn drop(&mut self) {
        if self.target.is_some() {
            // Nobody wants it any more, but the copy writes to it. An error means that the device is gone.
            let _ = self.done.wait();
        }
    }
}

/// Pinned memory of so many bytes.
fn pinned(len: usize, device: Device) -> Result<Tensor, ComputeError> {
    let plain = Tensor::f_empty([len as i64], (Kind::Uint8, tch::Device::Cpu))?;
    Ok(plain.f_pin_memory(device.to_tch())?)
}

/// Pinned memory to use again.
struct Pinned {
    device: Device,
    keep: usize,
    idle: Mutex<Vec<Tensor>>,
}

impl Pinned {
    fn take(self: &Arc<Self>, len: usize) -> Result<PinnedBuffer, ComputeError> {
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let found = idle.iter().position(|memory| memory.numel() == len);
            found.map(|at| idle.swap_remove(at))
        };
        let memory = idle.map_or_else(|| pinned(len, self.device), Ok)?;
        Ok(PinnedBuffer { memory, home: Arc::downgrade(self) })
    }
}

/// Goes back to where it came from, when the last tensor over it is dropped.
struct PinnedBuffer {
    memory: Tensor,
    home: Weak<Pinned>,
}

impl AsRef<[u8]> for PinnedBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the tensor owns as many bytes; it is written to only before this buffer is given away (TR-3).
        unsafe { slice::from_raw_parts(self.memory.data_ptr().cast(), self.memory.numel()) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            let mut idle = home.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let kept: usize = idle.iter().map(Tensor::numel).sum();
            if kept + self.memory.numel() <= home.keep {
                idle.push(self.memory.shallow_clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_processor_values_go_up_and_come_down_at_once() {
        let transfers = Transfers::new(Device::Cpu, 1 << 20).unwrap();
        let up = transfers.upload(&[1, 2, 3, 4, 5, 6], &[3, 2], DType::U8).unwrap();
        assert_eq!(up.tensor().size(), [3, 2]);
        let doubled = up.tensor() * 2;
        let down = transfers.download(&doubled).unwrap();
        assert!(!down.is_under_way());
        let values = down.wait().unwrap();
        assert_eq!(values.shape(), [3, 2]);
        assert_eq!(values.as_slice::<u8>().unwrap(), [2, 4, 6, 8, 10, 12]);
    }

    #[test]
    fn what_came_down_stays_when_the_tensor_changes_and_its_memory_is_used_again() {
        let transfers = Transfers::new(Device::Cpu, 1 << 20).unwrap();
        let mut tensor = Tensor::ones([100, 100], (Kind::Float, tch::Device::Cpu));
        let values = transfers.download(&tensor).unwrap().wait().unwrap();
        let _ = tensor.fill_(9.0);
        assert!(values.as_slice::<f32>().unwrap().iter().all(|value| *value == 1.0));
        let memory = values.bytes().as_ptr();
        drop(values);
        let again = transfers.download(&tensor).unwrap().wait().unwrap();
        assert_eq!(again.bytes().as_ptr(), memory);
    }

    #[test]
    fn values_that_are_none_of_that_shape_are_refused() {
        let transfers = Transfers::new(Device::Cpu, 0).unwrap();
        let error =
            transfers.upload(&[0; 5], &[2], DType::F32).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("libtorch: 5 bytes are no F32 of [2]"));
        assert!(transfers.upload(&[], &[0, 4], DType::F32).is_ok());
    }

    #[test]
    fn several_tensors_come_down_as_one_and_numbers_are_written_into_one_that_is_there() {
        let transfers = Transfers::new(Device::Cpu, 1 << 20).unwrap();
        let matrix = Tensor::from_slice(&[1f32, 2., 3., 4.]).view([2, 2]).set_requires_grad(true);
        let parts = [matrix.tr(), Tensor::from_slice(&[5f32])];
        let flat = transfers.download_flat(&parts).unwrap().wait().unwrap();
        assert_eq!(flat.as_slice::<f32>().unwrap(), [1., 3., 2., 4., 5.]);
        transfers.write(&[6., 7., 8., 9.], &matrix).unwrap();
        assert_eq!(matrix.double_value(&[1, 0]), 8.0);
        assert!(matrix.requires_grad());
        assert!(transfers.write(&[1.0], &matrix).is_err());
        let whole = Tensor::from_slice(&[1i64]);
        assert!(transfers.download_flat(&[whole]).is_err());
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        load_cuda();
        if !tch::Cuda::is_available() {
            assert!(Transfers::new(Device::Cuda(0), 0).is_err());
        }
    }
}
