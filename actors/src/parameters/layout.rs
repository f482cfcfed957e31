//! Where each parameter stands: named tensors in a fixed order make one flat space of `f32`, cut into chunks, and
//! each chunk belongs to one shard.

use std::collections::HashSet;
use std::ops::Range;

use footlight_runtime::tensor::WireFormat;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most floats of a chunk: 4 MiB.
pub const MAX_CHUNK: usize = (4 << 20) / size_of::<f32>();

/// Chunks begin at multiples of so many floats, where the space is large enough for that: of those that share a scale as
/// int8, so that a number is rounded alike however many shards there are.
pub const ALIGNMENT: usize = WireFormat::PART;

/// …or, where it is not, at multiples of so many (64 bytes: a cache line), unless they are smaller still.
pub const GROUP: usize = 16;

/// The flat space of a model's parameters, in chunks for a number of shards.
///
/// All chunks have the same size to within [`ALIGNMENT`] floats, none is empty, none is larger than [`MAX_CHUNK`],
/// and each shard has the same number of them: chunk `i` belongs to shard `i % shards`, so that neighbours are worked
/// on at the same time. Two layouts with the same parameters and shards are equal, wherever they were computed.
///
/// ```
/// # use footlight_actors::parameters::layout::Layout;
/// let layout = Layout::new([("bias", vec![10]), ("weight", vec![10, 784])], 2)?;
/// assert_eq!(layout.len(), 7850);
/// assert_eq!(layout.parameters()[1].range, 10..7850);
/// assert_eq!((layout.chunk(0), layout.chunk(1), layout.chunk(2)), (Some(0..3072), Some(3072..7850), None));
/// # Ok::<(), footlight_actors::parameters::layout::LayoutError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Layout {
    parameters: Vec<Parameter>,
    shards: usize,
    len: usize,
    chunks: usize,
}

/// One parameter's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the model, such as `conv1.weight`.
    pub name: String,
    /// Its shape. A scalar has none.
    pub shape: Vec<usize>,
    /// Where its elements stand in the flat space, row after row.
    pub range: Range<usize>,
}

/// What travels; the rest is computed anew where it arrives.
#[derive(Serialize, Deserialize)]
struct Parts {
    parameters: Vec<(String, Vec<usize>)>,
    shards: usize,
}

/// Why parameters make no layout.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// No parameter has an element.
    #[error("the model has no parameters to train")]
    Empty,
    /// There are no shards, or so many that some would have nothing to do.
    #[error("{len} parameters cannot be shared by {shards} shards: name 1 to {len}")]
    Shards {
        /// Number of shards asked for.
        shards: usize,
        /// Number of floats.
        len: usize,
    },
    /// Two parameters have one name.
    #[error("two parameters are named {name:?}")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// The shapes are beyond what can be addressed.
    #[error(
        "the parameters up to {name:?} of shape {shape:?} have more elements than can be addressed"
    )]
    TooLarge {
        /// The parameter at which it is too much.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
}

impl Layout {
    /// Lays out parameters (name and shape) in the order given, for `shards` shards.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new<N: Into<String>>(
        parameters: impl IntoIterator<Item = (N, Vec<usize>)>,
        shards: usize,
    ) -> Result<Self, LayoutError> {
        let mut names = HashSet::new();
        let mut placed = Vec::new();
        let mut len = 0usize;
        for (name, shape) in parameters {
            let name = name.into();
            if !names.insert(name.clone()) {
                return Err(LayoutError::Duplicate { name });
            }
            let end = elements(&shape)
                .and_then(|elements| len.checked_add(elements))
                .filter(|end| *end <= LARGEST);
            let Some(end) = end else {
                return Err(LayoutError::TooLarge { name, shape });
            };
            placed.push(Parameter { name, shape, range: len..end });
            len = end;
        }
        if len == 0 {
            return Err(LayoutError::Empty);
        }
        if shards == 0 || shards > len {
            return Err(LayoutError::Shards { shards, len });
        }
        // Rounding a boundary can make a chunk larger by less than ALIGNMENT.
        let needed = len.div_ceil(MAX_CHUNK - ALIGNMENT);
        Ok(Self { parameters: placed, shards, len, chunks: needed.div_ceil(shards) * shards })
    }

    /// The parameters, in the order of the flat space.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of floats, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a layout is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of shards, at least 1.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// Number of chunks: a multiple of [`Layout::shards`].
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// A chunk's place in the flat space, in floats. `None` if there is no such chunk.
    pub fn chunk(&self, chunk: usize) -> Option<Range<usize>> {
        (chunk < self.chunks).then(|| self.boundary(chunk)..self.boundary(chunk + 1))
    }

    /// The shard that a chunk belongs to. `None` if there is no such chunk.
    pub fn shard_of(&self, chunk: usize) -> Option<usize> {
        (chunk < self.chunks).then_some(chunk % self.shards)
    }

    /// A shard's chunks, in ascending order. None if there is no such shard.
    pub fn chunks_of(&self, shard: usize) -> impl Iterator<Item = usize> + use<> {
        let end = if shard < self.shards { self.chunks } else { 0 };
        (shard..end).step_by(self.shards)
    }

    fn boundary(&self, chunk: usize) -> usize {
        if chunk == self.chunks {
            return self.len;
        }
        let even = (self.len as u128 * chunk as u128 / self.chunks as u128) as usize;
        let size = self.len / self.chunks;
        let unit = [ALIGNMENT, GROUP].into_iter().find(|unit| size >= *unit).unwrap_or(1);
        even - even % unit
    }
}

