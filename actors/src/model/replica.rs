//! A model with its parameters as one flat array.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use footlight_runtime::{HostTensor, compute, tensor::DType};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::target::{Counted, is_float};
use super::{
    AnyReplica, Draw, Evaluation, Model, ModelError, Precision, Predictions, SlotGradient, Target,
};
use crate::data::{Dataset, Field, Pass, integers};
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
        let replica = Self { model, device, variables, len, _store: store, precision, loss_scale };
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

    /// Inputs `[n, …]` as the model takes them, on the device.
    fn inputs(&self, inputs: &HostTensor) -> Result<Tensor, ModelError> {
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
        let tensor = inputs.to_tensor(compute::Device::Cpu)?.f_to_device(self.device)?;
        let tensor = tensor.f_to_kind(kind)?;
        if M::INPUT.first() == Some(&Field::ANY) {
            return Ok(tensor);
        }
        let shape: Vec<i64> = [n].iter().chain(M::INPUT).map(|axis| *axis as i64).collect();
        Ok(tensor.f_view(&shape[..])?)
    }

    fn targets(&self, targets: &HostTensor) -> Result<Tensor, ModelError> {
        Ok(M::TARGET.tensor(targets, M::CLASSES)?.f_to_device(self.device)?)
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

    /// The tensors that belong to the parameters, one after another in one array.
    fn flatten(&self, tensors: &[Tensor]) -> Result<Vec<f32>, ModelError> {
        let mut flat = vec![0.0; self.len];
        for (variable, tensor) in self.variables.iter().zip(tensors) {
            if !tensor.defined() {
                continue; // no path leads from this parameter to the loss
            }
            let place = flat.get_mut(variable.range.clone()).unwrap_or_default();
            let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            tensor.f_contiguous()?.f_copy_data(place, place.len())?;
        }
        Ok(flat)
    }
}

/// Number of elements of a shape.
fn len_of(shape: &[usize]) -> usize {
    shape.iter().product()
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
        let tensors: Vec<Tensor> =
            self.variables.iter().map(|variable| variable.tensor.detach()).collect();
        self.flatten(&tensors)
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
            let part =
                Tensor::f_from_slice(values.get(from - start..to - start).unwrap_or_default())?;
            let flat = variable.tensor.f_view([-1])?;
            flat.f_narrow(0, (from - variable.range.start) as i64, (to - from) as i64)?
                .f_copy_(&part)?;
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

    fn gradient(
        &mut self,
        inputs: &HostTensor,
        targets: &HostTensor,
        batch: usize,
        draw: Draw,
    ) -> Result<SlotGradient, ModelError> {
        let count = |of: &HostTensor| of.shape().first().copied().unwrap_or(0);
        let (samples, labels) = (count(inputs), count(targets));
        if samples != labels || samples > batch {
            return Err(ModelError::Samples { samples, labels, batch });
        }
        if samples == 0 {
            return Ok(SlotGradient {
                loss_sum: 0.0,
                correct: 0,
                samples,
                gradient: vec![0.0; self.len],
            });
        }
        let (inputs, targets) = (self.inputs(inputs)?, self.targets(targets)?);
        let output = {
            let _drawing = M::RANDOM.then(|| seeded(draw.seed()));
            self.output(&inputs, true, Some(&targets))?
        };
        let loss = self.model.loss(&output, &targets);
        let counted = tch::no_grad(|| M::TARGET.count(&output, &targets))?;
        let scale = f64::from(self.loss_scale);
        let share = loss.f_mul_scalar(scale)?.f_div_scalar(batch as f64)?;
        let variables: Vec<&Tensor> =
            self.variables.iter().map(|variable| &variable.tensor).collect();
        let gradients = Tensor::f_run_backward(&[share], &variables, false, false)?;
        let mut gradient = self.flatten(&gradients)?;
        if self.loss_scale != 1.0 {
            // A power of 2: nothing is rounded.
            gradient.iter_mut().for_each(|number| *number /= self.loss_scale);
        }
        let loss_sum = loss.f_double_value(&[])? as f32;
        let correct = counted.unwrap_or_default().correct;
        Ok(SlotGradient { loss_sum, correct, samples, gradient })
    }

    fn predict(&self, inputs: &HostTensor) -> Result<Predictions, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let classes = match M::TARGET {
            Target::Values(shape) => len_of(shape),
            _ => M::CLASSES,
        };
        let inputs = self.inputs(inputs)?;
        let mut probabilities = Vec::new();
        if inputs.numel() > 0 {
            let output = self.output(&inputs, false, None)?;
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
        let (mut sum, mut loss) = (Counted::default(), 0.0);
        let samples = data.len() as u32;
        for first in (0..samples).step_by(EVALUATION_BATCH) {
            let end = first.saturating_add(EVALUATION_BATCH as u32).min(samples);
            let batch = data.batch(first..end, Pass { seed: 0, epoch: 0 })?;
            let targets = self.targets(&batch.targets)?;
            let output = self.output(&self.inputs(&batch.inputs)?, false, Some(&targets))?;
            if let Some(counted) = M::TARGET.count(&output, &targets)? {
                sum.targets += counted.targets;
                sum.correct += counted.correct;
            }
            loss += self.model.loss(&output, &targets).f_double_value(&[])?;
        }
        let Counted { targets, correct } = sum;
        Ok(Evaluation { samples: data.len(), targets, correct, loss: loss / data.len() as f64 })
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
