//! A tensor in host memory: shape, element type, shared immutable bytes.

use std::{fmt, mem, sync::Arc};

use bytes::Bytes;
use ndarray::{ArrayBase, ArrayViewD, Data, Dimension, IxDyn};

use super::{DType, Element, PoolBuffer, WireFormat};

/// The most axes that a [`HostTensor`] has.
pub const MAX_RANK: usize = 16;

/// An immutable tensor in host memory: row-major, little-endian, shared.
///
/// A clone copies two pointers, not the data. What holds of every one:
///
/// - HT-1: the product of the shape times the element's size is the length of the bytes;
/// - HT-2: the bytes lie aligned for the element type, so a typed view is always possible;
/// - HT-3: it has at most [`MAX_RANK`] axes;
/// - HT-4: a `bool` is the byte 0 or 1.
///
/// Two are equal if type, shape and every byte are: `NaN` equals the same `NaN`, 0.0 is not -0.0.
///
/// ```
/// # use footlight_runtime::tensor::HostTensor;
/// let tensor = HostTensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
/// let view = tensor.view::<f32>()?;
/// assert_eq!(view[[1, 0]], 4.0);
/// assert_eq!(view.sum(), 21.0);
/// # Ok::<(), footlight_runtime::tensor::TensorError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct HostTensor {
    dtype: DType,
    shape: Arc<[usize]>,
    data: Bytes,
}

/// Why bytes can't be seen as a tensor, or a tensor not as what was asked for.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TensorError {
    /// The length of the data isn't what shape and type need.
    #[error(
        "a tensor of shape {shape:?} and type {dtype} takes {expected} bytes, but there are {found}"
    )]
    Length {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The element type asked for.
        dtype: DType,
        /// Bytes that these two need.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// The shape has more elements than memory can have.
    #[error("a tensor of shape {shape:?} and type {dtype} is larger than the address space")]
    TooLarge {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The element type asked for.
        dtype: DType,
    },
    /// Too many axes.
    #[error("a tensor of {rank} axes: at most {MAX_RANK} are supported")]
    Rank {
        /// How many the shape has.
        rank: usize,
    },
    /// A view of another element type was asked for.
    #[error("the tensor holds {found}, but was asked for {wanted}")]
    DType {
        /// The type of the view.
        wanted: DType,
        /// The type of the tensor.
        found: DType,
    },
    /// A code on the wire that stands for no type here: the sender is newer, or the data broken.
    #[error("{code} is no element type that this version knows")]
    UnknownDType {
        /// The code.
        code: u8,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("byte {at} of a bool tensor is {found}: only 0 and 1 are truth values")]
    NotBool {
        /// Where in the data.
        at: usize,
        /// The byte there.
        found: u8,
    },
    /// The length of encoded values isn't what their number and format need.
    #[error("{values} values as {format} take {expected} bytes, but there are {found}")]
    EncodedLength {
        /// The format asked for.
        format: WireFormat,
        /// How many values.
        values: usize,
        /// Bytes that these take.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// A code on the wire that stands for no format here: the sender is newer, or the data broken.
    #[error("{code} is no format of elements that this version knows")]
    UnknownFormat {
        /// The code.
        code: u8,
    },
    /// A format for f32 elements on elements of another type, which travel only as they are.
    #[error("elements of type {dtype} don't travel as {format}: only f32 does")]
    Format {
        /// The format named.
        format: WireFormat,
        /// The type of the elements.
        dtype: DType,
    },
}

impl HostTensor {
    /// A tensor of `values` in row-major order. Takes the vector's memory: nothing is copied.
    ///
    /// # Errors
    /// If `shape` doesn't have as many elements as `values`, or more than [`MAX_RANK`] axes.
    pub fn from_vec<T: Element>(values: Vec<T>, shape: &[usize]) -> Result<Self, TensorError> {
        let found = mem::size_of_val(values.as_slice());
        check(T::DTYPE, shape, found)?;
        Ok(HostTensor {
            dtype: T::DTYPE,
            shape: shape.into(),
            data: Bytes::from_owner(OwnedVec(values)),
        })
    }

    /// A tensor of an `ndarray` array or view of any layout; its elements are copied once, into
    /// row-major order.
    ///
    /// # Errors
    /// [`TensorError::Rank`] for more than [`MAX_RANK`] axes. [`TensorError::TooLarge`] only for a
    /// view that repeats its elements (a broadcast one).
    pub fn from_array<T, S, D>(array: &ArrayBase<S, D>) -> Result<Self, TensorError>
    where
        T: Element,
        S: Data<Elem = T>,
        D: Dimension,
    {
        byte_len(T::DTYPE, array.shape())?;
        let values = match array.as_slice() {
            Some(values) => values.to_vec(),
            None => array.iter().copied().collect(),
        };
        HostTensor::from_vec(values, array.shape())
    }

    /// A tensor over bytes that are already in the tensor's layout: row-major and little-endian.
    ///
    /// Shares `data` if it is aligned for `dtype` (what comes from a [`BufferPool`] always is),
    /// else copies it to where it is.
    ///
    /// # Errors
    /// If shape, type and length don't agree, or the content is not of that type.
    ///
    /// [`BufferPool`]: super::BufferPool
    pub fn from_bytes(dtype: DType, shape: &[usize], data: Bytes) -> Result<Self, TensorError> {
        check(dtype, shape, data.len())?;
        if dtype == DType::Bool
            && let Some((at, &found)) = data.iter().enumerate().find(|&(_, &byte)| byte > 1)
        {
            return Err(TensorError::NotBool { at, found });
        }
        let data = if (data.as_ptr() as usize).is_multiple_of(dtype.size()) {
            data
        } else {
            let mut aligned = PoolBuffer::unpooled(data.len());
            aligned.copy_from_slice(&data);
            aligned.freeze()
        };
        Ok(HostTensor { dtype, shape: shape.into(), data })
    }

    /// A tensor of which the caller knows that HT-1 to HT-4 hold.
    pub(super) fn from_checked(dtype: DType, shape: Arc<[usize]>, data: Bytes) -> Self {
        debug_assert_eq!(check(dtype, &shape, data.len()), Ok(()));
        HostTensor { dtype, shape, data }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The length of each axis, the slowest first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The memory: row-major, little-endian. A clone of it shares it.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// [`TensorError::DType`] if the tensor holds another type than `T`.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        let wrong = TensorError::DType { wanted: T::DTYPE, found: self.dtype };
        if self.dtype != T::DTYPE {
            return Err(wrong);
        }
        // Empty bytes may point anywhere, and the cast would look at their alignment.
        if self.data.is_empty() {
            return Ok(&[]);
        }
        // HT-1 and HT-2 say that this cast succeeds.
        bytemuck::try_cast_slice(&self.data).map_err(|_| wrong)
    }

    /// The tensor as an `ndarray` view of its shape.
    ///
    /// # Errors
    /// [`TensorError::DType`] if the tensor holds another type than `T`.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>, TensorError> {
        let elements = self.as_slice::<T>()?;
        // HT-1 says that the shape fits.
        ArrayViewD::from_shape(IxDyn(&self.shape), elements)
            .map_err(|_| TensorError::TooLarge { shape: self.shape.to_vec(), dtype: self.dtype })
    }
}

