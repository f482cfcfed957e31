//! Which data a job trains on, and how it is evaluated: data that travels.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    DataError, Dataset, Sources, Split,
    collate::{Column, IGNORE, Padding},
    dataset::Chosen,
    order::order,
    prepare::Prefetch,
    source::{Idx, Part, Source, SourceSpec},
    transform::{Transform, TransformSpec},
};

/// Which data a job trains on. It is opened on the node where the loader runs, and on the trainer's for the test part:
/// paths are theirs. Addresses of the kind `s3://bucket/key` do for every source (with the feature `s3`; the environment
/// says how to reach it, as for checkpoints).
///
/// ```
/// # use footlight_actors::data::{Csv, DataSpec, Tokens};
/// let digits = DataSpec::idx("data/mnist").limit(10_000);
/// let iris = DataSpec::new(Csv::at("iris.csv").label("species").classes(3))
///     .hold_out(0.2)
///     .normalise([5.8, 3.1, 3.8, 1.2], [0.8, 0.4, 1.8, 0.8]);
/// let text = DataSpec::new(Tokens::u16("corpus.tokens").block(64)).hold_out_last(0.1);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[must_use]
pub struct DataSpec {
    source: SourceSpec,
    test: Test,
    limit: Option<u32>,
    transforms: Vec<TransformSpec>,
    padding: Padding,
    prefetch: Prefetch,
}

/// Where the test samples come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Test {
    /// Nobody has said: the source itself, where it knows.
    OfSource,
    /// Another source.
    Other(SourceSpec),
    /// Some of the training samples, chosen at random: the share and the seed.
    Random(f64, u64),
    /// The last of the training samples.
    Last(f64),
}

impl DataSpec {
    /// The samples of this source. Say which are for evaluating: [`test`](Self::test), [`hold_out`](Self::hold_out) or
    /// [`hold_out_last`](Self::hold_out_last), unless the source knows by itself (IDX, and a user's own).
    pub fn new(source: impl Into<SourceSpec>) -> Self {
        DataSpec {
            source: source.into(),
            test: Test::OfSource,
            limit: None,
            transforms: Vec::new(),
            padding: Padding::None,
            prefetch: Prefetch::default(),
        }
    }

    /// A folder with the four IDX files of MNIST or of a set like it.
    pub fn idx(dir: impl Into<PathBuf>) -> Self {
        DataSpec::new(Idx::at(dir))
    }

    /// Evaluates on the samples of another source.
    pub fn test(mut self, source: impl Into<SourceSpec>) -> Self {
        self.test = Test::Other(source.into());
        self
    }

    /// Keeps this share of the samples, above 0 and below 1, from training and evaluates on them. Which they are is
    /// chosen at random, always the same.
    pub fn hold_out(mut self, share: f64) -> Self {
        self.test = Test::Random(share, 0);
        self
    }

    /// Keeps the last of the samples, this share of them, from training and evaluates on them. For what is in the order
    /// of time, and texts: windows don't reach from one part into the other.
    pub fn hold_out_last(mut self, share: f64) -> Self {
        self.test = Test::Last(share);
        self
    }

    /// Only the first `samples` training samples.
    pub fn limit(mut self, samples: u32) -> Self {
        self.limit = Some(samples);
        self
    }

    /// Makes inputs `f32`, takes the mean away and divides by the deviation: one of each for all elements, or one for
    /// each of the inputs' last axis (the columns of a table, say).
    pub fn normalise(
        mut self,
        mean: impl IntoIterator<Item = f32>,
        deviation: impl IntoIterator<Item = f32>,
    ) -> Self {
        let (mean, deviation) = (mean.into_iter().collect(), deviation.into_iter().collect());
        self.transforms.push(TransformSpec::Normalise { mean, deviation });
        self
    }

    /// Sends each sample through a transform of a user's own; several in the order in which they are named.
    ///
    /// # Errors
    /// Arguments that JSON can't tell.
    pub fn transform<T: Transform>(mut self, args: &T::Args) -> Result<Self, DataError> {
        self.transforms.push(TransformSpec::custom::<T>(args)?);
        Ok(self)
    }

    /// Cuts samples of unequal length after so many elements, and their targets where these belong to the elements.
    pub fn truncate(mut self, elements: usize) -> Self {
        self.transforms.push(TransformSpec::Truncate(elements));
        self
    }

    /// Pads inputs of unequal length with this number, each to the longest of its slot. Targets that belong to the
    /// elements are padded with [`IGNORE`], which the loss leaves out.
    pub fn pad_to_longest(mut self, with: f64) -> Self {
        self.padding = Padding::Longest(with);
        self
    }

