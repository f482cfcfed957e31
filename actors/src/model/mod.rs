//! Models: what a user writes, and what the cast does with it.
//!
//! A user implements [`Model`] (a `tch` network, its name and its shapes) and registers it by
//! [`Models::register`] in the binary that all nodes run. A job then names it ([`ModelSpec`]), and each node that
//! needs it builds a [`Replica`] on a device's thread: the network with its parameters as one flat array, which is
//! all that workers, servers and inference ask for ([`AnyReplica`]). Adding a model changes nothing here.
//!
//! libtorch uses several threads for one operation if it is allowed to, and the number changes the last bits of a
//! sum: for the same bits on all workers each must call `tch::set_num_threads` with the same number.

mod any;
mod lenet;
mod pending;
mod precision;
mod registry;
mod replica;
mod thread;

use footlight_runtime::compute::ComputeError;
use tch::nn;
use tch::{Kind, Reduction, TchError, Tensor};
use thiserror::Error;

pub use any::{AnyReplica, Draw, Evaluation, Predictions, SlotGradient};
pub use lenet::LeNet5;
pub use pending::{PendingGradient, SlotTensor};
pub use precision::Precision;
pub use registry::{ModelFactory, ModelSpec, Models};
pub use replica::Replica;
pub use thread::ReplicaThread;

use crate::data::DatasetError;
use crate::parameters::layout::LayoutError;

/// A classifier of `u8` samples, such as images, made of `tch::nn` layers.
///
/// Methods may panic where libtorch's do (a wrong shape inside the network is a mistake in the model); what comes from
/// outside is checked against [`Model::INPUT`] and [`Model::CLASSES`] before it gets here. A model lives on one thread
/// and need not be `Send`.
///
/// ```no_run
/// # use footlight_actors::model::Model;
/// # use tch::{nn, Tensor};
/// struct Linear(nn::Linear);
///
/// impl Model for Linear {
///     const NAME: &'static str = "linear";
///     const INPUT: &'static [usize] = &[28, 28];
///     const CLASSES: usize = 10;
///     const RANDOM: bool = false;
///
///     fn new(vs: &nn::Path) -> Self {
///         Linear(nn::linear(vs / "out", 784, 10, Default::default()))
///     }
///
///     fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
///         input.flatten(1, 2).apply(&self.0)
///     }
/// }
/// ```
pub trait Model: 'static {
    /// What a job calls it. Unlike a type's name it stays the same when the code moves.
    const NAME: &'static str;
    /// The shape of one sample: as many bytes.
    const INPUT: &'static [usize];
    /// Number of classes, at most 256.
    const CLASSES: usize;
    /// Whether [`Model::forward`] draws random numbers in training, as dropout does. libtorch's generator belongs to
    /// the whole process, so workers of one process then go through `forward` one at a time. Say `false` if it draws
    /// none; if it does all the same, its results cannot be repeated.
    const RANDOM: bool = true;

    /// Builds the network. Every parameter goes through `vs`, is `f32`, and is trained: buffers (as batch
    /// normalisation's running means) are refused, since workers would each have their own.
    fn new(vs: &nn::Path) -> Self;

    /// Turns samples as they are stored (`u8`, `[n, INPUT…]`) into the network's input. Default: `f32`, divided by 255.
    fn input(samples: &Tensor) -> Tensor {
        samples.to_kind(Kind::Float) / 255.0
    }

    /// From [`Model::input`]'s result to one score for each class (logits, `[n, CLASSES]`). `train` says whether
    /// this is a training step, where dropout is active.
    fn forward(&self, input: &Tensor, train: bool) -> Tensor;

    /// The loss, **summed** over the samples: a scalar. `logits` is `[n, CLASSES]`, `labels` is `i64`, `[n]`.
    /// Default: cross-entropy.
    fn loss(&self, logits: &Tensor, labels: &Tensor) -> Tensor {
        logits.cross_entropy_loss::<Tensor>(labels, None, Reduction::Sum, -100, 0.0)
    }
}

/// What goes wrong with a model.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ModelError {
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(String),
    /// No model of that name is registered in this binary.
    #[error(
        "there is no model {name:?} in this binary: it has {known:?}; register it where the node is built"
    )]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that are registered.
        known: Vec<&'static str>,
    },
    /// Two models have one name.
    #[error("two models are named {name:?}")]
    Duplicate {
        /// The name.
        name: &'static str,
    },
    /// The model has a variable that cannot be trained by parameter servers.
    #[error(
        "the model {model:?} cannot be trained here: its variable {variable:?} is {why} (only trainable f32 parameters \
         are kept the same on all workers)"
    )]
    Variable {
        /// The model.
        model: &'static str,
        /// The variable.
        variable: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The model answers with another shape than it says.
    #[error(
        "the model {model:?} gave {found:?} for {samples} samples, and says that it has {classes} classes"
    )]
    Output {
        /// The model.
        model: &'static str,
        /// The shape of what it gave.
        found: Vec<i64>,
        /// Number of samples.
        samples: usize,
        /// Number of classes.
        classes: usize,
    },
    /// Samples are not of the model's shape.
    #[error("{bytes} bytes are not a number of {sample:?} samples of one byte an element")]
    Input {
        /// Bytes that came.
        bytes: usize,
        /// The shape of one sample.
        sample: &'static [usize],
    },
    /// There are not as many labels as samples, or a batch is smaller than its slot.
    #[error("{samples} samples with {labels} labels in a batch of {batch} do not fit together")]
    Samples {
        /// Number of samples.
        samples: usize,
        /// Number of labels.
        labels: usize,
        /// Samples in the whole batch.
        batch: usize,
    },
    /// A label is none of the classes.
    #[error("label {label} is not one of the {classes} classes")]
    Label {
        /// The label.
        label: u8,
        /// Number of classes.
        classes: usize,
    },
    /// Parameters were to be set that the model does not have.
    #[error(
        "{got} numbers for parameters {start}..{end} of {len}: sender and model work on different layouts"
    )]
    Range {
        /// First parameter.
        start: usize,
        /// One past the last parameter.
        end: usize,
        /// How many the model has.
        len: usize,
        /// How many numbers came.
        got: usize,
    },
    /// The parameters make no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The data set is not what it says.
    #[error(transparent)]
    Data(#[from] DatasetError),
}

impl From<ComputeError> for ModelError {
    fn from(error: ComputeError) -> Self {
        match error {
            ComputeError::Torch(text) | ComputeError::DeviceLost(text) => Self::Torch(text),
            other => Self::Torch(other.to_string()),
        }
    }
}

impl From<TchError> for ModelError {
    /// Keeps the message, without libtorch's list of C++ frames.
    fn from(error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        Self::Torch(text.lines().next().unwrap_or_default().to_owned())
    }
}
