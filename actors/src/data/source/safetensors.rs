//! Arrays of a safetensors file (<https://huggingface.co/docs/safetensors>).

use std::path::PathBuf;

use ::safetensors::{Dtype, SafeTensors};
use footlight_runtime::{HostTensor, tensor::DType};
use serde::{Deserialize, Serialize};

use super::{Arrays, DataError, files, name_of};

/// The most names that errors list.
const LISTED: usize = 20;

/// Two tensors of a safetensors file: inputs `[n, …]` and targets `[n, …]`, read into memory.
///
/// ```
/// # use footlight_actors::data::{DataSpec, Safetensors};
/// let data = DataSpec::new(Safetensors::at("set.safetensors", "x", "y")).hold_out(0.1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Safetensors {
    at: PathBuf,
    inputs: String,
    targets: String,
    classes: Option<usize>,
}

impl Safetensors {
    /// The tensors of these names in this file, or in `s3://bucket/key`.
    pub fn at(
        path: impl Into<PathBuf>,
        inputs: impl Into<String>,
        targets: impl Into<String>,
    ) -> Self {
        Safetensors {
            at: path.into(),
            inputs: inputs.into(),
            targets: targets.into(),
            classes: None,
        }
    }

    /// Targets are classes below this: checked when the file is read.
    #[must_use]
    pub fn classes(mut self, classes: usize) -> Self {
        self.classes = Some(classes);
        self
    }

    pub(super) fn open(&self) -> Result<Arrays, DataError> {
        let at = name_of(&self.at);
        let broken = |why: String| DataError::Format { at: at.clone(), format: "safetensors", why };
        let bytes = files::read(&self.at)?;
        // It compares the header with the length of the file, and its limit is 100 MB for a header.
        let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
        let array = |name: &str| {
            let view = file.tensor(name).map_err(|_| {
                let mut there = file.names();
                there.sort_unstable();
                DataError::NoSuchName {
                    at: at.clone(),
                    what: "tensor",
                    name: name.to_owned(),
                    there: there.into_iter().take(LISTED).map(str::to_owned).collect(),
                }
            })?;
            let dtype = dtype(view.dtype()).ok_or_else(|| {
                broken(format!(
                    "{name:?} has elements of type {:?}, which no tensor has here",
                    view.dtype()
                ))
            })?;
            // Shares the file's memory where that is aligned.
            HostTensor::from_bytes(dtype, view.shape(), bytes.slice_ref(view.data()))
                .map_err(|error| broken(error.to_string()))
        };
        let arrays = Arrays::new(&at, array(&self.inputs)?, array(&self.targets)?)?;
        match self.classes {
            Some(classes) => arrays.of_classes(&at, classes),
            None => Ok(arrays),
        }
    }
}

fn dtype(of: Dtype) -> Option<DType> {
    Some(match of {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::source::Source;

    /// What `safetensors.numpy.save` writes for x, float32 [2, 2], and y, int64 [2].
    fn written() -> Vec<u8> {
        let header = br#"{"y":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"x":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]}}"#;
        let x: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|one| one.to_le_bytes()).collect();
        let y: Vec<u8> = [7i64, 1].iter().flat_map(|one| one.to_le_bytes()).collect();
        [&(header.len() as u64).to_le_bytes()[..], header, &y, &x].concat()
    }

    fn opened(bytes: &[u8], x: &str, classes: usize) -> Result<Arrays, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, bytes).unwrap();
        Safetensors::at(&path, x, "y").classes(classes).open().map_err(|error| {
            let text = error.to_string();
            assert!(!text.contains('\n'), "one line: {text}");
            text.replace(&format!("{}/", dir.path().display()), "")
        })
    }

    #[test]
    fn tensors_of_a_file_are_samples() {
        let data = opened(&written(), "x", 8).unwrap();
        assert_eq!(data.len(), 2);
        let sample = data.sample(1).unwrap();
        assert_eq!(sample.input.as_slice::<f32>().unwrap(), [3.0, 4.0]);
        assert_eq!(sample.target.as_slice::<i64>().unwrap(), [1]);
    }

    #[test]
    fn each_kind_of_damage_is_told() {
        let whole = written();
        let told = opened(&whole, "z", 8).unwrap_err();
        assert_eq!(told, "s has no tensor \"z\": it has [\"x\", \"y\"]");
        let told = opened(&whole, "x", 7).unwrap_err();
        assert_eq!(told, "s: label 7 of sample 0 is not one of the 7 classes 0..7");
        for len in 0..whole.len() {
            let told = opened(&whole[..len], "x", 8).unwrap_err();
            assert!(told.starts_with("s is no safetensors file"), "{len}: {told}");
        }
        let mut lies = whole.clone();
        lies[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(opened(&lies, "x", 8).unwrap_err().starts_with("s is no safetensors file"));
        let text = String::from_utf8_lossy(&whole[8..120]).replace("[2,2]", "[2,9]");
        let mut lies = whole;
        lies[8..120].copy_from_slice(text.as_bytes());
        assert!(opened(&lies, "x", 8).unwrap_err().starts_with("s is no safetensors file"));
    }
}