    /// Pads inputs of unequal length with this number, each to this many elements; longer ones are refused, unless they
    /// are [truncated](Self::truncate). Targets as in [`pad_to_longest`](Self::pad_to_longest).
    pub fn pad_to(mut self, elements: usize, with: f64) -> Self {
        self.padding = Padding::To(elements, with);
        self
    }

    /// How far the loader prepares slots ahead of the workers that ask. Default: 8 slots and 256 MiB.
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.prefetch = prefetch;
        self
    }

    pub(super) fn prefetched(&self) -> Prefetch {
        self.prefetch
    }

    /// # Errors
    /// What can't work whatever the files hold.
    pub fn validate(&self) -> Result<(), DataError> {
        let wrong = |why: &str| Err(DataError::Spec(why.to_owned()));
        match self.test {
            Test::OfSource if !self.source.has_both_splits() => {
                wrong("say which samples are for evaluating: test, hold_out or hold_out_last")
            }
            Test::Random(share, _) | Test::Last(share) if !(share > 0.0 && share < 1.0) => {
                wrong("the share that is held out is above 0 and below 1")
            }
            _ if self.limit == Some(0) => {
                wrong("a limit of no samples leaves nothing to learn from")
            }
            _ => Ok(()),
        }
    }

    /// Opens a split; blocks on the file system and on object stores. For data without a user's own sources or
    /// transforms.
    ///
    /// # Errors
    /// What is wrong with the description or the files.
    pub fn open(&self, split: Split) -> Result<Dataset, DataError> {
        self.open_with(split, &Sources::new())
    }

    /// As [`open`](Self::open), with what the binary has registered.
    ///
    /// # Errors
    /// As there; [`DataError::Unknown`].
    pub fn open_with(&self, split: Split, sources: &Sources) -> Result<Dataset, DataError> {
        self.validate()?;
        let (source, chosen) = self.chosen(split, sources)?;
        let chosen = match self.limit {
            Some(limit) if split == Split::Train => chosen.first(limit as usize),
            _ => chosen,
        };
        let mut transforms = Vec::new();
        let (mut input, mut target) = (source.input(), source.target());
        for spec in &self.transforms {
            if let Some(built) = spec.build(split, sources)? {
                (input, target) = built.fields(input, target)?;
                transforms.push(built);
            }
        }
        let inputs = Column::new("input", input, self.padding, |with| with)?;
        let targets = Column::new("target", target, self.padding, |_| IGNORE as f64)?;
        Dataset::new(source, chosen, transforms, (inputs, targets))
    }

    fn chosen(
        &self,
        split: Split,
        sources: &Sources,
    ) -> Result<(Arc<dyn Source>, Chosen), DataError> {
        let all = |source: Arc<dyn Source>| match source.len() {
            0 => Err(DataError::Empty { at: format!("the {split} part") }),
            len => Ok((source, Chosen::Range(0..len))),
        };
        let none =
            |len| DataError::Spec(format!("of {len} samples none are left for the {split} part"));
        match (&self.test, split) {
            (Test::OfSource, _) | (Test::Other(_), Split::Train) => {
                all(self.source.open(split, sources)?)
            }
            (Test::Other(other), Split::Test) => all(other.open(split, sources)?),
            (Test::Last(share), _) => {
                let part = match split {
                    Split::Train => Part::First(*share),
                    Split::Test => Part::Last(*share),
                };
                if let Some(source) = self.source.open_part(part) {
                    return all(source?);
                }
                let source = self.source.open(Split::Train, sources)?;
                let range = part.of(source.len());
                if range.is_empty() {
                    return Err(none(source.len()));
                }
                Ok((source, Chosen::Range(range)))
            }
            (Test::Random(share, seed), _) => {
                let source = self.source.open(Split::Train, sources)?;
                let len = u32::try_from(source.len()).map_err(|_| {
                    DataError::Spec(format!("{} samples are too many", source.len()))
                })?;
                let mixed = order(*seed, u64::MAX, len);
                let range = match split {
                    Split::Train => Part::First(*share).of(mixed.len()),
                    Split::Test => Part::Last(*share).of(mixed.len()),
                };
                let mut list = mixed.get(range).unwrap_or_default().to_vec();
                if list.is_empty() {
                    return Err(none(source.len()));
                }
                list.sort_unstable();
                Ok((source, Chosen::List(list.into())))
            }
        }
    }
}
