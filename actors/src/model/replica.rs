//! A model with its parameters as one flat array.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use footlight_runtime::{
    compute::{self, Transfers, Upload},
    tensor::DType,
};
use tch::nn::VarStore;
use tch::{Device, Kind, TchError, Tensor};

use super::{
    AnyReplica, Draw, Evaluation, Model, ModelError, PendingGradient, Precision, Predictions,
};
use crate::data::Dataset;
use crate::parameters::layout::Layout;

/// libtorch has one random generator for the whole process. Who seeds it and draws from it holds this meanwhile, so
/// that several nodes in one process cannot mix their numbers.
static GENERATOR: Mutex<()> = Mutex::new(());

fn seeded(seed: u64) -> MutexGuard<'static, ()> {
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner); // it guards no data of ours
    tch::manual_seed(seed as i64);
    guard
}

/// How many samples go through the network at a time when a whole data set is evaluated.
const EVALUATION_BATCH: usize = 500;

/// A model on a device, with its parameters as one flat array in the order of their names.
pub struct Replica<M> {
    model: M,
    device: Device,
    variables: Vec<Variable>,
    len: usize,
    _store: VarStore,
    precision: Precision,
    loss_scale: f32,
    transfers: Transfers,
}

struct Variable {
    name: String,
    shape: Vec<usize>,
    range: Range<usize>,
    tensor: Tensor,
}

impl<M: Model> Replica<M> {
    /// Builds a model. The same seed gives the same parameters on every device: they are drawn on the CPU, from
    /// libtorch's generator, which is the whole process's (so building seeds it, one model at a time).
    ///
    /// # Errors
    /// A variable that is not a trainable `f32` parameter, no parameters at all, or libtorch's.
    pub fn new(seed: u64, device: Device) -> Result<Self, ModelError> {
        let mut store = VarStore::new(Device::Cpu);
        let model = {
            let _drawing = seeded(seed);
            M::new(&store.root())
        };
        if device != Device::Cpu {
            store.set_device(device);
        }
        let mut variables = Vec::new();
        let mut len = 0;
        let by_name: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
        for (name, tensor) in by_name {
            let wrong = |why| ModelError::Variable { model: M::NAME, variable: name.clone(), why };
            if !tensor.requires_grad() {
                return Err(wrong("a buffer that is not trained"));
            }
            if tensor.f_kind()? != Kind::Float {
                return Err(wrong("not f32"));
            }
            let shape = tensor.size().into_iter().map(|dimension| dimension as usize).collect();
            let range = len..len + tensor.numel();
            len = range.end;
            variables.push(Variable { name, shape, range, tensor });
        }
        let (precision, loss_scale) = (Precision::F32, 1.0);
        let place = match device {
            Device::Cuda(index) => compute::Device::Cuda(index),
            _ => compute::Device::Cpu,
        };
        // Gradients of two slots: one is on its way to the shards while the next one is computed.
        let transfers = Transfers::new(place, 2 * len * size_of::<f32>())?;
        let _store = store;
        let replica =
            Self { model, device, variables, len, _store, precision, loss_scale, transfers };
        replica.layout(1)?;
        Ok(replica)
    }

    /// The samples in `bytes`, as `u8` `[n, INPUT…]` on the device.
    fn samples(&self, bytes: &[u8]) -> Result<Upload, ModelError> {
        let one: usize = M::INPUT.iter().product();
        if one == 0 || !bytes.len().is_multiple_of(one) {
            return Err(ModelError::Input { bytes: bytes.len(), sample: M::INPUT });
        }
        let shape: Vec<usize> = [bytes.len() / one].iter().chain(M::INPUT).copied().collect();
        Ok(self.transfers.upload(bytes, &shape, DType::U8)?)
    }

    fn labels(&self, labels: &[u8]) -> Result<Tensor, ModelError> {
        if let Some(&label) = labels.iter().find(|label| usize::from(**label) >= M::CLASSES) {
            return Err(ModelError::Label { label, classes: M::CLASSES });
        }
        let labels = self.transfers.upload(labels, &[labels.len()], DType::U8)?;
        Ok(labels.tensor().f_to_kind(Kind::Int64)?)
    }

