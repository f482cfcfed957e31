//! A tensor in the format in which its sender wants it to travel.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::{BufferPool, DType, HostTensor, PoolBuffer, TensorError, WireFormat};
use crate::tensor::host_tensor::byte_len;

/// A tensor that stands in a message in place of a [`HostTensor`], in the [`WireFormat`] that its
/// sender chose. The field's type, and so the message's fingerprint, is the same for every format.
///
/// [`HostTensor::encoded`] makes one and [`into_tensor`](WireTensor::into_tensor) gives the tensor
/// back: f32 elements with the error that the format's table states, elements of any other type,
/// and all in the format `F32`, bit by bit and without a copy. The values are converted when it is
/// made, once for all receivers, and not on the way; so a receiver on the same node gets the same
/// bits as one elsewhere. They are converted back only when the receiver asks, who can add them to
/// sums without ever having them as a tensor ([`add_to`](WireTensor::add_to)).
///
/// What holds of every one:
///
/// - WT-1: in another format than `F32`, the bytes are as many as the shape's elements take;
/// - WT-2: the shape is one that an f32 [`HostTensor`] can have.
///
/// ```
/// # use footlight_runtime::{Message, tensor::{HostTensor, WireFormat, WireTensor}};
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize)]
/// struct Push {
///     gradient: WireTensor,
/// }
/// # impl Message for Push { type Reply = (); const NAME: &'static str = "doc.push"; }
///
/// let gradient = HostTensor::from_vec(vec![1.0f32, -0.25, 3.0, 1.0 / 3.0], &[2, 2])?;
/// let push = Push { gradient: gradient.encoded(WireFormat::Bf16) };
/// assert_eq!(push.gradient.bytes().len(), 8);
///
/// let received = push.gradient.into_tensor();
/// assert_eq!(received.shape(), [2, 2]);
/// assert_eq!(received.as_slice::<f32>()?, [1.0, -0.25, 3.0, 0.333984375]);
/// # Ok::<(), footlight_runtime::tensor::TensorError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct WireTensor(Content);

#[derive(Clone, PartialEq, Eq)]
enum Content {
    /// Elements of any type as they are.
    Plain(HostTensor),
    /// f32 elements in another format.
    Encoded { format: WireFormat, shape: Arc<[usize]>, data: Bytes },
}

impl HostTensor {
    /// This tensor to be sent in `format`, in memory of its own. Elements of another type than f32
    /// stay as they are whatever the format, and share this tensor's memory.
    pub fn encoded(&self, format: WireFormat) -> WireTensor {
        WireTensor::of(self, format, PoolBuffer::unpooled)
    }

    /// As [`encoded`](HostTensor::encoded), into memory of a pool (`System::pool`, say).
    pub fn encoded_in(&self, format: WireFormat, pool: &BufferPool) -> WireTensor {
        WireTensor::of(self, format, |len| pool.take(len))
    }
}

impl WireTensor {
    fn of(tensor: &HostTensor, format: WireFormat, buffer: impl Fn(usize) -> PoolBuffer) -> Self {
        match tensor.as_slice::<f32>() {
            Ok(values) if format != WireFormat::F32 => {
                let mut buffer = buffer(format.encoded_len(values.len()));
                format.encode(values, &mut buffer);
                let shape = tensor.shape().into();
                WireTensor(Content::Encoded { format, shape, data: buffer.freeze() })
            }
            _ => tensor.clone().into(),
        }
    }

    /// A tensor of f32 elements over bytes that are already in `format`, for who encodes slices
    /// with [`WireFormat::encode_into`]. Shares `data`.
    ///
    /// # Errors
    /// [`TensorError::EncodedLength`] (for the format `F32` [`TensorError::Length`]) if the bytes
    /// are not as many as the shape's elements take, [`TensorError::Rank`] and
    /// [`TensorError::TooLarge`] for a shape that no tensor has.
    pub fn from_bytes(
        format: WireFormat,
        shape: &[usize],
        data: Bytes,
    ) -> Result<Self, TensorError> {
        if format == WireFormat::F32 {
            return HostTensor::from_bytes(DType::F32, shape, data).map(WireTensor::from);
        }
        let values = byte_len(DType::F32, shape)? / DType::F32.size();
        format.check(values, data.len())?;
        Ok(WireTensor(Content::Encoded { format, shape: shape.into(), data }))
    }

    /// The format in which the elements are now: `F32` for those of another type than f32.
    pub fn format(&self) -> WireFormat {
        match &self.0 {
            Content::Plain(_) => WireFormat::F32,
            Content::Encoded { format, .. } => *format,
        }
    }

