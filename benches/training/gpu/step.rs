//! One training step on the device and on the processor.
//!
//! Both begin with the same parameters and see the same samples. What differs is the order of sums. The figure is the
//! largest, over the loss, each parameter tensor's gradient and each parameter tensor after a step of SGD, of
//! max |a − b| / max |b|: b is the processor's, and the greatest is over the tensor's elements.

use std::path::Path;

use anyhow::{Context as _, Result};
use footlight::{
    actors::{
        data::{IdxDataset, Split},
        model::{AnyReplica, Draw, LeNet5, Model, Replica},
    },
    prelude::HostTensor,
    runtime::compute::Device,
};
use serde_json::json;

use crate::{data, models::VitSmall, report::Check};

const SAMPLES: usize = 64;
const LEARNING_RATE: f32 = 0.1;
const LIMIT: f64 = 1e-4;

pub(crate) fn check(data: &Path, device: Device) -> Result<Check> {
    let samples = IdxDataset::open(data, Split::Train)?;
    let count = SAMPLES.min(samples.len());
    let (images, labels) = data::part(&samples, count);
    let shape = [count, samples.rows(), samples.cols()];
    let images = HostTensor::from_vec(images.to_vec(), &shape)?;
    let labels = HostTensor::from_vec(labels.to_vec(), &[count])?;
    let lenet = differs::<LeNet5>(&images, &labels, device)?;
    let vit = differs::<VitSmall>(&images, &labels, device)?;
    Ok(Check {
        name: "step".to_owned(),
        value: Some(lenet.max(vit)),
        limit: LIMIT,
        detail: "largest max|a−b| / max|b| of loss, gradients and parameters, device and processor"
            .to_owned(),
        more: json!({ "lenet5": lenet, "vit_small": vit, "samples": count }),
    })
}

/// The figure for one model.
fn differs<M: Model>(images: &HostTensor, labels: &HostTensor, device: Device) -> Result<f64> {
    let step = |device: Device| -> Result<_> {
        let mut replica = Replica::<M>::new(1, device.to_tch())?;
        let draw = Draw { seed: 1, step: 0, slot: 0, part: 0 };
        let slot = replica.gradient(images, labels, labels.len(), draw)?;
        let mut parameters = replica.flat_parameters()?;
        for (parameter, gradient) in parameters.iter_mut().zip(&slot.gradient) {
            *parameter -= LEARNING_RATE * gradient;
        }
        replica.set_all(&parameters)?;
        // As they are on the device, and what it makes of them.
        let parameters = replica.flat_parameters()?;
        let after = replica.gradient(images, labels, labels.len(), draw)?;
        let losses = vec![slot.loss_sum, after.loss_sum];
        Ok((losses, slot.gradient, parameters, replica.layout(1)?))
    };
    let (losses, gradient, parameters, layout) = step(Device::Cpu)?;
    let (their_losses, their_gradient, their_parameters, _) = step(device)?;
    let mut greatest = relative(&their_losses, &losses);
    for tensor in layout.parameters() {
        let of = |all: &[f32]| all.get(tensor.range.clone()).map(<[f32]>::to_vec);
        for (theirs, ours) in [(&their_gradient, &gradient), (&their_parameters, &parameters)] {
            let (theirs, ours) = of(theirs).zip(of(ours)).context("a tensor is missing")?;
            greatest = greatest.max(relative(&theirs, &ours));
        }
    }
    Ok(greatest)
}

/// max |a − b| / max |b|; what is not a number is infinitely far.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
    let worst =
        pairs.fold(0.0, |worst, one| if one.is_nan() { f64::INFINITY } else { one.max(worst) });
    let largest = b.iter().fold(0.0, |largest, one| f64::from(one.abs()).max(largest));
    if worst == 0.0 { 0.0 } else { worst / largest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_relative_to_the_largest_number_and_what_is_none_is_far() {
        assert_eq!(relative(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(relative(&[1.5, -4.0], &[1.0, -4.0]), 0.125);
        assert_eq!(relative(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative(&[1.0], &[0.0]), f64::INFINITY);
        assert_eq!(relative(&[f32::NAN, 1.0], &[1.0, 1.0]), f64::INFINITY);
    }

    #[test]
    fn the_processor_agrees_with_itself() {
        let images: Vec<u8> = (0..4 * 784).map(|at| (at % 239) as u8).collect();
        let images = HostTensor::from_vec(images, &[4, 28, 28]).unwrap();
        let labels = HostTensor::from_vec(vec![1u8, 2, 3, 4], &[4]).unwrap();
        assert_eq!(differs::<LeNet5>(&images, &labels, Device::Cpu).unwrap(), 0.0);
    }
}
