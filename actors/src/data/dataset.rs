//! An opened data set: samples, transformed and put into batches.

use std::{ops::Range, sync::Arc};

use super::{
    Batch, DataError, Field, Sample,
    collate::{Column, Padding, collate},
    source::Source,
    transform::{AnyTransform, draws},
};

/// One part of a data set, opened. Cloning it copies nothing.
#[derive(Clone)]
pub struct Dataset {
    source: Arc<dyn Source>,
    chosen: Chosen,
    transforms: Arc<[Box<dyn AnyTransform>]>,
    columns: Arc<(Column, Column)>,
}

/// Which of a source's samples.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Chosen {
    Range(Range<usize>),
    List(Arc<[u32]>),
}

impl Chosen {
    fn len(&self) -> usize {
        match self {
            Chosen::Range(range) => range.len(),
            Chosen::List(list) => list.len(),
        }
    }

    fn get(&self, index: usize) -> Option<usize> {
        match self {
            Chosen::Range(range) => range.clone().nth(index),
            Chosen::List(list) => list.get(index).map(|one| *one as usize),
        }
    }

    /// The first `samples` of them.
    pub(super) fn first(self, samples: usize) -> Self {
        match self {
            Chosen::Range(Range { start, end }) => {
                Chosen::Range(start..end.min(start.saturating_add(samples)))
            }
            Chosen::List(list) => {
                Chosen::List(list.get(..samples).map_or_else(|| list.clone(), Arc::from))
            }
        }
    }
}

/// Whose random numbers a sample's transforms get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// The job's seed.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
}

impl Dataset {
    pub(super) fn new(
        source: Arc<dyn Source>,
        chosen: Chosen,
        transforms: Vec<Box<dyn AnyTransform>>,
        columns: (Column, Column),
    ) -> Result<Self, DataError> {
        if u32::try_from(chosen.len()).is_err() {
            return Err(DataError::Spec(format!(
                "{} samples are too many: {} are the most",
                chosen.len(),
                u32::MAX
            )));
        }
        Ok(Dataset { source, chosen, transforms: transforms.into(), columns: columns.into() })
    }

    /// All samples of a source as they are, each of one length.
    ///
    /// # Errors
    /// A source without samples, or with samples of different lengths.
    pub fn of(source: impl Source) -> Result<Self, DataError> {
        let column = |what, field| Column::new(what, field, Padding::None, |with| with);
        let columns = (column("input", source.input())?, column("target", source.target())?);
        match source.len() {
            0 => Err(DataError::Empty { at: "the source".to_owned() }),
            len => Self::new(Arc::new(source), Chosen::Range(0..len), Vec::new(), columns),
        }
    }

    /// Number of samples, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// What each input is in a batch: [`Field::ANY`] where it is padded to the longest of its slot.
    pub fn input(&self) -> Field {
        self.columns.0.padded()
    }

    /// What each target is in a batch.
    pub fn target(&self) -> Field {
        self.columns.1.padded()
    }

    /// One sample, transformed and not padded.
    ///
    /// # Errors
    /// [`DataError::NoSample`], or what keeps it from being read or transformed.
    pub fn sample(&self, index: usize, pass: Pass) -> Result<Sample, DataError> {
        let missing = DataError::NoSample { index, samples: self.len() };
        let mut sample = self.source.sample(self.chosen.get(index).ok_or(missing)?)?;
        if !self.transforms.is_empty() {
            let mut draws = draws(pass.seed, pass.epoch, index as u64);
            for transform in self.transforms.iter() {
                sample = transform.apply(sample, &mut draws)?;
            }
        }
        Ok(sample)
    }

    /// The samples `indices`, in that order, padded where they need be.
    ///
    /// # Errors
    /// As [`sample`](Self::sample); a sample that is not as its source said.
    pub fn batch(
        &self,
        indices: impl IntoIterator<Item = u32>,
        pass: Pass,
    ) -> Result<Batch, DataError> {
        let indices = indices.into_iter().map(|index| index as usize);
        let samples = indices.map(|index| Ok((index, self.sample(index, pass)?)));
        let (inputs, targets) = &*self.columns;
        collate((inputs, targets), samples.collect::<Result<_, DataError>>()?)
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dataset({} samples: {} → {})", self.len(), self.input(), self.target())
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
