//! Sources and transforms by name: a job names them, and each node builds them from what its own binary registered.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    DataError, Split,
    source::{Custom, CustomSource, OpenCustom, Source, open_custom},
    transform::{AnyTransform, BuildTransform, Transform, build},
};

/// A user's own sources and transforms. Each node owns one of these, given by
/// [`NodeBuilder::extension`](footlight_cluster::NodeBuilder::extension) or [`crate::sources`]; a node without one knows
/// those that are built in.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    sources: BTreeMap<&'static str, OpenCustom>,
    transforms: BTreeMap<&'static str, BuildTransform>,
}

impl Sources {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a source.
    ///
    /// # Errors
    /// [`DataError::Duplicate`] if another one has its name.
    pub fn source<S: CustomSource>(&mut self) -> Result<&mut Self, DataError> {
        if self.sources.insert(S::NAME, open_custom::<S>).is_some() {
            return Err(DataError::Duplicate { what: "source", name: S::NAME });
        }
        Ok(self)
    }

    /// Adds a transform.
    ///
    /// # Errors
    /// [`DataError::Duplicate`] if another one has its name.
    pub fn transform<T: Transform>(&mut self) -> Result<&mut Self, DataError> {
        if self.transforms.insert(T::NAME, build::<T>).is_some() {
            return Err(DataError::Duplicate { what: "transform", name: T::NAME });
        }
        Ok(self)
    }

    pub(super) fn open(&self, spec: &Custom, split: Split) -> Result<Arc<dyn Source>, DataError> {
        let open = find("source", &spec.name, &self.sources)?;
        open(&spec.args, split)
    }

    pub(super) fn build(&self, name: &str, args: &str) -> Result<Box<dyn AnyTransform>, DataError> {
        let build = find("transform", name, &self.transforms)?;
        build(args)
    }
}

fn find<F: Copy>(
    what: &'static str,
    name: &str,
    among: &BTreeMap<&'static str, F>,
) -> Result<F, DataError> {
    among.get(name).copied().ok_or_else(|| DataError::Unknown {
        what,
        name: name.to_owned(),
        known: among.keys().copied().collect(),
    })
}
