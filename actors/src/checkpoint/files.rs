//! A job's state as safetensors files.

use std::collections::{BTreeMap, HashMap};

use footlight_runtime::{
    HostTensor,
    tensor::{WireFormat, WireTensor},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{JobState, Manifest};
use crate::parameters::layout::Layout;

pub(super) const MODEL: &str = "model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const RESIDUALS: &str = "residuals.safetensors";

/// Room for a file's header, besides its numbers: names and shapes of some 100,000 tensors.
const HEADER: u64 = 16 << 20;

/// Makes a file's bytes.
pub(super) type Make = Box<dyn FnOnce(&Layout) -> Result<Vec<u8>, String> + Send>;

/// The files of a state, by name. Each takes its part of the state along, which is gone when the file is made.
pub(super) fn of(state: JobState) -> Vec<(&'static str, Make)> {
    let JobState { params, buffers, residuals, .. } = state;
    let mut files: Vec<(_, Make)> = vec![
        (MODEL, Box::new(move |layout| model(layout, &params))),
        (OPTIMIZER, Box::new(move |layout| optimizer(layout, &buffers))),
    ];
    if !residuals.is_empty() {
        files.push((RESIDUALS, Box::new(move |layout| rounded_off(layout, residuals))));
    }
    files
}

fn model(layout: &Layout, params: &[f32]) -> Result<Vec<u8>, String> {
    file(named(layout, params, |parameter| parameter.to_owned())?)
}

fn optimizer(layout: &Layout, buffers: &[(String, Vec<f32>)]) -> Result<Vec<u8>, String> {
    let mut tensors = Vec::new();
    for (buffer, flat) in buffers {
        tensors.extend(named(layout, flat, |parameter| format!("{parameter}.{buffer}"))?);
    }
    file(tensors)
}

fn rounded_off(layout: &Layout, residuals: BTreeMap<u32, WireTensor>) -> Result<Vec<u8>, String> {
    let residuals: Vec<(u32, HostTensor)> =
        residuals.into_iter().map(|(slot, residual)| (slot, residual.into_tensor())).collect();
    let mut tensors = Vec::new();
    for (slot, residual) in &residuals {
        let flat = residual.as_slice::<f32>().map_err(|error| error.to_string())?;
        tensors.extend(named(layout, flat, of_slot(*slot))?);
    }
    file(tensors)
}

fn file(tensors: Vec<(String, TensorView<'_>)>) -> Result<Vec<u8>, String> {
    // PyTorch's tools look for it.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(tensors, Some(about)).map_err(|error| error.to_string())
}

/// What a parameter's residual of a slot is called.
fn of_slot(slot: u32) -> impl Fn(&str) -> String {
    move |parameter| format!("{parameter}.slot{slot}")
}

/// One tensor a parameter.
fn named<'a>(
    layout: &Layout,
    flat: &'a [f32],
    name: impl Fn(&str) -> String,
) -> Result<Vec<(String, TensorView<'a>)>, String> {
    let tensors = layout.parameters().iter().map(|parameter| {
        let part = flat.get(parameter.range.clone()).ok_or("fewer numbers than parameters")?;
        let bytes = bytemuck::cast_slice(part);
        let view = TensorView::new(Dtype::F32, parameter.shape.clone(), bytes);
        Ok((name(&parameter.name), view.map_err(|error| error.to_string())?))
    });
    tensors.collect()
}

/// How long a file can be at most that has what `layout` has, so many times.
pub(super) fn longest(layout: &Layout, times: usize) -> u64 {
    (times as u64) * (HEADER + (layout.len() as u64) * size_of::<f32>() as u64)
}

/// The state that files hold; `take` gives the bytes of each, which are freed when they are read.
///
/// # Errors
/// What does not fit this model.
pub(super) fn read(
    layout: &Layout,
    manifest: &Manifest,
    mut take: impl FnMut(&str) -> Option<Vec<u8>>,
) -> Result<JobState, String> {
    let mut open = |name: &str| take(name).ok_or_else(|| format!("there is no {name}"));
    let model = open(MODEL)?;
    let params = flat(layout, MODEL, &model, |parameter| parameter.to_owned())?;
    no_others(layout, MODEL, model, 1)?;
    let optimizer = open(OPTIMIZER)?;
    let mut buffers = Vec::new();
    for buffer in &manifest.buffers {
        let name = |parameter: &str| format!("{parameter}.{buffer}");
        buffers.push((buffer.clone(), flat(layout, OPTIMIZER, &optimizer, name)?));
    }
    no_others(layout, OPTIMIZER, optimizer, manifest.buffers.len())?;
    let mut residuals = BTreeMap::new();
    if !manifest.residuals.is_empty() {
        let saved = open(RESIDUALS)?;
        for slot in &manifest.residuals {
            let flat = flat(layout, RESIDUALS, &saved, of_slot(*slot))?;
            let residual = HostTensor::from_vec(flat, &[layout.len()]);
            let residual = residual.map_err(|error| error.to_string())?;
            // The same bytes as before it was written: rounding to int8 again changes nothing.
            residuals.insert(*slot, residual.encoded(WireFormat::Int8));
        }
        no_others(layout, RESIDUALS, saved, residuals.len())?;
    }
    Ok(JobState {
        steps: manifest.steps,
        taken: manifest.taken,
        skipped: manifest.skipped,
        loss_scale: manifest.loss_scale,
        params,
        buffers,
        residuals,
    })
}

/// That a file has no more than so many times this model's tensors.
fn no_others(layout: &Layout, file: &str, bytes: Vec<u8>, times: usize) -> Result<(), String> {
    let (found, needed) = (open_tensors(file, &bytes)?.len(), times * layout.parameters().len());
    if found > needed {
        return Err(format!("{file} has {found} tensors, and this model's has {needed}"));
    }
    Ok(())
}

fn open_tensors<'a>(file: &str, bytes: &'a [u8]) -> Result<SafeTensors<'a>, String> {
    SafeTensors::deserialize(bytes).map_err(|error| format!("{file}: {error}"))
}

/// All parameters' tensors of a file, one after another.
fn flat(
    layout: &Layout,
    file: &str,
    bytes: &[u8],
    name: impl Fn(&str) -> String,
) -> Result<Vec<f32>, String> {
    let tensors = open_tensors(file, bytes)?;
    let mut flat = vec![0.0f32; layout.len()];
    for parameter in layout.parameters() {
        let name = name(&parameter.name);
        let tensor = tensors.tensor(&name).map_err(|_| format!("{file} has no `{name}`"))?;
        let (found, needed) = (tensor.shape(), &parameter.shape);
        if found != needed {
            return Err(format!("`{name}` is {found:?} in {file}, and {needed:?} in this model"));
        }
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("`{name}` is {:?} in {file}, and must be F32", tensor.dtype()));
        }
        let place = flat.get_mut(parameter.range.clone()).unwrap_or_default();
        for (number, bytes) in place.iter_mut().zip(tensor.data().as_chunks::<4>().0) {
            *number = f32::from_le_bytes(*bytes);
        }
    }
    Ok(flat)
}
