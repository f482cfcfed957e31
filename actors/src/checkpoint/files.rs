//! A job's state as safetensors files.

use std::collections::{BTreeMap, HashMap};

use footlight_runtime::HostTensor;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{JobState, Manifest};
use crate::parameters::layout::Layout;

pub(super) const MODEL: &str = "model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const RESIDUALS: &str = "residuals.safetensors";

/// Room for a file's header, besides its numbers: names and shapes of some 100,000 tensors.
const HEADER: u64 = 16 << 20;

/// The files of a state, by name.
///
/// # Errors
/// What safetensors refuses.
pub(super) fn write(
    layout: &Layout,
    state: &JobState,
) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
    let model = named(layout, &state.params, |parameter| parameter.to_owned())?;
    let mut buffers = Vec::new();
    for (buffer, flat) in &state.buffers {
        buffers.extend(named(layout, flat, |parameter| format!("{parameter}.{buffer}"))?);
    }
    let mut residuals = Vec::new();
    for (slot, residual) in &state.residuals {
        let flat = residual.as_slice::<f32>().map_err(|error| error.to_string())?;
        residuals.extend(named(layout, flat, of_slot(*slot))?);
    }
    // PyTorch's tools look for it.
    let about = || Some(HashMap::from([("format".to_owned(), "pt".to_owned())]));
    let file = |tensors: Vec<(String, TensorView<'_>)>| {
        safetensors::serialize(tensors, about()).map_err(|error| error.to_string())
    };
    let mut files = vec![(MODEL, file(model)?), (OPTIMIZER, file(buffers)?)];
    if !residuals.is_empty() {
        files.push((RESIDUALS, file(residuals)?));
    }
    Ok(files)
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

/// The state that files hold; `file` gives their bytes.
///
/// # Errors
/// What does not fit this model.
pub(super) fn read(
    layout: &Layout,
    manifest: &Manifest,
    file: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<JobState, String> {
    let open = |name: &str| file(name).ok_or_else(|| format!("there is no {name}"));
    let (model, optimizer) = (open(MODEL)?, open(OPTIMIZER)?);
    let params = flat(layout, MODEL, &model, |parameter| parameter.to_owned())?;
    let mut buffers = Vec::new();
    for buffer in &manifest.buffers {
        let name = |parameter: &str| format!("{parameter}.{buffer}");
        buffers.push((buffer.clone(), flat(layout, OPTIMIZER, &optimizer, name)?));
    }
    let mut files = vec![(MODEL, &model, 1), (OPTIMIZER, &optimizer, manifest.buffers.len())];
    let saved_residuals;
    let mut residuals = BTreeMap::new();
    if !manifest.residuals.is_empty() {
        saved_residuals = open(RESIDUALS)?;
        for slot in &manifest.residuals {
            let flat = flat(layout, RESIDUALS, &saved_residuals, of_slot(*slot))?;
            let residual = HostTensor::from_vec(flat, &[layout.len()]);
            residuals.insert(*slot, residual.map_err(|error| error.to_string())?);
        }
        files.push((RESIDUALS, &saved_residuals, residuals.len()));
    }
    for (file, bytes, times) in files {
        let (found, needed) = (open_tensors(file, bytes)?.len(), times * layout.parameters().len());
        if found > needed {
            return Err(format!("{file} has {found} tensors, and this model's has {needed}"));
        }
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
