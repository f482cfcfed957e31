//! Training data: what it is, in which order it is seen, and who works on which part of it.
//!
//! ```text
//! DataSpec ── open ──► Source ─► transforms ─► collate ─► Dataset     (loader: training, trainer: test samples)
//! Leases: which slot next ─► order, Batches: which samples ─► Preparer: their arrays ─► SlotWork to a worker
//! ```
//!
//! - [`source`]: where samples come from, a file each; [`Source`] is what a user implements.
//! - [`DataSpec`] describes the data of a job, and travels; [`Dataset`] is one part of it, opened.
//! - [`transform`], `collate`: what is done to a sample, and how samples become a batch.
//! - [`mod@order`] puts the samples into one order for each (seed, epoch), and cuts that order into batches and each
//!   batch into slots ([`Batches`]).
//! - [`leases`] hands the slots out to workers, in order, each to one living worker ([`Leases`]).
//! - `prepare` makes slots ahead of who asks, within bounds ([`Prefetch`]).
//! - [`loader`] is the actor around them ([`DataLoader`]).

mod collate;
mod dataset;
mod error;
pub mod leases;
pub mod loader;
pub mod order;
mod prepare;
mod registry;
mod sample;
pub mod source;
mod spec;
pub mod transform;

pub use collate::IGNORE;
pub use dataset::{Dataset, Pass};
pub use error::DataError;
pub use leases::{LeaseError, Leases, Work};
pub use loader::{DataLoader, LoaderSpec};
pub use order::{Batches, BatchesError, order};
pub use prepare::Prefetch;
pub use registry::Sources;
#[cfg(feature = "torch")]
pub(crate) use sample::rows;
pub use sample::{Batch, Field, Sample, Split};
#[cfg(feature = "torch")]
pub(crate) use source::integers;
pub use source::{
    Alphabet, Arrays, Csv, Custom, CustomSource, Idx, IdxDataset, IdxError, Images, ImagesError,
    Npy, Npz, Safetensors, Source, SourceSpec, Text, Tokens,
};
pub use spec::DataSpec;
pub use transform::{Draws, Transform};