impl fmt::Debug for HostTensor {
    /// Type and shape, not the elements: tensors stand in messages that get logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTensor({} {:?})", self.dtype, self.shape)
    }
}

/// Gives a vector's memory to `Bytes`, which keeps the vector until the last clone goes.
struct OwnedVec<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for OwnedVec<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// HT-1 and HT-3.
fn check(dtype: DType, shape: &[usize], found: usize) -> Result<(), TensorError> {
    let expected = byte_len(dtype, shape)?;
    if expected != found {
        return Err(TensorError::Length { shape: shape.to_vec(), dtype, expected, found });
    }
    Ok(())
}

/// The bytes that a tensor takes. As in `ndarray`, the axes that aren't empty must fit in memory
/// even if another is empty, so that no stride overflows.
pub(crate) fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, TensorError> {
    if shape.len() > MAX_RANK {
        return Err(TensorError::Rank { rank: shape.len() });
    }
    let full = shape
        .iter()
        .filter(|&&axis| axis != 0)
        .try_fold(dtype.size(), |bytes, &axis| bytes.checked_mul(axis))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec(), dtype })?;
    Ok(if shape.contains(&0) { 0 } else { full })
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::BufferPool;

    #[test]
    fn a_vector_becomes_a_tensor_without_a_copy_and_so_does_its_clone() {
        let values = vec![1.5f64, -2.0, 3.0];
        let address = values.as_ptr() as usize;
        let tensor = HostTensor::from_vec(values, &[3]).unwrap();
        assert_eq!(tensor.clone().as_slice::<f64>().unwrap().as_ptr() as usize, address);
        assert_eq!(tensor.as_slice::<f64>().unwrap(), [1.5, -2.0, 3.0]);
    }

    #[test]
    fn an_array_of_any_layout_arrives_in_its_logical_order() {
        let plain: Array2<i32> = array![[1, 2, 3], [4, 5, 6]];
        let turned = plain.t();
        let tensor = HostTensor::from_array(&turned).unwrap();
        assert_eq!(tensor.shape(), [3, 2]);
        assert_eq!(tensor.as_slice::<i32>().unwrap(), [1, 4, 2, 5, 3, 6]);
        assert_eq!(tensor.view::<i32>().unwrap(), turned.into_dyn());
        let same = HostTensor::from_array(&plain).unwrap();
        assert_eq!(same.view::<i32>().unwrap(), plain.into_dyn());
    }

    #[test]
    fn a_scalar_has_no_axes_and_one_element() {
        let tensor = HostTensor::from_vec(vec![7u8], &[]).unwrap();
        assert_eq!((tensor.shape().len(), tensor.len()), (0, 1));
        assert_eq!(tensor.view::<u8>().unwrap().sum(), 7);
    }

    #[test]
    fn an_empty_tensor_has_a_view_whatever_its_memory() {
        let tensor = HostTensor::from_bytes(DType::F64, &[0, 5], Bytes::new()).unwrap();
        assert!(tensor.is_empty());
        assert_eq!(tensor.view::<f64>().unwrap().shape(), [0, 5]);
    }

    #[test]
    fn bytes_that_are_not_aligned_are_moved_and_those_that_are_stay() {
        let pool = BufferPool::default();
        let mut buffer = pool.take(4096 + 1);
        buffer[1..5].copy_from_slice(&1.0f32.to_le_bytes());
        buffer[8..12].copy_from_slice(&2.0f32.to_le_bytes());
        let bytes = buffer.freeze();

        let moved = HostTensor::from_bytes(DType::F32, &[1], bytes.slice(1..5)).unwrap();
        assert_eq!(moved.as_slice::<f32>().unwrap(), [1.0]);
        assert_eq!(moved.bytes().as_ptr() as usize % 64, 0);

        let shared = HostTensor::from_bytes(DType::F32, &[1], bytes.slice(8..12)).unwrap();
        assert_eq!(shared.as_slice::<f32>().unwrap(), [2.0]);
        assert_eq!(shared.bytes().as_ptr(), bytes[8..].as_ptr());
    }

    #[test]
    fn a_shape_that_does_not_fit_its_data_is_refused() {
        let error = HostTensor::from_vec(vec![0f32; 5], &[2, 3]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a tensor of shape [2, 3] and type f32 takes 24 bytes, but there are 20"
        );
    }

    #[test]
    fn a_shape_whose_product_overflows_is_refused_even_with_an_empty_axis() {
        for shape in [&[usize::MAX, 2][..], &[1 << 40, 1 << 40], &[usize::MAX, 2, 0]] {
            let error = HostTensor::from_bytes(DType::U8, shape, Bytes::new()).unwrap_err();
            assert!(matches!(error, TensorError::TooLarge { .. }), "{error}");
        }
    }

    #[test]
    fn more_than_sixteen_axes_are_refused() {
        let error = HostTensor::from_vec(vec![0u8], &[1; 17]).unwrap_err();
        assert_eq!(error, TensorError::Rank { rank: 17 });
        HostTensor::from_vec(vec![0u8], &[1; 16]).unwrap();
    }

    #[test]
    fn a_view_of_another_type_is_refused() {
        let tensor = HostTensor::from_vec(vec![1i32], &[1]).unwrap();
        let error = tensor.view::<f32>().unwrap_err();
        assert_eq!(error.to_string(), "the tensor holds i32, but was asked for f32");
    }

    #[test]
    fn a_bool_is_zero_or_one() {
        let good = Bytes::from_static(&[0, 1, 1]);
        HostTensor::from_bytes(DType::Bool, &[3], good).unwrap();
        let bad = Bytes::from_static(&[0, 1, 2]);
        let error = HostTensor::from_bytes(DType::Bool, &[3], bad).unwrap_err();
        assert_eq!(error, TensorError::NotBool { at: 2, found: 2 });
    }

    #[test]
    fn tensors_are_equal_if_every_bit_is() {
        let tensor = |x: f32| HostTensor::from_vec(vec![x], &[1]).unwrap();
        assert_eq!(tensor(f32::NAN), tensor(f32::NAN));
        assert_ne!(tensor(0.0), tensor(-0.0));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_can_be_viewed(
            code in 0u8..12,
            shape in prop::collection::vec(prop_oneof![0usize..4, any::<usize>()], 0..18),
            len in 0usize..200,
            offset in 0usize..9,
        ) {
            let Ok(dtype) = DType::from_code(code) else { return Ok(()) };
            let data = Bytes::from(vec![1u8; len + offset]).slice(offset..);
            let exact = byte_len(dtype, &shape).unwrap_or(len).min(len);
            if let Ok(tensor) = HostTensor::from_bytes(dtype, &shape, data.slice(..exact)) {
                prop_assert_eq!(tensor.len() * dtype.size(), exact);
                prop_assert_eq!(tensor.shape(), &shape[..]);
                let viewed = match dtype {
                    DType::F64 => tensor.view::<f64>().map(|v| v.len()),
                    DType::F32 => tensor.view::<f32>().map(|v| v.len()),
                    DType::I16 => tensor.view::<i16>().map(|v| v.len()),
                    DType::BF16 => tensor.view::<half::bf16>().map(|v| v.len()),
                    _ => Ok(tensor.len()),
                };
                prop_assert_eq!(viewed, Ok(tensor.len()));
            }
        }
    }
}