    /// The element type of the tensor, not of its encoded bytes.
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Content::Plain(tensor) => tensor.dtype(),
            Content::Encoded { .. } => DType::F32,
        }
    }

    /// The length of each axis, the slowest first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        match &self.0 {
            Content::Plain(tensor) => tensor.shape(),
            Content::Encoded { shape, .. } => shape,
        }
    }

    /// The bytes that travel. A clone shares them.
    pub fn bytes(&self) -> &Bytes {
        match &self.0 {
            Content::Plain(tensor) => tensor.bytes(),
            Content::Encoded { data, .. } => data,
        }
    }

    /// The tensor, in memory of its own if it has to be converted: at most four times the bytes
    /// that travelled.
    pub fn into_tensor(self) -> HostTensor {
        self.decoded(PoolBuffer::unpooled)
    }

    /// As [`into_tensor`](WireTensor::into_tensor), into memory of a pool (`System::pool`, say).
    pub fn into_tensor_in(self, pool: &BufferPool) -> HostTensor {
        self.decoded(|len| pool.take(len))
    }

    fn decoded(self, buffer: impl Fn(usize) -> PoolBuffer) -> HostTensor {
        match self.0 {
            Content::Plain(tensor) => tensor,
            Content::Encoded { format, shape, data } => {
                // WT-2: no product on the way to this one overflows.
                let mut buffer = buffer(shape.iter().product::<usize>() * DType::F32.size());
                // A buffer is aligned for any element.
                let values = bytemuck::cast_slice_mut(&mut buffer);
                format.decode(&data, values, |slot, value| *slot = value);
                HostTensor::from_checked(DType::F32, shape, buffer.freeze())
            }
        }
    }

    /// Writes the elements, in row-major order, over `values`.
    ///
    /// # Errors
    /// [`TensorError::DType`] if they are not f32, [`TensorError::EncodedLength`] if they are not
    /// as many as `values`; nothing is written then.
    pub fn copy_to(&self, values: &mut [f32]) -> Result<(), TensorError> {
        self.check_f32()?;
        self.format().decode_into(self.bytes(), values)
    }

    /// Adds the elements, in row-major order, to `sums` in one pass.
    ///
    /// # Errors
    /// [`TensorError::DType`] if they are not f32, [`TensorError::EncodedLength`] if they are not
    /// as many as `sums`; nothing is added then.
    pub fn add_to(&self, sums: &mut [f32]) -> Result<(), TensorError> {
        self.check_f32()?;
        self.format().add_decoded_into(self.bytes(), sums)
    }

    /// As [`copy_to`](WireTensor::copy_to), of so many elements from number `at` on, for who works on
    /// a part at a time. `at` is a multiple of [`WireFormat::PART`].
    ///
    /// # Errors
    /// As [`copy_to`](WireTensor::copy_to); also if there are not so many elements from `at` on, or no
    /// part begins there.
    pub fn copy_part_to(&self, at: usize, values: &mut [f32]) -> Result<(), TensorError> {
        let part = self.part(at, values.len())?;
        self.format().decode_into(part, values)
    }

    /// As [`add_to`](WireTensor::add_to), of a part as in [`copy_part_to`](WireTensor::copy_part_to).
    ///
    /// # Errors
    /// As [`copy_part_to`](WireTensor::copy_part_to).
    pub fn add_part_to(&self, at: usize, sums: &mut [f32]) -> Result<(), TensorError> {
        let part = self.part(at, sums.len())?;
        self.format().add_decoded_into(part, sums)
    }

    /// The bytes of so many elements from number `at` on.
    fn part(&self, at: usize, count: usize) -> Result<&[u8], TensorError> {
        self.check_f32()?;
        let (format, elements) = (self.format(), self.shape().iter().product::<usize>());
        let end = at.saturating_add(count);
        let begins = at.is_multiple_of(WireFormat::PART);
        // Only the last part may end elsewhere.
        let ends = end == elements || end < elements && end.is_multiple_of(WireFormat::PART);
        let bytes = format.encoded_len(at)..format.encoded_len(end);
        match self.bytes().get(bytes.clone()) {
            Some(part) if begins && ends => Ok(part),
            _ => Err(TensorError::EncodedLength {
                format,
                values: count,
                expected: bytes.len(),
                found: self.bytes().len().saturating_sub(bytes.start),
            }),
        }
    }

    fn check_f32(&self) -> Result<(), TensorError> {
        match self.dtype() {
            DType::F32 => Ok(()),
            found => Err(TensorError::DType { wanted: DType::F32, found }),
        }
    }
}

impl From<HostTensor> for WireTensor {
    /// To be sent as it is.
    fn from(tensor: HostTensor) -> Self {
        WireTensor(Content::Plain(tensor))
    }
}

