//! A model with its parameters as one flat array.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use footlight_runtime::{
    HostTensor,
    compute::{self, Transfers, Upload},
    tensor::DType,
};
use tch::nn::VarStore;
use tch::{Device, Kind, TchError, Tensor};

use super::target::is_float;
use super::{
    AnyReplica, Draw, Evaluation, Model, ModelError, PendingGradient, Precision, Predictions,
    Target,
};
use crate::data::{Dataset, Field, Pass, integers, rows};
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
        let wrong = |why| Err(ModelError::Constants { model: M::NAME, why });
        if M::CLASSES == 0 && !matches!(M::TARGET, Target::Values(_)) {
            return wrong("it has no CLASSES, and its target is one of them");
        }
        if !matches!(M::INPUT_TYPE, DType::U8 | DType::F32 | DType::I64) {
            return wrong("its INPUT_TYPE is none of U8, F32 and I64");
        }
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

    /// Whether a sample's input of this type and shape is the model's, or becomes it: integers and floating-point
    /// numbers of other widths do, and so does another shape of as many elements.
    fn admits(input: &Field) -> bool {
        let by_type = match M::INPUT_TYPE {
            DType::F32 => is_float(input.dtype),
            DType::I64 => !is_float(input.dtype),
            only => input.dtype == only,
        };
        let (own, its) = (M::INPUT, input.shape.as_slice());
        let by_shape = match own.first() {
            Some(&Field::ANY) => own.len() == its.len() && own.get(1..) == its.get(1..),
            _ => own == its || !input.is_ragged() && len_of(own) == len_of(its),
        };
        by_type && by_shape
    }

    /// Inputs `[n, …]` as the model takes them, on the device. They are checked before they go there.
    fn inputs(&self, inputs: &HostTensor) -> Result<OnDevice, ModelError> {
        let (n, rest) = inputs.shape().split_first().map_or((0, &[][..]), |(n, rest)| (*n, rest));
        let field = Field::new(inputs.dtype(), rest);
        if inputs.shape().is_empty() || !Self::admits(&field) {
            let expected = self.input().to_string();
            return Err(ModelError::Inputs { found: field.to_string(), expected });
        }
        if let Some(vocabulary) = M::VOCABULARY
            && let Some(mut tokens) = integers(inputs)
        {
            let is_none = |token: &i64| !usize::try_from(*token).is_ok_and(|one| one < vocabulary);
            if let Some(token) = tokens.find(is_none) {
                return Err(ModelError::Token { token, vocabulary });
            }
        }
        let kind = match M::INPUT_TYPE {
            DType::F32 => Kind::Float,
            DType::I64 => Kind::Int64,
            _ => Kind::Uint8,
        };
        let rest = if M::INPUT.first() == Some(&Field::ANY) { rest } else { M::INPUT };
        let sizes: Vec<i64> = [n].iter().chain(rest).map(|axis| *axis as i64).collect();
        self.upload(inputs, kind, &sizes)
    }

    /// Targets `[n, …]` as the model learns them, on the device. They are checked before they go there.
    fn targets(&self, targets: &HostTensor) -> Result<OnDevice, ModelError> {
        let (kind, sizes) = M::TARGET.check(targets, M::CLASSES)?;
        self.upload(targets, kind, &sizes)
    }

    /// Copies values to the device as they are; there they become of this type, and of this shape of as many elements.
    fn upload(&self, values: &HostTensor, kind: Kind, to: &[i64]) -> Result<OnDevice, ModelError> {
        let upload = self.transfers.upload(values.bytes(), values.shape(), values.dtype())?;
        let tensor = upload.tensor().f_to_kind(kind)?.f_view(to)?;
        Ok(OnDevice { tensor, _upload: upload })
    }

    /// What the network makes of inputs; with targets of this shape, where they are known.
    fn output(
        &self,
        inputs: &Tensor,
        train: bool,
        targets: Option<&Tensor>,
    ) -> Result<Tensor, ModelError> {
        let mut input = M::input(inputs);
        if matches!(input.f_kind()?, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
            input = input.f_to_kind(self.precision.kind())?;
        }
        // The loss is computed in f32 whatever the network computes in.
        let output = self.model.forward(&input, train).f_to_kind(Kind::Float)?;
        let samples = inputs.size().first().copied().unwrap_or(0);
        let found = output.size();
        if !M::TARGET.is_output::<M>(&found, samples, targets.map(Tensor::size).as_deref()) {
            return Err(ModelError::Output {
                model: M::NAME,
                found,
                samples: samples as usize,
                expected: M::TARGET.text(M::CLASSES),
            });
        }
        Ok(output)
    }

    /// Some samples of a slot through the model and back.
    fn part(
        &self,
        inputs: &HostTensor,
        targets: &HostTensor,
        batch: usize,
        draw: Draw,
    ) -> Result<Part, ModelError> {
        // They stay until everything that computes with them is queued.
        let (inputs, targets) = (self.inputs(inputs)?, self.targets(targets)?);
        let output = {
            let _drawing = M::RANDOM.then(|| seeded(draw.seed()));
            self.output(&inputs.tensor, true, Some(&targets.tensor))?
        };
        let loss = self.model.loss(&output, &targets.tensor);
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
        let correct = M::TARGET.count_right(&output, &targets.tensor)?.f_to_kind(Kind::Double)?;
        // A loss of one element, whatever its axes.
        let metrics = Tensor::f_stack(&[loss.detach().f_sum(Kind::Double)?, correct], 0)?;
        Ok(Part { gradients: flat, metrics })
    }

    /// What no samples give.
    fn nothing(&self) -> Result<Part, ModelError> {
        let zeros =
            |variable: &Variable| variable.tensor.detach().f_zeros_like()?.f_to_kind(Kind::Float);
        let gradients = self.variables.iter().map(zeros).collect::<Result<_, _>>()?;
        let metrics = Tensor::f_zeros([2], (Kind::Double, self.device))?;
        Ok(Part { gradients, metrics })
    }
}