    fn logits(&self, samples: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let input = M::input(samples).f_to_kind(self.precision.kind())?;
        // The loss is computed in f32 whatever the network computes in.
        let logits = self.model.forward(&input, train).f_to_kind(Kind::Float)?;
        let (samples, classes) = (samples.size().first().map_or(0, |n| *n as usize), M::CLASSES);
        let found = logits.size();
        if found != [samples as i64, classes as i64] {
            return Err(ModelError::Output { model: M::NAME, found, samples, classes });
        }
        Ok(logits)
    }

    /// Some samples of a slot through the model and back.
    fn part(
        &self,
        images: &[u8],
        labels: &[u8],
        batch: usize,
        draw: Draw,
    ) -> Result<Part, ModelError> {
        let labels = self.labels(labels)?;
        // Its memory serves other samples when it is dropped, which is after the backward pass.
        let input = self.samples(images)?;
        let logits = {
            let _drawing = M::RANDOM.then(|| seeded(draw.seed()));
            self.logits(input.tensor(), true)?
        };
        let loss = self.model.loss(&logits, &labels);
        let scale = f64::from(self.loss_scale);
        let share = loss.f_mul_scalar(scale)?.f_div_scalar(batch as f64)?;
        let variables: Vec<&Tensor> =
            self.variables.iter().map(|variable| &variable.tensor).collect();
        let gradients = Tensor::f_run_backward(&[share], &variables, false, false)?;
        let _no_grad = tch::no_grad_guard();
        let mut flat = Vec::with_capacity(gradients.len());
        for (variable, gradient) in self.variables.iter().zip(gradients) {
            flat.push(match gradient.defined() {
                // A power of 2: nothing is rounded.
                true if self.loss_scale != 1.0 => {
                    gradient.f_to_kind(Kind::Float)?.f_div_scalar(scale)?
                }
                true => gradient.f_to_kind(Kind::Float)?,
                // No path leads from this parameter to the loss.
                false => variable.tensor.detach().f_zeros_like()?.f_to_kind(Kind::Float)?,
            });
        }
        let correct = count_correct(&logits, &labels)?.f_to_kind(Kind::Float)?;
        let metrics = Tensor::f_stack(&[loss.detach().f_to_kind(Kind::Float)?, correct], 0)?;
        Ok(Part { gradients: flat, metrics })
    }

    /// What no samples give.
    fn nothing(&self) -> Result<Part, ModelError> {
        let zeros =
            |variable: &Variable| variable.tensor.detach().f_zeros_like()?.f_to_kind(Kind::Float);
        let gradients = self.variables.iter().map(zeros).collect::<Result<_, _>>()?;
        let metrics = Tensor::f_zeros([2], (Kind::Float, self.device))?;
        Ok(Part { gradients, metrics })
    }
}

/// What some samples of a slot give.
struct Part {
    /// In the parameters' order and shapes.
    gradients: Vec<Tensor>,
    /// The summed loss, and how many samples were classified rightly.
    metrics: Tensor,
}

impl Part {
    fn add(&mut self, other: &Part) -> Result<(), TchError> {
        let _no_grad = tch::no_grad_guard();
        // Not in place: a gradient may be a view of a single number.
        self.metrics = self.metrics.f_add(&other.metrics)?;
        for (sum, one) in self.gradients.iter_mut().zip(&other.gradients) {
            *sum = sum.f_add(one)?;
        }
        Ok(())
    }
}

fn count_correct(logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    logits.f_argmax(-1, false)?.f_eq_tensor(labels)?.f_sum(Kind::Int64)
}