impl fmt::Debug for WireTensor {
    /// Type, format and shape, not the elements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Content::Plain(tensor) => {
                write!(f, "WireTensor({} {:?})", tensor.dtype(), tensor.shape())
            }
            Content::Encoded { format, shape, .. } => {
                write!(f, "WireTensor(f32 as {format} {shape:?})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: Vec<f32>) -> HostTensor {
        let rows = values.len();
        HostTensor::from_vec(values, &[rows, 1]).unwrap()
    }

    #[test]
    fn what_needs_no_conversion_shares_its_memory_there_and_back() {
        let floats = column(vec![1.5; 7]);
        let indices = HostTensor::from_vec(vec![1i64, 2], &[2]).unwrap();
        let address = |tensor: &HostTensor| tensor.bytes().as_ptr();
        let same = floats.encoded(WireFormat::F32).into_tensor();
        assert_eq!((address(&same), &same), (address(&floats), &floats));
        for format in WireFormat::ALL {
            let same = indices.encoded(format).into_tensor();
            assert_eq!((address(&same), &same), (address(&indices), &indices));
        }
    }

    #[test]
    fn both_conversions_use_a_pool_s_memory_again() {
        let pool = BufferPool::default();
        let tensor = column(vec![0.1; 100_000]);
        let sent = tensor.encoded_in(WireFormat::Bf16, &pool);
        let received = sent.clone().into_tensor_in(&pool);
        assert_eq!(received, sent.clone().into_tensor());
        assert_eq!(pool.idle_bytes(), 0);
        drop((sent, received));
        assert!((600_000..601_000).contains(&pool.idle_bytes()));
    }

    #[test]
    fn elements_are_copied_or_added_where_the_receiver_wants_them() {
        let sent = column(vec![1.0, -2.0, 64.0]);
        for format in WireFormat::ALL {
            let received = sent.encoded(format);
            let mut values = [5.0f32; 3];
            received.add_to(&mut values).unwrap();
            let tensor = received.clone().into_tensor();
            let elements = tensor.as_slice::<f32>().unwrap();
            assert_eq!(values, [0, 1, 2].map(|at| 5.0 + elements[at]));
            received.copy_to(&mut values).unwrap();
            assert_eq!(values, elements);
            assert!((values[1] + 2.0).abs() <= 64.0 / 254.0);

            let mut four = [9.0f32; 4];
            let error = received.add_to(&mut four).unwrap_err();
            assert!(matches!(error, TensorError::EncodedLength { values: 4, .. }), "{error}");
            assert_eq!((received.copy_to(&mut four), four), (Err(error), [9.0; 4]));
        }
        // As many bytes as an f32 has.
        let other = WireTensor::from(HostTensor::from_vec(vec![1i32], &[1]).unwrap());
        let error = other.add_to(&mut [0.0]).unwrap_err();
        assert_eq!(error, TensorError::DType { wanted: DType::F32, found: DType::I32 });
        assert_eq!(other.copy_to(&mut [0.0]), Err(error));
    }

    #[test]
    fn a_part_is_read_as_the_whole_is_and_no_part_that_is_not_there() {
        const PART: usize = WireFormat::PART;
        let sent = column((0..2 * PART + 7).map(|at| at as f32 / 10.0).collect());
        for format in WireFormat::ALL {
            let received = sent.encoded(format);
            let whole = received.clone().into_tensor();
            let whole = whole.as_slice::<f32>().unwrap();
            for (at, count) in [(0, PART), (PART, PART), (2 * PART, 7), (PART, PART + 7), (0, 0)] {
                let mut values = vec![5.0; count];
                received.copy_part_to(at, &mut values).unwrap();
                assert_eq!(values, whole[at..at + count], "{format}, {count} from {at}");
                received.add_part_to(at, &mut values).unwrap();
                let twice: Vec<f32> =
                    whole[at..at + count].iter().map(|value| 2.0 * value).collect();
                assert_eq!(values, twice);
            }
            for (at, count) in
                [(1, PART), (PART, 3), (2 * PART, 8), (usize::MAX - 1, 4), (3 * PART, 1)]
            {
                let mut values = vec![5.0; count];
                received.copy_part_to(at, &mut values).unwrap_err();
                received.add_part_to(at, &mut values).unwrap_err();
                assert_eq!(values, vec![5.0; count], "{format}, {count} from {at}");
            }
        }
    }

    #[test]
    fn slices_that_were_encoded_elsewhere_become_a_tensor_without_a_copy() {
        let values = [0.25f32, 4.0];
        for format in WireFormat::ALL {
            let mut buffer = PoolBuffer::unpooled(format.encoded_len(2));
            format.encode_into(&values, &mut buffer).unwrap();
            let data = buffer.freeze();
            let tensor = WireTensor::from_bytes(format, &[1, 2], data.clone()).unwrap();
            assert_eq!(tensor.bytes().as_ptr(), data.as_ptr());
            let expected = HostTensor::from_vec(values.to_vec(), &[1, 2]).unwrap();
            assert_eq!(tensor, expected.encoded(format));
            for shape in [&[3][..], &[], &[0, usize::MAX], &[usize::MAX, usize::MAX], &[1; 17]] {
                WireTensor::from_bytes(format, shape, data.clone()).unwrap_err();
            }
        }
    }

    #[test]
    fn a_message_in_a_log_shows_format_and_shape_and_no_elements() {
        let tensor = column(vec![1.0; 3]);
        let shown = |format| format!("{:?}", tensor.encoded(format));
        assert_eq!(shown(WireFormat::F32), "WireTensor(f32 [3, 1])");
        assert_eq!(shown(WireFormat::Int8), "WireTensor(f32 as int8 [3, 1])");
    }
}