/// Number of elements of a shape.
fn len_of(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Inputs or targets on the device.
struct OnDevice {
    /// As the model takes them.
    tensor: Tensor,
    /// As they came. `tensor` may be a view of it, and its memory serves others when it is dropped, which is after the
    /// backward pass.
    _upload: Upload,
}

/// What some samples of a slot give.
struct Part {
    /// In the parameters' order and shapes.
    gradients: Vec<Tensor>,
    /// The summed loss, and how many targets were told rightly: `f64`.
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

impl<M: Model> AnyReplica for Replica<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn input(&self) -> Field {
        Field::new(M::INPUT_TYPE, M::INPUT)
    }

    fn fits(&self, part: &str, input: &Field, target: &Field) -> Result<(), ModelError> {
        let wrong = |what, found: &Field, expected| {
            let (part, found) = (part.to_owned(), found.to_string());
            Err(ModelError::Fit { part, what, found, model: M::NAME, expected })
        };
        if !Self::admits(input) {
            return wrong("samples", input, format!("takes {}", self.input()));
        }
        if !M::TARGET.admits(target) {
            let expected = format!("learns {}", M::TARGET.text(M::CLASSES));
            return wrong("targets", target, expected);
        }
        Ok(())
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
        inputs: &HostTensor,
        targets: &HostTensor,
        batch: usize,
        parts: usize,
        draw: Draw,
    ) -> Result<PendingGradient, ModelError> {
        let count = |of: &HostTensor| of.shape().first().copied().unwrap_or(0);
        let (samples, labels) = (count(inputs), count(targets));
        let misfit = || ModelError::Samples { samples, labels, batch };
        if samples != labels || samples > batch {
            return Err(misfit());
        }
        let part = samples.div_ceil(parts.max(1)).max(1);
        let mut sum: Option<Part> = None;
        for (at, first) in (0..).zip((0..samples).step_by(part)) {
            let range = first..(first + part).min(samples);
            let inputs = rows(inputs, range.clone()).ok_or_else(misfit)?;
            let targets = rows(targets, range).ok_or_else(misfit)?;
            let draw = Draw { part: draw.part + at, ..draw };
            let one = self.part(&inputs, &targets, batch, draw)?;
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

    fn predict(&self, inputs: &HostTensor) -> Result<Predictions, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let classes = match M::TARGET {
            Target::Values(shape) => len_of(shape),
            _ => M::CLASSES,
        };
        let inputs = self.inputs(inputs)?;
        let mut probabilities = Vec::new();
        if inputs.tensor.numel() > 0 {
            let output = self.output(&inputs.tensor, false, None)?;
            let all = match M::TARGET {
                Target::Values(_) => output,
                _ => output.f_softmax(-1, Kind::Float)?,
            };
            let all = all.f_to_device(Device::Cpu)?.f_contiguous()?;
            probabilities.resize(all.numel(), 0.0);
            all.f_copy_data(&mut probabilities, all.numel())?;
        }
        Ok(Predictions { classes, probabilities })
    }

    fn evaluate(&self, data: &Dataset) -> Result<Evaluation, ModelError> {
        self.fits("test", &data.input(), &data.target())?;
        let _no_grad = tch::no_grad_guard();
        let (mut counted, mut correct, mut loss) = (0, 0, 0.0);
        let samples = data.len() as u32;
        for first in (0..samples).step_by(EVALUATION_BATCH) {
            let end = first.saturating_add(EVALUATION_BATCH as u32).min(samples);
            let batch = data.batch(first..end, Pass { seed: 0, epoch: 0 })?;
            let (inputs, targets) = (self.inputs(&batch.inputs)?, self.targets(&batch.targets)?);
            let output = self.output(&inputs.tensor, false, Some(&targets.tensor))?;
            let right = M::TARGET.count_right(&output, &targets.tensor)?;
            correct += right.f_int64_value(&[])? as usize;
            counted += M::TARGET.count(&targets.tensor)?.f_int64_value(&[])? as usize;
            loss += self.model.loss(&output, &targets.tensor).f_double_value(&[])?;
        }
        let (samples, loss) = (data.len(), loss / data.len() as f64);
        Ok(Evaluation { samples, targets: counted, correct, loss })
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
