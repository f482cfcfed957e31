//! How a tensor stands in a message: its description among the encoded bytes, its data beside
//! them as a segment of its own.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};

use super::{DType, HostTensor, MAX_RANK, TensorError, WireFormat, WireTensor};
use crate::codec::scope;

/// What is encoded in the tensor's place. Its fields are part of the wire format.
#[derive(Serialize, Deserialize)]
#[serde(rename = "HostTensor")]
struct Description {
    /// [`DType::code`].
    dtype: u8,
    /// The length of each axis.
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    /// Which of the message's segments holds the data.
    segment: u32,
}

impl Serialize for HostTensor {
    /// Hands the data to the message's segments and writes the description.
    ///
    /// # Errors
    /// Outside the codec's encoding scope, or when the scope takes no more segments.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let segment =
            scope::put_segment(self.bytes().clone()).map_err(serde::ser::Error::custom)?;
        let shape = self.shape().iter().map(|&axis| axis as u64).collect();
        Description { dtype: self.dtype().code(), shape, segment }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for HostTensor {
    /// Reads the description and takes the data from the message's segments.
    ///
    /// # Errors
    /// Outside the codec's decoding scope, for a segment that isn't there, and for a description
    /// that doesn't fit its segment.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Description { dtype, shape, segment } = Description::deserialize(deserializer)?;
        if scope::is_tracing() {
            // The values are made up, to learn the format; there is no message.
            return HostTensor::from_vec(Vec::<u8>::new(), &[0]).map_err(de::Error::custom);
        }
        let dtype = DType::from_code(dtype).map_err(de::Error::custom)?;
        let axes = axes(&shape)?;
        HostTensor::from_bytes(dtype, &axes, data(segment, dtype, &shape)?)
            .map_err(de::Error::custom)
    }
}

/// What is encoded in the place of a tensor in a format of its sender's choice. Its fields are part
/// of the wire format.
#[derive(Serialize, Deserialize)]
#[serde(rename = "WireTensor")]
struct FormatDescription {
    /// [`DType::code`] of the tensor.
    dtype: u8,
    /// [`WireFormat::code`] of the data.
    format: u8,
    /// The length of each axis.
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    /// Which of the message's segments holds the data.
    segment: u32,
}

impl Serialize for WireTensor {
    /// Hands the data to the message's segments and writes the description.
    ///
    /// # Errors
    /// Outside the codec's encoding scope, or when the scope takes no more segments.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let segment =
            scope::put_segment(self.bytes().clone()).map_err(serde::ser::Error::custom)?;
        let shape = self.shape().iter().map(|&axis| axis as u64).collect();
        let (dtype, format) = (self.dtype().code(), self.format().code());
        FormatDescription { dtype, format, shape, segment }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WireTensor {
    /// Reads the description and takes the data from the message's segments; converts nothing.
    ///
    /// # Errors
    /// Outside the codec's decoding scope, for a segment that isn't there, and for a description
    /// that doesn't fit its segment or names a format that its element type doesn't have.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let description = FormatDescription::deserialize(deserializer)?;
        let FormatDescription { dtype, format, shape, segment } = description;
        if scope::is_tracing() {
            return HostTensor::from_vec(Vec::<u8>::new(), &[0])
                .map(WireTensor::from)
                .map_err(de::Error::custom);
        }
        let dtype = DType::from_code(dtype).map_err(de::Error::custom)?;
        let format = WireFormat::from_code(format).map_err(de::Error::custom)?;
        let axes = axes(&shape)?;
        let data = data(segment, dtype, &shape)?;
        match (dtype, format) {
            (DType::F32, _) => WireTensor::from_bytes(format, &axes, data),
            (_, WireFormat::F32) => {
                HostTensor::from_bytes(dtype, &axes, data).map(WireTensor::from)
            }
            _ => Err(TensorError::Format { format, dtype }),
        }
        .map_err(de::Error::custom)
    }
}

/// A shape as this machine counts.
fn axes<E: de::Error>(shape: &[u64]) -> Result<Vec<usize>, E> {
    shape
        .iter()
        .map(|&axis| usize::try_from(axis))
        .collect::<Result<_, _>>()
        .map_err(|_| E::custom(format_args!("a tensor of shape {shape:?} is too large here")))
}

