//! Where samples come from.
//!
//! A [`Source`] is a number of samples, each an input array and a target array. Those built in are a file each; a
//! user's own is a [`CustomSource`], registered by name in [`Sources`]. What travels in a job is its
//! description ([`SourceSpec`]); it is opened on the nodes of the data loader and of the trainer.
//!
//! | source | samples |
//! | --- | --- |
//! | [`Idx`] | images with `u8` labels, as MNIST |
//! | [`Csv`] | rows of a table |
//! | [`Npy`], [`Npz`] | arrays of NumPy |
//! | [`Safetensors`] | arrays of a safetensors file |
//! | [`Tokens`] | windows of a memory-mapped file of tokens |
//! | [`Text`] | windows or lines of a text, through a tokenizer |
//! | [`CustomSource`] | whatever a user's binary knows |

mod arrays;
mod csv;
mod custom;
mod files;
mod idx;
mod images;
mod npy;
mod safetensors;
mod text;
mod tokens;
mod windows;

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{DataError, Field, Sample, Sources, Split};

pub use arrays::Arrays;
#[cfg(feature = "torch")]
pub(crate) use arrays::integers;
pub use csv::Csv;
pub use custom::{Custom, CustomSource};
pub(super) use custom::{OpenCustom, arguments, open as open_custom, parsed};
pub use files::MAX_BYTES;
pub use idx::{Idx, IdxDataset, IdxError};
pub use images::{Images, ImagesError};
pub use npy::{Npy, Npz};
pub use safetensors::Safetensors;
pub use text::{Alphabet, Text};
pub use tokens::{TokenWidth, Tokens};

/// A number of samples, in an order of its own that never changes.
///
/// It is asked by several threads at the same time, and may block.
pub trait Source: Send + Sync + 'static {
    /// Number of samples, at least 1.
    fn len(&self) -> usize;

    /// Whether there are none: such a source is refused.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What each sample's input is.
    fn input(&self) -> Field;

    /// What each sample's target is.
    fn target(&self) -> Field;

    /// One sample. It is checked against what [`input`](Self::input) and [`target`](Self::target) say.
    ///
    /// # Errors
    /// [`DataError::NoSample`], or what keeps it from being read.
    fn sample(&self, index: usize) -> Result<Sample, DataError>;
}

/// Describes a source: data that travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SourceSpec {
    /// See [`Idx`].
    Idx(Idx),
    /// See [`Csv`].
    Csv(Csv),
    /// See [`Npy`].
    Npy(Npy),
    /// See [`Npz`].
    Npz(Npz),
    /// See [`Safetensors`].
    Safetensors(Safetensors),
    /// See [`Tokens`].
    Tokens(Tokens),
    /// See [`Text`].
    Text(Text),
    /// See [`Custom`].
    Custom(Custom),
}

/// Which contiguous part of a source: a share of it, from its start or its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Part {
    /// All of it.
    All,
    /// All but the last share.
    First(f64),
    /// The last share, which is above 0 and below 1.
    Last(f64),
}

impl Part {
    /// The indices of this part among `0..len`. A share is rounded to the nearest number.
    pub(super) fn of(self, len: usize) -> std::ops::Range<usize> {
        let cut = |share: f64| len - ((len as f64 * share).round() as usize).min(len);
        match self {
            Part::All => 0..len,
            Part::First(share) => 0..cut(share),
            Part::Last(share) => cut(share)..len,
        }
    }
}

impl SourceSpec {
    /// Opens it; blocks.
    pub(super) fn open(
        &self,
        split: Split,
        sources: &Sources,
    ) -> Result<Arc<dyn Source>, DataError> {
        Ok(match self {
            SourceSpec::Idx(idx) => Arc::new(idx.open(split)?),
            SourceSpec::Csv(csv) => Arc::new(csv.open()?),
            SourceSpec::Npy(npy) => Arc::new(npy.open()?),
            SourceSpec::Npz(npz) => Arc::new(npz.open()?),
            SourceSpec::Safetensors(file) => Arc::new(file.open()?),
            SourceSpec::Tokens(tokens) => Arc::new(tokens.open(Part::All)?),
            SourceSpec::Text(text) => text.open(Part::All)?,
            SourceSpec::Custom(custom) => sources.open(custom, split)?,
        })
    }

    /// Opens a part of it where that is more than some of its samples: windows of a text do not reach from one part
    /// into the other. `None` for the others.
    pub(super) fn open_part(&self, part: Part) -> Option<Result<Arc<dyn Source>, DataError>> {
        match self {
            SourceSpec::Tokens(tokens) => {
                Some(tokens.open(part).map(|source| Arc::new(source) as Arc<dyn Source>))
            }
            SourceSpec::Text(text) if text.has_windows() => Some(text.open(part)),
            _ => None,
        }
    }

    /// Whether it knows training and test samples apart by itself.
    pub(super) fn has_both_splits(&self) -> bool {
        matches!(self, SourceSpec::Idx(_) | SourceSpec::Custom(_))
    }
}

macro_rules! sources {
    ($($name:ident),*) => {$(
        impl From<$name> for SourceSpec {
            fn from(source: $name) -> Self {
                SourceSpec::$name(source)
            }
        }
    )*};
}
sources!(Idx, Csv, Npy, Npz, Safetensors, Tokens, Text, Custom);

/// How errors call a path.
fn name_of(path: &Path) -> String {
    path.display().to_string()
}
