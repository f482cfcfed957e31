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
mod target;
mod thread;

use footlight_runtime::{compute::ComputeError, tensor::DType};
use tch::nn;
use tch::{Kind, TchError, Tensor};
use thiserror::Error;

pub use any::{AnyReplica, Draw, Evaluation, Predictions, SlotGradient};
pub use lenet::LeNet5;
pub use pending::{PendingGradient, SlotTensor};
pub use precision::Precision;
pub use registry::{ModelFactory, ModelSpec, Models};
pub use replica::Replica;
pub use target::Target;
pub use thread::ReplicaThread;

use crate::data::DataError;
use crate::parameters::layout::LayoutError;

/// A network made of `tch::nn` layers. What it learns is [`Model::TARGET`]: by default a class of `u8` samples such as
/// images.
///
/// Methods may panic where libtorch's do (a wrong shape inside the network is a mistake in the model); what comes from
/// outside is checked against the constants before it gets here. A model lives on one thread and need not be `Send`.
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
///
/// A regression of four columns, and a language model whose windows may have any length:
///
/// ```no_run
/// # use footlight_actors::model::{Model, Target};
/// # use footlight_runtime::tensor::DType;
/// # use tch::{nn, Tensor};
/// struct Price(nn::Linear);
///
/// impl Model for Price {
///     const NAME: &'static str = "price";
///     const INPUT: &'static [usize] = &[4];
///     const INPUT_TYPE: DType = DType::F32;
///     const TARGET: Target = Target::Values(&[1]);
///     const RANDOM: bool = false;
/// #   fn new(vs: &nn::Path) -> Self { Price(nn::linear(vs / "out", 4, 1, Default::default())) }
/// #   fn forward(&self, input: &Tensor, _train: bool) -> Tensor { input.apply(&self.0) }
///     // new and forward as above
/// }
///
/// struct Bigram(nn::Embedding);
///
/// impl Model for Bigram {
///     const NAME: &'static str = "bigram";
///     const INPUT: &'static [usize] = &[0];
///     const INPUT_TYPE: DType = DType::I64;
///     const VOCABULARY: Option<usize> = Some(84);
///     const TARGET: Target = Target::Sequence;
///     const CLASSES: usize = 84;
///     const RANDOM: bool = false;
/// #   fn new(vs: &nn::Path) -> Self { Bigram(nn::embedding(vs / "next", 84, 84, Default::default())) }
/// #   fn forward(&self, input: &Tensor, _train: bool) -> Tensor { input.apply(&self.0) }
///     // new and forward as above
/// }
/// ```
pub trait Model: 'static {
    /// What a job calls it. Unlike a type's name it stays the same when the code moves.
    const NAME: &'static str;
    /// The shape of one sample's input. The first axis may be 0: then its length may differ from batch to batch.
    const INPUT: &'static [usize];
    /// The type of its elements: `U8`, `F32` (any floating-point numbers become it) or `I64` (any integers).
    const INPUT_TYPE: DType = DType::U8;
    /// Inputs are integers below this, as tokens are: checked. `None`: not checked.
    const VOCABULARY: Option<usize> = None;
    /// What is learnt of each sample.
    const TARGET: Target = Target::Class;
    /// Number of classes; none for a [`Target::Values`].
    const CLASSES: usize = 0;
    /// Whether [`Model::forward`] draws random numbers in training, as dropout does. libtorch's generator belongs to
    /// the whole process, so workers of one process then go through `forward` one at a time. Say `false` if it draws
    /// none; if it does all the same, its results cannot be repeated.
    const RANDOM: bool = true;

    /// Builds the network. Every parameter goes through `vs`, is `f32`, and is trained: buffers (as batch
    /// normalisation's running means) are refused, since workers would each have their own.
    fn new(vs: &nn::Path) -> Self;

    /// Turns inputs as they are stored (`[n, INPUT…]` of [`Model::INPUT_TYPE`]) into the network's, on its device.
    /// Default: bytes become `f32` and are divided by 255; others stay as they are.
    fn input(samples: &Tensor) -> Tensor {
        match samples.kind() {
            Kind::Uint8 => samples.to_kind(Kind::Float) / 255.0,
            _ => samples.shallow_clone(),
        }
    }

    /// From [`Model::input`]'s result to what [`Target`] says: one score for each class (logits, `[n, CLASSES]`) for a
    /// classifier. `train` says whether this is a training step, where dropout is active.
    fn forward(&self, input: &Tensor, train: bool) -> Tensor;

    /// The loss, **summed** over the samples: a scalar. `output` is what [`forward`](Self::forward) gave, as `f32`;
    /// `targets` is `i64` `[n]` (classes) or `[n, len]` (sequences), or `f32` `[n, …]`.
    /// Default: the loss that [`Target`] names.
    fn loss(&self, output: &Tensor, targets: &Tensor) -> Tensor {
        Self::TARGET.loss(output, targets)
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
        "the model {model:?} gave {found:?} for {samples} samples, and says that it tells {expected}"
    )]
    Output {
        /// The model.
        model: &'static str,
        /// The shape of what it gave.
        found: Vec<i64>,
        /// Number of samples.
        samples: usize,
        /// What it says of its target.
        expected: String,
    },
    /// The model's constants can't be.
    #[error("the model {model:?} can't be: {why}")]
    Constants {
        /// The model.
        model: &'static str,
        /// Why.
        why: &'static str,
    },
    /// Inputs are not what the model takes.
    #[error("inputs are {found}, and the model takes {expected}")]
    Inputs {
        /// Their type and shape.
        found: String,
        /// The model's.
        expected: String,
    },
    /// Targets are not what the model learns.
    #[error("targets are {found}, and the model learns {expected}")]
    Targets {
        /// Their type and shape.
        found: String,
        /// What the model learns.
        expected: String,
    },
    /// Data is not what the model takes or learns.
    #[error("the {part} {what} are {found}, and the model `{model}` {expected}")]
    Fit {
        /// Training or test.
        part: String,
        /// Samples or targets.
        what: &'static str,
        /// Their type and shape.
        found: String,
        /// The model.
        model: &'static str,
        /// What it takes or learns.
        expected: String,
    },
    /// An input is no token.
    #[error("input {token} is not one of the vocabulary's {vocabulary}")]
    Token {
        /// What came.
        token: i64,
        /// How many there are.
        vocabulary: usize,
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
        label: i64,
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
    /// Data can't be had.
    #[error("{0}")]
    Data(String),
}

impl ModelError {
    /// Whether the data is to blame: then another try, or another worker, does not help.
    pub fn is_of_data(&self) -> bool {
        matches!(
            self,
            Self::Inputs { .. }
                | Self::Targets { .. }
                | Self::Token { .. }
                | Self::Label { .. }
                | Self::Fit { .. }
                | Self::Data(_)
        )
    }
}

impl From<DataError> for ModelError {
    fn from(error: DataError) -> Self {
        Self::Data(error.to_string())
    }
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
