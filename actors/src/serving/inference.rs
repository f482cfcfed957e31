//! The actor that owns a trained model and answers with probabilities.

use footlight_runtime::{
    Actor, Context, Handler, HostTensor, Message, Result, compute::DeviceChoice,
};
use serde::{Deserialize, Serialize};

use crate::{
    model::{ModelSpec, ReplicaThread},
    training::weights::Weights,
};

/// Most samples of one question.
pub const MAX_SAMPLES: usize = 4096;

/// Takes its weights from the parameter server when it starts, and classifies samples.
#[derive(Debug)]
pub struct Inference {
    replica: ReplicaThread,
    /// The shape of one sample.
    sample: &'static [usize],
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
    /// `u8`, `[n, …]`: `n` samples (1 to [`MAX_SAMPLES`]), each of the model's input shape.
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
    /// `f32` `[n, classes]`: each sample's add up to 1.
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
        let sample = replica.run(|replica| Ok(replica.input_shape())).await?;
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
        samples.as_slice::<u8>().map_err(|error| error.to_string())?;
        let count = match samples.shape() {
            [count @ 1..=MAX_SAMPLES, sample @ ..] if sample == self.sample => *count,
            other => {
                return Err(format!(
                    "the shape {other:?} is not [n, {}] with n from 1 to {MAX_SAMPLES}",
                    self.sample.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
                ));
            }
        };
        let predicted = self
            .replica
            .run(move |replica| replica.predict(samples.as_slice().unwrap_or_default()))
            .await
            .map_err(|error| error.to_string())?;
        let shape = [count, predicted.classes];
        let probabilities = HostTensor::from_vec(predicted.probabilities, &shape)
            .map_err(|error| error.to_string())?;
        Ok(Prediction { probabilities, version: self.version })
    }
}