impl<M: Model> AnyReplica for Replica<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn input_shape(&self) -> &'static [usize] {
        M::INPUT
    }

    fn classes(&self) -> usize {
        M::CLASSES
    }

    fn len(&self) -> usize {
        self.len
    }

    fn layout(&self, shards: usize) -> Result<Layout, ModelError> {
        let parameters =
            self.variables.iter().map(|variable| (variable.name.clone(), variable.shape.clone()));
        Ok(Layout::new(parameters, shards)?)
    }

    fn flat_parameters(&self) -> Result<Vec<f32>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let tensors = self.variables.iter().map(|variable| variable.tensor.f_to_kind(Kind::Float));
        let flat = self.transfers.download_flat(&tensors.collect::<Result<Vec<_>, _>>()?)?;
        Ok(flat.wait()?.as_slice::<f32>().unwrap_or_default().to_vec())
    }

    fn set_chunk(&mut self, range: Range<usize>, values: &[f32]) -> Result<(), ModelError> {
        let (Range { start, end }, len, got) = (range, self.len, values.len());
        if start > end || end > len || end - start != got {
            return Err(ModelError::Range { start, end, len, got });
        }
        let _no_grad = tch::no_grad_guard();
        for variable in &self.variables {
            let (from, to) = (start.max(variable.range.start), end.min(variable.range.end));
            if from >= to {
                continue;
            }
            let part = values.get(from - start..to - start).unwrap_or_default();
            let flat = variable.tensor.f_view([-1])?;
            let place =
                flat.f_narrow(0, (from - variable.range.start) as i64, (to - from) as i64)?;
            self.transfers.write(part, &place)?;
        }
        Ok(())
    }

    fn set_precision(&mut self, precision: Precision) -> Result<(), ModelError> {
        let _no_grad = tch::no_grad_guard();
        for variable in &mut self.variables {
            // In place: the model holds the same tensor.
            let rounded = variable.tensor.f_to_kind(precision.kind())?;
            variable.tensor.set_data(&rounded);
        }
        self.precision = precision;
        Ok(())
    }

    fn set_loss_scale(&mut self, scale: f32) {
        self.loss_scale = scale;
    }

    fn begin(
        &mut self,
        images: &[u8],
        labels: &[u8],
        batch: usize,
        parts: usize,
        draw: Draw,
    ) -> Result<PendingGradient, ModelError> {
        let sample = M::INPUT.iter().product::<usize>().max(1);
        let samples = images.len() / sample;
        if samples != labels.len() || !images.len().is_multiple_of(sample) || samples > batch {
            if !images.len().is_multiple_of(sample) {
                return Err(ModelError::Input { bytes: images.len(), sample: M::INPUT });
            }
            return Err(ModelError::Samples { samples, labels: labels.len(), batch });
        }
        let part = samples.div_ceil(parts.max(1)).max(1);
        let mut sum: Option<Part> = None;
        for (at, (images, labels)) in
            (0..).zip(images.chunks(part * sample).zip(labels.chunks(part)))
        {
            let one = self.part(images, labels, batch, Draw { part: draw.part + at, ..draw })?;
            match &mut sum {
                None => sum = Some(one),
                Some(sum) => sum.add(&one)?,
            }
        }
        let Part { gradients, metrics } = match sum {
            Some(sum) => sum,
            None => self.nothing()?,
        };
        Ok(PendingGradient {
            samples,
            metrics: self.transfers.download(&metrics)?,
            gradient: self.transfers.download_flat(&gradients)?,
        })
    }

    fn predict(&self, images: &[u8]) -> Result<Predictions, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let samples = self.samples(images)?;
        let mut probabilities =
            vec![0.0; images.len() / M::INPUT.iter().product::<usize>() * M::CLASSES];
        if !probabilities.is_empty() {
            let all = self
                .logits(samples.tensor(), false)?
                .f_softmax(-1, Kind::Float)?
                .f_to_device(Device::Cpu)?;
            all.f_contiguous()?.f_copy_data(&mut probabilities, all.numel())?;
        }
        Ok(Predictions { classes: M::CLASSES, probabilities })
    }

    fn evaluate(&self, data: &Dataset) -> Result<Evaluation, ModelError> {
        let sample = data.rows() * data.cols();
        if sample != M::INPUT.iter().product::<usize>() {
            return Err(ModelError::Input { bytes: sample, sample: M::INPUT });
        }
        let _no_grad = tch::no_grad_guard();
        let (mut correct, mut loss) = (0, 0.0);
        let images = data.images().chunks(EVALUATION_BATCH * sample);
        for (images, labels) in images.zip(data.labels().chunks(EVALUATION_BATCH)) {
            let labels = self.labels(labels)?;
            let logits = self.logits(self.samples(images)?.tensor(), false)?;
            correct += count_correct(&logits, &labels)?.f_int64_value(&[])? as usize;
            loss += self.model.loss(&logits, &labels).f_double_value(&[])?;
        }
        Ok(Evaluation { samples: data.len(), correct, loss: loss / data.len() as f64 })
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