/// The segment of a tensor of this description.
fn data<E: de::Error>(segment: u32, dtype: DType, shape: &[u64]) -> Result<Bytes, E> {
    scope::take_segment(segment).map_err(|error| {
        E::custom(format_args!("a tensor of shape {shape:?} and type {dtype}: {error}"))
    })
}

/// Reads a shape, and stops at the first axis too many: a peer names its length.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Axes;

    impl<'de> Visitor<'de> for Axes {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a shape of at most {MAX_RANK} axes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut axes = Vec::new();
            while let Some(axis) = seq.next_element()? {
                if axes.len() == MAX_RANK {
                    return Err(de::Error::invalid_length(MAX_RANK + 1, &self));
                }
                axes.push(axis);
            }
            Ok(axes)
        }
    }

    deserializer.deserialize_seq(Axes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        System,
        codec::{Encoded, Parcel, encode},
        env::Env,
        id::{Incarnation, NodeId},
        message::fingerprint_of,
        registry::Types,
        tensor::BufferPool,
    };

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Gradients {
        step: u64,
        chunks: Vec<HostTensor>,
        bias: Option<HostTensor>,
    }

    async fn a_node() -> System {
        let env = Env::system().unwrap();
        System::start(NodeId(1), Incarnation(1), Types::default(), env).await.unwrap()
    }

    fn gradients() -> Gradients {
        let column = |values: Vec<f32>| {
            let rows = values.len();
            HostTensor::from_vec(values, &[rows, 1]).unwrap()
        };
        Gradients {
            step: 7,
            chunks: vec![column(vec![1.0, -2.5]), column(vec![])],
            bias: Some(column(vec![0.5; 1000])),
        }
    }

    /// Decodes a tensor of this description that comes with one segment of four bytes.
    async fn described(dtype: u8, shape: &[u64], segment: u32) -> String {
        let mut encoded = encode(&(dtype, shape, segment)).unwrap();
        encoded.segments = vec![Bytes::from_static(&[0; 4])];
        let parcel = Parcel::local(encoded, &a_node().await);
        parcel.decode::<HostTensor>().unwrap_err().to_string()
    }

    #[tokio::test]
    async fn tensors_anywhere_in_a_message_arrive_with_the_memory_that_carried_them() {
        let sent = gradients();
        let encoded = encode(&sent).unwrap();
        assert!(encoded.body.len() < 40, "no element stands among the encoded bytes");
        let carried: Vec<_> = encoded.segments.iter().map(|s| s.as_ptr() as usize).collect();
        let received: Gradients = Parcel::local(encoded, &a_node().await).decode().unwrap();
        assert_eq!(received, sent);
        let of = |tensor: &HostTensor| tensor.bytes().as_ptr() as usize;
        assert_eq!(of(&received.chunks[0]), carried[0]);
        assert_eq!(received.bias.as_ref().map(of), Some(carried[2]));
    }

    #[tokio::test]
    async fn a_segment_that_lies_askew_is_moved_to_where_it_can_be_viewed() {
        let Encoded { body, segments, streams } = encode(&gradients()).unwrap();
        let pool = BufferPool::default();
        let askew = segments.iter().map(|segment| {
            let mut buffer = pool.take(segment.len() + 1);
            buffer[1..].copy_from_slice(segment);
            buffer.freeze().slice(1..)
        });
        let encoded = Encoded { body, segments: askew.collect(), streams };
        let received: Gradients = Parcel::local(encoded, &a_node().await).decode().unwrap();
        assert_eq!(received, gradients());
    }

    #[tokio::test]
    async fn a_description_that_does_not_fit_its_segment_is_refused_with_what_is_wrong() {
        for (dtype, shape, segment, says) in [
            (1, &[2][..], 0, "shape [2] and type f32 takes 8 bytes, but there are 4"),
            (1, &[1], 1, "shape [1] and type f32: the message names part 1"),
            (99, &[1], 0, "99 is no element type"),
            (1, &[1 << 60, 1 << 60], 0, "larger than the address space"),
            (1, &[u64::MAX; 3], 0, "larger than the address space"),
            (9, &[1; 17], 0, "at most 16 axes"),
        ] {
            let error = described(dtype, shape, segment).await;
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_cut_short_or_lost_a_segment_is_an_error() {
        let node = a_node().await;
        let Encoded { body, segments, .. } = encode(&gradients()).unwrap();
        let decode = |body: Bytes, segments: Vec<Bytes>| {
            let encoded = Encoded { body, segments, ..Encoded::default() };
            Parcel::local(encoded, &node).decode::<Gradients>()
        };
        for cut in 0..body.len() {
            assert!(decode(body.slice(..cut), segments.clone()).is_err());
        }
        for left in 0..segments.len() {
            assert!(decode(body.clone(), segments[..left].to_vec()).is_err());
        }
        decode(body, segments).unwrap();
    }

    #[tokio::test]
    async fn the_shape_of_a_type_with_tensors_can_be_traced() {
        #[derive(Deserialize)]
        #[serde(rename = "Pair")]
        struct One {
            _a: HostTensor,
        }
        #[derive(Deserialize)]
        #[serde(rename = "Pair")]
        struct Two {
            _a: HostTensor,
            _b: Option<HostTensor>,
        }
        let node = a_node().await;
        // Types that can't be traced would have the same fingerprint.
        assert_ne!(fingerprint_of::<One>(&node), fingerprint_of::<Two>(&node));
    }

    #[tokio::test]
    async fn in_whatever_format_a_tensor_travels_it_arrives_as_what_its_sender_has() {
        let node = a_node().await;
        for shape in [&[][..], &[3], &[0, 5], &[1024], &[41, 25], &[2, 3, 700]] {
            let values = (0..shape.iter().product()).map(|at| (at as f32).cos()).collect();
            let tensor = HostTensor::from_vec::<f32>(values, shape).unwrap();
            for format in WireFormat::ALL {
                let sent = tensor.encoded(format);
                let encoded = encode(&sent).unwrap();
                assert!(encoded.body.len() < 20, "no element stands among the encoded bytes");
                assert_eq!(encoded.segments[0].len(), format.encoded_len(tensor.len()));
                let carried = encoded.segments[0].as_ptr();
                let received: WireTensor = Parcel::local(encoded, &node).decode().unwrap();
                assert_eq!((&received, received.format()), (&sent, format));
                assert_eq!(received.bytes().as_ptr(), carried, "and none is copied");
                let here = received.into_tensor_in(node.pool());
                assert_eq!(here, sent.into_tensor());
                assert_eq!((here.dtype(), here.shape()), (DType::F32, shape));
            }
        }
    }

    #[tokio::test]
    async fn elements_of_another_type_than_f32_keep_every_bit_in_every_format() {
        let node = a_node().await;
        for dtype in DType::ALL.into_iter().filter(|&dtype| dtype != DType::F32) {
            let noise = (0..6 * dtype.size()).map(|at| (at * 151 + 97) as u8);
            let truth = (0..6).map(|at| at % 2);
            let data: Bytes = if dtype == DType::Bool { truth.collect() } else { noise.collect() };
            let tensor = HostTensor::from_bytes(dtype, &[2, 3], data).unwrap();
            for format in WireFormat::ALL {
                let encoded = encode(&tensor.encoded(format)).unwrap();
                let received: WireTensor = Parcel::local(encoded, &node).decode().unwrap();
                assert_eq!(received.format(), WireFormat::F32);
                assert_eq!(received.into_tensor(), tensor, "{dtype} as {format}");
            }
        }
    }

    #[tokio::test]
    async fn a_format_that_does_not_fit_its_segment_is_refused_with_what_is_wrong() {
        let node = a_node().await;
        for (dtype, format, shape, segment, says) in [
            (1u8, 1u8, &[3u64][..], 0u32, "3 values as bf16 take 6 bytes, but there are 4"),
            (1, 2, &[1], 0, "1 values as fp16 take 2 bytes, but there are 4"),
            (1, 3, &[4], 0, "4 values as int8 take 8 bytes, but there are 4"),
            (1, 0, &[2], 0, "shape [2] and type f32 takes 8 bytes, but there are 4"),
            (1, 3, &[0, 7], 0, "0 values as int8 take 0 bytes, but there are 4"),
            (1, 1, &[2], 1, "shape [2] and type f32: the message names part 1"),
            (1, 4, &[2], 0, "4 is no format of elements"),
            (99, 1, &[2], 0, "99 is no element type"),
            (6, 1, &[2], 0, "elements of type i32 don't travel as bf16: only f32 does"),
            (1, 3, &[1 << 60, 1 << 60], 0, "larger than the address space"),
            (1, 1, &[u64::MAX; 3], 0, "larger than the address space"),
            (1, 1, &[1; 17], 0, "at most 16 axes"),
            (10, 0, &[4], 0, "only 0 and 1 are truth values"),
        ] {
            let mut encoded = encode(&(dtype, format, shape, segment)).unwrap();
            encoded.segments = vec![Bytes::from_static(&[7; 4])];
            let error = Parcel::local(encoded, &node).decode::<WireTensor>().unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn whatever_a_peer_sends_is_refused_or_is_a_tensor() {
        let node = a_node().await;
        let axis = || prop_oneof![0u64..5, Just(1030u64), any::<u64>()];
        let description =
            (prop_oneof![Just(1u8), 0u8..12], 0u8..5, prop::collection::vec(axis(), 0..4), 0u32..2);
        proptest!(|(description in description, fits in any::<bool>(), len in 0usize..5000)| {
            let (_, format, shape, _) = &description;
            let values = shape.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis));
            let exact = WireFormat::from_code(*format).ok().zip(values).map(|(format, values)| {
                format.encoded_len(usize::try_from(values).unwrap_or(usize::MAX))
            });
            let len = exact.filter(|&exact| fits && exact < 100_000).unwrap_or(len);
            let mut encoded = encode(&description).unwrap();
            encoded.segments = vec![vec![1; len].into()];
            if let Ok(received) = Parcel::local(encoded, &node).decode::<WireTensor>() {
                let shape = received.shape().to_vec();
                prop_assert!(received.bytes().len() == len);
                let tensor = received.into_tensor();
                prop_assert_eq!(tensor.shape(), shape);
            }
        });
        proptest!(|(body in prop::collection::vec(any::<u8>(), 0..40), len in 0usize..9)| {
            let segments = vec![vec![0; len].into(); 2];
            let encoded = Encoded { body: body.into(), segments, ..Encoded::default() };
            if let Ok(received) = Parcel::local(encoded, &node).decode::<Vec<WireTensor>>() {
                received.into_iter().for_each(|tensor| drop(tensor.into_tensor()));
            }
        });
    }

    #[tokio::test]
    async fn the_shape_of_a_type_with_tensors_in_formats_can_be_traced() {
        #[derive(Deserialize)]
        #[serde(rename = "Push")]
        struct AsItIs {
            _gradient: HostTensor,
        }
        #[derive(Deserialize)]
        #[serde(rename = "Push")]
        struct InAFormat {
            _gradient: WireTensor,
        }
        #[derive(Deserialize)]
        #[serde(rename = "Push")]
        struct WithTwo {
            _gradient: WireTensor,
            _bias: Option<WireTensor>,
        }
        let node = a_node().await;
        let fingerprints = [
            fingerprint_of::<AsItIs>(&node),
            fingerprint_of::<InAFormat>(&node),
            fingerprint_of::<WithTwo>(&node),
        ];
        // Types that can't be traced would have the same fingerprint.
        for (at, fingerprint) in fingerprints.iter().enumerate() {
            assert!(!fingerprints[..at].contains(fingerprint));
        }
    }

    #[test]
    fn outside_a_message_a_tensor_is_neither_encoded_nor_decoded() {
        let tensor = HostTensor::from_vec(vec![1u8], &[1]).unwrap();
        let config = bincode::config::standard();
        assert!(bincode::serde::encode_to_vec(&tensor, config).is_err());
        assert!(bincode::serde::decode_from_slice::<HostTensor, _>(&[9, 1, 1, 0], config).is_err());
        let tensor = WireTensor::from(tensor);
        assert!(bincode::serde::encode_to_vec(&tensor, config).is_err());
        let body = [9, 0, 1, 1, 0];
        assert!(bincode::serde::decode_from_slice::<WireTensor, _>(&body, config).is_err());
    }
}
