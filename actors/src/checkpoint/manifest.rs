//! The file that makes a checkpoint whole.
//!
//! ```text
//! {"format":2,"sha256":"…","manifest":{ … }}
//! ```
//!
//! The hash is that of the manifest's own text, so that no byte of it can become another unnoticed.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{JobState, store::sha256};
use crate::{
    data::loader::Description,
    parameters::{optimizer::OptimizerSpec, rule::LossScale},
};

/// The version of the format that is written here.
const FORMAT: u32 = 2;

/// What a checkpoint says of itself: `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The job's name.
    pub job: String,
    /// The model's name.
    pub model: String,
    /// The optimiser and its settings.
    pub optimizer: OptimizerSpec,
    /// What the order of the samples follows from.
    pub data: DataOf,
    /// Steps that were applied.
    pub steps: u64,
    /// Of them, those that the optimiser took.
    pub taken: u64,
    /// Steps in a row that were left out, up to the last one.
    pub skipped: u32,
    /// What the loss is scaled by.
    pub loss_scale: LossScale,
    /// The names of the optimiser's buffers.
    pub buffers: Vec<String>,
    /// The slots that have residuals, in a job that feeds back what int8 rounds off.
    #[serde(default)]
    pub residuals: Vec<u32>,
    /// The other files.
    pub files: Vec<FileOf>,
}

/// What decides which samples belong to which step. A job that goes on has the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataOf {
    /// Training samples.
    pub samples: u32,
    /// The shape of a sample's input.
    pub sample: Vec<usize>,
    /// Samples of a batch.
    pub batch: u32,
    /// Slots of a batch.
    pub slots: u32,
    /// The job's seed.
    pub seed: u64,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOf {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// The job that a checkpoint is of.
#[derive(Debug, Clone, PartialEq)]
pub struct JobOf {
    /// Its name.
    pub job: String,
    /// The model's name.
    pub model: String,
    /// The optimiser and its settings.
    pub optimizer: OptimizerSpec,
    /// What the order of the samples follows from.
    pub data: DataOf,
}

impl DataOf {
    /// Of a job with this data, in batches of so many samples in so many slots.
    pub fn new(data: &Description, batch: u32, slots: u32, seed: u64) -> Self {
        DataOf { samples: data.samples, sample: data.input.shape.clone(), batch, slots, seed }
    }

    /// The first thing in which two jobs differ.
    fn difference(&self, other: &DataOf) -> Option<String> {
        let settings = |data: &DataOf| {
            [
                ("training samples", data.samples.to_string()),
                ("shape of a sample", format!("{:?}", data.sample)),
                ("samples of a batch", data.batch.to_string()),
                ("slots of a batch", data.slots.to_string()),
                ("seed", data.seed.to_string()),
            ]
        };
        let pairs = settings(self).into_iter().zip(settings(other));
        let differs = pairs.into_iter().find(|(one, other)| one != other);
        differs.map(|((what, one), (_, other))| format!("{what}: {one}, and here {other}"))
    }
}

impl Manifest {
    /// Of a state whose files are still to be written.
    pub(super) fn of(of: &JobOf, state: &JobState) -> Self {
        Manifest {
            job: of.job.clone(),
            model: of.model.clone(),
            optimizer: of.optimizer,
            data: of.data.clone(),
            steps: state.steps,
            taken: state.taken,
            skipped: state.skipped,
            loss_scale: state.loss_scale,
            buffers: state.buffers.iter().map(|(name, _)| name.clone()).collect(),
            residuals: state.residuals.keys().copied().collect(),
            files: Vec::new(),
        }
    }

    /// As `manifest.json`.
    pub(super) fn written(&self) -> Result<Vec<u8>, serde_json::Error> {
        let text = serde_json::to_string_pretty(self)?;
        Ok(whole(&sha256(text.as_bytes()), &text).into_bytes())
    }

    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        /// Read first: another format may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        #[derive(Deserialize)]
        struct Whole<'a> {
            sha256: String,
            #[serde(borrow)]
            manifest: &'a RawValue,
        }
        let wrong = |error: serde_json::Error| format!("manifest.json: {error}");
        let Format { format } = serde_json::from_slice(bytes).map_err(wrong)?;
        if format != FORMAT {
            return Err(format!(
                "manifest.json: it is of format {format}, and this program reads {FORMAT}"
            ));
        }
        let Whole { sha256: told, manifest } = serde_json::from_slice(bytes).map_err(wrong)?;
        let text = manifest.get();
        if sha256(text.as_bytes()) != told || whole(&told, text).as_bytes() != bytes {
            return Err("manifest.json: it is not as it was written".to_owned());
        }
        serde_json::from_str(text).map_err(wrong)
    }

    /// What keeps a job from going on from this checkpoint: another model, other data, another order. The optimiser's
    /// settings, the number of epochs, of workers and of shards may be others.
    pub(super) fn difference(&self, of: &JobOf) -> Option<String> {
        if self.model != of.model {
            return Some(format!("it has the model `{}`, and here `{}`", self.model, of.model));
        }
        self.data.difference(&of.data)
    }
}

fn whole(sha256: &str, manifest: &str) -> String {
    format!("{{\"format\":{FORMAT},\"sha256\":\"{sha256}\",\"manifest\":{manifest}}}\n")
}
