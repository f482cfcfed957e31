//! One job twice on the device: the same seed is to give the same parameters, bit for bit.

use std::path::Path;

use anyhow::{Context as _, Result};
use footlight::{
    actors::{
        self,
        data::DataSpec,
        model::{LeNet5, ModelSpec, Models},
        training::TrainingJob,
    },
    prelude::*,
    runtime::compute::{Device, DeviceChoice, deterministic},
};
use serde_json::json;

use crate::{data, report::Check};

const SAMPLES: usize = 4096;
const TEST_SAMPLES: usize = 256;

pub(crate) async fn check(data: &Path, device: Device) -> Result<Check> {
    let settings = deterministic();
    let data = data::first(data, SAMPLES, TEST_SAMPLES)?;
    let first = train(data.path(), device, 1).await?;
    let second = train(data.path(), device, 1).await?;
    // Otherwise the job might have trained nothing.
    let other = train(data.path(), device, 2).await?;
    anyhow::ensure!(differing(&first, &other) > 0, "another seed gave the same parameters");
    Ok(Check {
        name: "bits".to_owned(),
        value: Some(differing(&first, &second) as f64),
        limit: 0.0,
        detail: "parameters of LeNet-5 that differ after two runs of one job, of 61,706".to_owned(),
        more: json!({ "deterministic_algorithms": settings.is_ok(), "samples": SAMPLES }),
    })
}

/// How many parameters are not the same bits.
fn differing(one: &[f32], other: &[f32]) -> usize {
    let pairs = one.iter().zip(other);
    let differ = pairs.filter(|(one, other)| one.to_bits() != other.to_bits()).count();
    differ + one.len().abs_diff(other.len())
}

/// The parameters that a job ends with, whose two workers share the device.
async fn train(data: &Path, device: Device, seed: u64) -> Result<Vec<f32>> {
    let keys = tempfile::tempdir().context("no folder for the node's keys")?;
    let mut models = Models::new();
    models.register::<LeNet5>()?;
    let args = NodeArgs {
        listen: Some("127.0.0.1:0".to_owned()),
        state: Some(keys.path().to_owned()),
        ..NodeArgs::default()
    };
    let node = Node::builder(args).with(actors::cast(models)).start().await?;
    let job = TrainingJob::new("bits", ModelSpec::of::<LeNet5>(), DataSpec::idx(data));
    let job = job.device(DeviceChoice::from(device)).epochs(1).seed(seed);
    let mut running = job.submit(&node).await?;
    let report = running.wait().await?;
    let parameters = running.weights().await?.pull(report.steps).await?.flat()?;
    running.close().await?;
    node.leave().await?;
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_zero_and_a_missing_parameter_count_as_different() {
        assert_eq!(differing(&[1.0, 0.0], &[1.0, 0.0]), 0);
        assert_eq!(differing(&[1.0, 0.0], &[1.0, -0.0]), 1);
        assert_eq!(differing(&[1.0, f32::NAN], &[1.0, f32::NAN]), 0);
        assert_eq!(differing(&[1.0], &[1.0, 2.0]), 1);
    }
}
