//! The same training without the runtime: a loop as tch's own examples have it.

use std::time::Instant;

use anyhow::{Result, ensure};
use footlight::actors::{data::Images, model::Model};
use tch::{
    Tensor,
    nn::{self, OptimizerConfig},
};

use crate::overhead::Shape;

/// Seconds of each step.
pub(crate) fn train<M: Model>(
    samples: &Images,
    shape: &Shape,
    device: tch::Device,
) -> Result<Vec<f64>> {
    let store = nn::VarStore::new(device);
    let model = M::new(&store.root());
    let mut adam = nn::Adam::default().build(&store, Shape::LEARNING_RATE)?;
    let pixels = samples.rows() * samples.cols();
    let (slot, batch) = (shape.slot(), shape.batch as usize);
    let mut taken = Vec::new();
    for step in 0..shape.steps() as usize {
        let begun = Instant::now();
        let mut loss_sum = 0.0;
        adam.zero_grad();
        // As many samples at a time as the runtime's worker has; their gradients add up.
        for first in (step * batch..(step + 1) * batch).step_by(slot) {
            let images = &samples.images()[first * pixels..(first + slot) * pixels];
            let images = Tensor::from_slice(images).to_device(device);
            let images = images.view([slot as i64, samples.rows() as i64, samples.cols() as i64]);
            let labels = Tensor::from_slice(&samples.labels()[first..first + slot]);
            let labels = labels.to_device(device).to_kind(tch::Kind::Int64);
            let loss = model.loss(&model.forward(&M::input(&images), true), &labels);
            (&loss / batch as f64).backward();
            loss_sum += loss.double_value(&[]);
        }
        adam.step();
        // What was begun is to be done: the next parameter waits for all of it.
        let one = store.trainable_variables().first().map(|tensor| tensor.sum(tch::Kind::Double));
        ensure!(loss_sum.is_finite(), "the loss of step {step} is {loss_sum}");
        ensure!(one.is_some_and(|one| one.double_value(&[]).is_finite()), "the training diverged");
        taken.push(begun.elapsed().as_secs_f64());
    }
    Ok(taken)
}