/// No allocation is larger than `isize::MAX` bytes.
const LARGEST: usize = isize::MAX as usize / size_of::<f32>();

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |elements, &dimension| elements.checked_mul(dimension))
}

impl TryFrom<Parts> for Layout {
    type Error = LayoutError;

    fn try_from(parts: Parts) -> Result<Self, LayoutError> {
        Self::new(parts.parameters, parts.shards)
    }
}

impl From<Layout> for Parts {
    fn from(layout: Layout) -> Self {
        let parameters = layout
            .parameters
            .into_iter()
            .map(|parameter| (parameter.name, parameter.shape))
            .collect();
        Self { parameters, shards: layout.shards }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(len: usize, shards: usize) -> Result<Layout, LayoutError> {
        Layout::new([("all", vec![len])], shards)
    }

    #[test]
    fn lenet_on_two_shards_is_two_chunks() {
        let layout = flat(61_706, 2).unwrap();
        assert_eq!(layout.chunks(), 2);
        assert_eq!(layout.chunk(0), Some(0..30_720));
        assert_eq!(layout.chunk(1), Some(30_720..61_706));
    }

    #[test]
    fn a_large_model_is_cut_at_four_mebibytes() {
        let layout = flat(100_000_000, 3).unwrap();
        assert_eq!(layout.chunks(), 96);
        assert!((0..96).all(|chunk| layout.chunk(chunk).unwrap().len() <= MAX_CHUNK));
    }

    #[test]
    fn parameters_follow_one_another_and_scalars_and_empty_ones_have_their_place() {
        let shapes = [("a", vec![2, 3]), ("b", vec![]), ("c", vec![0, 5]), ("d", vec![1])];
        let layout = Layout::new(shapes, 1).unwrap();
        let ranges: Vec<_> =
            layout.parameters().iter().map(|parameter| parameter.range.clone()).collect();
        assert_eq!(ranges, [0..6, 6..7, 7..7, 7..8]);
    }

    #[test]
    fn what_makes_no_layout_is_refused() {
        assert_eq!(flat(0, 1), Err(LayoutError::Empty));
        assert_eq!(Layout::new::<&str>([], 1), Err(LayoutError::Empty));
        assert_eq!(flat(5, 0), Err(LayoutError::Shards { shards: 0, len: 5 }));
        assert_eq!(flat(5, 6), Err(LayoutError::Shards { shards: 6, len: 5 }));
        assert!(matches!(
            Layout::new([("a", vec![1]), ("a", vec![1])], 1),
            Err(LayoutError::Duplicate { .. })
        ));
        assert!(matches!(
            Layout::new([("a", vec![usize::MAX, 2])], 1),
            Err(LayoutError::TooLarge { .. })
        ));
        let half = usize::MAX / 8;
        assert!(matches!(
            Layout::new([("a", vec![half]), ("b", vec![half])], 1),
            Err(LayoutError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_layout_that_arrives_is_checked_again() {
        let layout = Layout::new([("a", vec![7, 9]), ("b", vec![])], 3).unwrap();
        let text = serde_json::to_string(&layout).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), layout);
        let text = text.replace("\"shards\":3", "\"shards\":65");
        assert!(
            serde_json::from_str::<Layout>(&text).unwrap_err().to_string().contains("65 shards")
        );
    }

    proptest! {
        #[test]
        fn chunks_cover_the_space_and_every_shard_has_as_many(len in 1..40_000_000usize, shards in 1..50usize) {
            prop_assume!(shards <= len);
            let layout = flat(len, shards).unwrap();
            let mut next = 0;
            for chunk in 0..layout.chunks() {
                let range = layout.chunk(chunk).unwrap();
                prop_assert_eq!(range.start, next);
                prop_assert!(!range.is_empty() && range.len() <= MAX_CHUNK);
                for unit in [ALIGNMENT, GROUP] {
                    prop_assert!(len < unit * layout.chunks() || range.start.is_multiple_of(unit));
                }
                next = range.end;
            }
            prop_assert_eq!(next, len);
            for shard in 0..shards {
                let chunks: Vec<_> = layout.chunks_of(shard).collect();
                prop_assert_eq!(chunks.len(), layout.chunks() / shards);
                prop_assert!(chunks.iter().all(|chunk| layout.shard_of(*chunk) == Some(shard)));
            }
            prop_assert_eq!(layout.chunks_of(shards).count(), 0);
        }

        #[test]
        fn no_shape_makes_it_panic(shapes in prop::collection::vec(prop::collection::vec(any::<usize>(), 0..4), 0..4),
            shards: usize) {
            let named = shapes.into_iter().enumerate().map(|(i, shape)| (i.to_string(), shape));
            if let Ok(layout) = Layout::new(named, shards) {
                prop_assert!(layout.chunk(0).is_some());
                prop_assert!(layout.chunk(layout.chunks() - 1).is_some());
                prop_assert!(layout.chunk(layout.chunks()).is_none());
            }
        }
    }
}
