//! The actor that owns a trained model and answers with probabilities.

use footlight_runtime::{
    Actor, Context, Handler, HostTensor, Message, Result, compute::DeviceChoice,
    tensor::TensorError,
};
use serde::{Deserialize, Serialize};

use crate::{
    data::Field,
    model::{ModelSpec, ReplicaThread},
    training::weights::Weights,
};

/// Most samples of one question.
pub const MAX_SAMPLES: usize = 4096;

/// Takes its weights from the parameter server when it starts, and classifies samples.
#[derive(Debug)]
pub struct Inference {
    replica: ReplicaThread,
    /// What one sample is.
    sample: Field,
    version: u64,
}

/// What an inference actor is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InferenceSpec {
    /// The model.
    pub model: ModelSpec,
    /// Where its parameters are.
    pub weights: Weights,
    /// At least so many steps must have been applied.
    pub version: u64,
    /// Where to compute.
    pub device: DeviceChoice,
}

/// Classify samples.
#[derive(Debug, Serialize, Deserialize)]
pub struct Predict {
    /// `[n, …]`: `n` samples (1 to [`MAX_SAMPLES`]), each of the model's input shape and element type.
    pub samples: HostTensor,
}

impl Message for Predict {
    /// An error says what is wrong with the samples.
    type Reply = std::result::Result<Prediction, String>;
    const NAME: &'static str = "serving.predict";
}

/// What a model makes of samples.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prediction {
    /// `f32` `[n, classes]`: each sample's add up to 1. Of a sequence `[n, len, classes]`; of a model that tells numbers
    /// `[n, numbers]`.
    pub probabilities: HostTensor,
    /// The number of steps that the weights have been trained.
    pub version: u64,
}

impl Actor for Inference {
    type Args = InferenceSpec;
    const NAME: &'static str = "serving.inference";

    async fn start(spec: InferenceSpec, context: &Context<Self>) -> Result<Self> {
        let device = spec.device.resolve()?;
        let system = context.system();
        let replica = ReplicaThread::build(system, "inference", &spec.model, 0, device).await?;
        let weights = spec.weights.pull(spec.version).await?;
        let version = weights.number;
        weights.load(&replica).await?;
        let sample = replica.run(|replica| Ok(replica.input())).await?;
        Ok(Inference { replica, sample, version })
    }
}

impl Handler<Predict> for Inference {
    async fn handle(
        &mut self,
        message: Predict,
        _: &Context<Self>,
    ) -> std::result::Result<Prediction, String> {
        let samples = message.samples;
        if samples.dtype() != self.sample.dtype {
            let (wanted, found) = (self.sample.dtype, samples.dtype());
            return Err(TensorError::DType { wanted, found }.to_string());
        }
        let fits = |shape: &[usize]| {
            let axes = self.sample.shape.iter().zip(shape);
            self.sample.shape.len() == shape.len()
                && axes.into_iter().all(|(own, its)| *own == Field::ANY && *its > 0 || own == its)
        };
        let count = match samples.shape() {
            [count @ 1..=MAX_SAMPLES, sample @ ..] if fits(sample) => *count,
            other => {
                let axes = self.sample.shape.iter().map(|axis| match *axis {
                    Field::ANY => "?".to_owned(),
                    axis => axis.to_string(),
                });
                return Err(format!(
                    "the shape {other:?} is not [n, {}] with n from 1 to {MAX_SAMPLES}",
                    axes.collect::<Vec<_>>().join(", ")
                ));
            }
        };
        let predicted = self
            .replica
            .run(move |replica| replica.predict(&samples))
            .await
            .map_err(|error| error.to_string())?;
        let classes = predicted.classes.max(1);
        let shape = match predicted.probabilities.len() / classes {
            rows if rows == count => vec![count, classes],
            rows => vec![count, rows / count, classes],
        };
        let probabilities = HostTensor::from_vec(predicted.probabilities, &shape)
            .map_err(|error| error.to_string())?;
        Ok(Prediction { probabilities, version: self.version })
    }
}
