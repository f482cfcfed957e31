//! Tensors of libtorch and tensors of messages: one copy from one to the other.

use tch::{Kind, Tensor};

use super::{ComputeError, Device};
use crate::tensor::{BufferPool, DType, HostTensor, PoolBuffer};

impl HostTensor {
    /// The values of `tensor`, which may lie on any device and in any layout, in memory of their
    /// own. They are copied once; what happens to `tensor` later changes nothing here.
    ///
    /// # Errors
    /// [`ComputeError::Kind`] for complex and quantised numbers; [`ComputeError::Torch`] if
    /// libtorch can't copy it (a sparse one, say).
    pub fn from_tensor(tensor: &Tensor) -> Result<Self, ComputeError> {
        let (dtype, shape, len) = describe(tensor)?;
        fill(tensor, dtype, &shape, PoolBuffer::unpooled(len))
    }

    /// As [`from_tensor`](HostTensor::from_tensor), into memory of a pool.
    ///
    /// # Errors
    /// The same.
    pub fn from_tensor_in(tensor: &Tensor, pool: &BufferPool) -> Result<Self, ComputeError> {
        let (dtype, shape, len) = describe(tensor)?;
        fill(tensor, dtype, &shape, pool.take(len))
    }

    /// A new tensor on `device` with these values, copied once.
    ///
    /// # Errors
    /// [`ComputeError::Torch`] if the device isn't there or has no memory left.
    pub fn to_tensor(&self, device: Device) -> Result<Tensor, ComputeError> {
        let sizes = sizes(self.shape());
        let mut tensor = Tensor::f_empty(&sizes, (kind(self.dtype()), device.to_tch()))?;
        self.copy_to(&mut tensor)?;
        Ok(tensor)
    }

    /// Writes these values into a tensor that is there already (a parameter, say), whatever its
    /// device and layout. Autograd doesn't see it.
    ///
    /// # Errors
    /// [`ComputeError::Torch`] if its shape or element type is another.
    pub fn copy_to(&self, tensor: &mut Tensor) -> Result<(), ComputeError> {
        let (sizes, kind) = (sizes(self.shape()), kind(self.dtype()));
        // libtorch would repeat and convert to make it fit.
        if tensor.size() != sizes || tensor.f_kind()? != kind {
            return Err(ComputeError::Torch(format!(
                "values of shape {sizes:?} and type {kind:?} don't fit a tensor of shape {:?} and \
                 type {:?}",
                tensor.size(),
                tensor.f_kind()?
            )));
        }
        if self.is_empty() {
            return Ok(());
        }
        // SAFETY: the memory is `self`'s, aligned and as long as shape and kind need (HT-1, HT-2).
        // `values` is only read from, and gone before this method returns.
        let values = unsafe {
            Tensor::f_from_blob(self.bytes().as_ptr(), &sizes, &[], kind, tch::Device::Cpu)?
        };
        tch::no_grad(|| tensor.f_copy_(&values))?;
        Ok(())
    }
}

/// Element type, shape, and length in bytes.
pub(super) fn describe(tensor: &Tensor) -> Result<(DType, Vec<usize>, usize), ComputeError> {
    if !tensor.defined() {
        return Err(ComputeError::Torch("the tensor is undefined".into()));
    }
    let dtype = dtype(tensor.f_kind()?)?;
    let shape = tensor
        .size()
        .iter()
        .map(|&axis| usize::try_from(axis))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| ComputeError::Torch("the tensor has a negative size".into()))?;
    let len = crate::tensor::byte_len(dtype, &shape)?;
    Ok((dtype, shape, len))
}

fn fill(
    tensor: &Tensor,
    dtype: DType,
    shape: &[usize],
    mut buffer: PoolBuffer,
) -> Result<HostTensor, ComputeError> {
    if !buffer.is_empty() {
        let (sizes, kind) = (sizes(shape), kind(dtype));
        // SAFETY: the memory is `buffer`'s, which nobody else holds; it is aligned to 64 bytes and
        // as long as shape and kind need. `target` is gone before `buffer` is touched again, and
        // `copy_` waits for the device.
        let mut target = unsafe {
            Tensor::f_from_blob(buffer.as_mut_ptr(), &sizes, &[], kind, tch::Device::Cpu)?
        };
        tch::no_grad(|| target.f_copy_(tensor))?;
    }
    Ok(HostTensor::from_bytes(dtype, shape, buffer.freeze())?)
}

/// libtorch's sizes. Every axis of a `HostTensor` fits: the product of those that aren't empty
/// does.
pub(super) fn sizes(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&axis| axis as i64).collect()
}

pub(super) fn kind(dtype: DType) -> Kind {
    match dtype {
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::I64 => Kind::Int64,
        DType::I32 => Kind::Int,
        DType::I16 => Kind::Int16,
        DType::I8 => Kind::Int8,
        DType::U8 => Kind::Uint8,
        DType::Bool => Kind::Bool,
    }
}

fn dtype(kind: Kind) -> Result<DType, ComputeError> {
    Ok(match kind {
        Kind::Float => DType::F32,
        Kind::Double => DType::F64,
        Kind::Half => DType::F16,
        Kind::BFloat16 => DType::BF16,
        Kind::Int64 => DType::I64,
        Kind::Int => DType::I32,
        Kind::Int16 => DType::I16,
        Kind::Int8 => DType::I8,
        Kind::Uint8 => DType::U8,
        Kind::Bool => DType::Bool,
        other => return Err(ComputeError::Kind(format!("{other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(tensor: &Tensor) -> HostTensor {
        let host = HostTensor::from_tensor(tensor).unwrap();
        let back = host.to_tensor(Device::Cpu).unwrap();
        assert_eq!(back.kind(), tensor.kind());
        assert_eq!(back, *tensor);
        host
    }

    #[test]
    fn every_element_type_goes_there_and_back() {
        let numbers = Tensor::from_slice(&[0i64, 1, 2, 3, 100]);
        for dtype in DType::ALL {
            let tensor = numbers.to_kind(kind(dtype));
            assert_eq!(there_and_back(&tensor).dtype(), dtype);
        }
    }

    #[test]
    fn a_transposed_or_sliced_tensor_arrives_in_its_logical_order() {
        let plain = Tensor::arange(6, (Kind::Float, tch::Device::Cpu)).view([2, 3]);
        let turned = there_and_back(&plain.tr());
        assert_eq!(turned.shape(), [3, 2]);
        assert_eq!(turned.as_slice::<f32>().unwrap(), [0., 3., 1., 4., 2., 5.]);
        let column = there_and_back(&plain.select(1, 1));
        assert_eq!(column.as_slice::<f32>().unwrap(), [1., 4.]);
        let repeated = there_and_back(&plain.select(0, 0).expand([2, 3], false));
        assert_eq!(repeated.as_slice::<f32>().unwrap(), [0., 1., 2., 0., 1., 2.]);
    }

    #[test]
    fn scalars_and_empty_tensors_go_there_and_back() {
        assert!(there_and_back(&Tensor::from(2.5f64)).shape().is_empty());
        let empty = there_and_back(&Tensor::zeros([3, 0, 2], (Kind::Int64, tch::Device::Cpu)));
        assert_eq!(empty.shape(), [3, 0, 2]);
    }

    #[test]
    fn a_later_write_to_either_side_is_not_seen_by_the_other() {
        let mut tensor = Tensor::from_slice(&[1f32, 2.]);
        let host = HostTensor::from_tensor(&tensor).unwrap();
        let mut back = host.to_tensor(Device::Cpu).unwrap();
        let _ = tensor.fill_(9.);
        let _ = back.fill_(8.);
        assert_eq!(host.as_slice::<f32>().unwrap(), [1., 2.]);
    }

    #[test]
    fn a_parameter_that_wants_gradients_can_be_sent_and_written() {
        let mut parameter = Tensor::from_slice(&[1f32, 2.]).set_requires_grad(true);
        let host = HostTensor::from_tensor(&parameter).unwrap();
        assert_eq!(host.as_slice::<f32>().unwrap(), [1., 2.]);
        let new = HostTensor::from_vec(vec![3f32, 4.], &[2]).unwrap();
        new.copy_to(&mut parameter).unwrap();
        assert!(parameter.requires_grad());
        assert_eq!(HostTensor::from_tensor(&parameter).unwrap(), new);
    }

    #[test]
    fn values_of_another_shape_or_type_are_not_bent_until_they_fit() {
        let mut target = Tensor::zeros([2, 2], (Kind::Float, tch::Device::Cpu));
        let row = HostTensor::from_vec(vec![1f32, 2.], &[2]).unwrap();
        let error = row.copy_to(&mut target).unwrap_err();
        assert_eq!(
            error.to_string(),
            "libtorch: values of shape [2] and type Float don't fit a tensor of shape [2, 2] and \
             type Float"
        );
        let whole = HostTensor::from_vec(vec![1i32; 4], &[2, 2]).unwrap();
        assert!(whole.copy_to(&mut target).is_err());
    }

    #[test]
    fn what_has_no_type_in_a_message_is_an_error() {
        let complex = Tensor::zeros([1], (Kind::ComplexFloat, tch::Device::Cpu));
        let error = HostTensor::from_tensor(&complex).unwrap_err();
        assert_eq!(error, ComputeError::Kind("ComplexFloat".into()));
        let sparse = Tensor::eye(2, (Kind::Float, tch::Device::Cpu)).to_sparse_sparse_dim(2);
        assert!(matches!(HostTensor::from_tensor(&sparse), Err(ComputeError::Torch(_))));
        assert!(HostTensor::from_tensor(&Tensor::new()).is_err());
    }

    #[test]
    fn memory_from_a_pool_goes_back_to_it() {
        let pool = BufferPool::default();
        let tensor = Tensor::ones([100, 100], (Kind::Float, tch::Device::Cpu));
        let host = HostTensor::from_tensor_in(&tensor, &pool).unwrap();
        assert_eq!(host.view::<f32>().unwrap().sum(), 10_000.);
        drop(host);
        assert_eq!(pool.idle_bytes(), 40_000);
    }
}
