//! Arrays of NumPy: `.npy` files, and `.npz` archives of them.
//!
//! The format is NumPy's NEP 1: a magic string, a version, the length of a header, the header (a Python dictionary of
//! three keys), and the elements. The header is read here: general readers of Python literals take a parser generator
//! along and copy the elements one by one, and what a header promises must be compared with what is there before
//! anything is allocated.

use std::{
    io::{Cursor, Read},
    path::PathBuf,
};

use bytes::Bytes;
use footlight_runtime::{
    HostTensor,
    tensor::{DType, MAX_RANK},
};
use serde::{Deserialize, Serialize};

use super::{Arrays, DataError, MAX_BYTES, files, name_of};

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy itself refuses longer ones unless told otherwise.
const LONGEST_HEADER: usize = 10_000;
/// The most names that errors list.
const LISTED: usize = 20;

/// Two `.npy` files: inputs `[n, …]` and targets `[n, …]`, read into memory.
///
/// Element types are those of tensors; `uint16` becomes `i32`, `uint32` and `uint64` become `i64`. Either byte order and
/// either memory order is read.
///
/// ```
/// # use footlight_actors::data::{DataSpec, Npy};
/// let data = DataSpec::new(Npy::at("x_train.npy", "y_train.npy").classes(10))
///     .test(Npy::at("x_test.npy", "y_test.npy").classes(10));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Npy {
    inputs: PathBuf,
    targets: PathBuf,
    classes: Option<usize>,
}

impl Npy {
    /// These files, or `s3://bucket/key`.
    pub fn at(inputs: impl Into<PathBuf>, targets: impl Into<PathBuf>) -> Self {
        Npy { inputs: inputs.into(), targets: targets.into(), classes: None }
    }

    /// Targets are classes below this: checked when the file is read.
    #[must_use]
    pub fn classes(mut self, classes: usize) -> Self {
        self.classes = Some(classes);
        self
    }

    pub(super) fn open(&self) -> Result<Arrays, DataError> {
        let array = |path: &PathBuf| parse(&name_of(path), files::read(path)?);
        let at = format!("{} and {}", self.inputs.display(), self.targets.display());
        let arrays = Arrays::new(&at, array(&self.inputs)?, array(&self.targets)?)?;
        match self.classes {
            Some(classes) => arrays.of_classes(&name_of(&self.targets), classes),
            None => Ok(arrays),
        }
    }
}

/// Two arrays of an `.npz` archive (`numpy.savez`, `savez_compressed`), read into memory. As [`Npy`] otherwise.
///
/// ```
/// # use footlight_actors::data::{DataSpec, Npz};
/// let part = |x, y| Npz::at("mnist.npz", x, y).classes(10);
/// let data = DataSpec::new(part("x_train", "y_train")).test(part("x_test", "y_test"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Npz {
    at: PathBuf,
    inputs: String,
    targets: String,
    classes: Option<usize>,
}

impl Npz {
    /// The arrays of these names in this file, or in `s3://bucket/key`.
    pub fn at(
        path: impl Into<PathBuf>,
        inputs: impl Into<String>,
        targets: impl Into<String>,
    ) -> Self {
        Npz { at: path.into(), inputs: inputs.into(), targets: targets.into(), classes: None }
    }

    /// Targets are classes below this: checked when the file is read.
    #[must_use]
    pub fn classes(mut self, classes: usize) -> Self {
        self.classes = Some(classes);
        self
    }

    pub(super) fn open(&self) -> Result<Arrays, DataError> {
        let name = name_of(&self.at);
        let broken = |why: String| DataError::Format { at: name.clone(), format: "NPZ", why };
        let bytes = files::read(&self.at)?;
        let mut archive =
            zip::ZipArchive::new(Cursor::new(bytes)).map_err(|error| broken(error.to_string()))?;
        let mut array = |wanted: &str| {
            let there: Vec<String> = archive
                .file_names()
                .filter_map(Result::ok)
                .map(|name| name.trim_end_matches(".npy").to_owned())
                .collect();
            let Ok(mut entry) = archive.by_name(&format!("{wanted}.npy")) else {
                return Err(DataError::NoSuchName {
                    at: name.clone(),
                    what: "array",
                    name: wanted.to_owned(),
                    there: there.into_iter().take(LISTED).collect(),
                });
            };
            let at = format!("{name}, array {wanted:?}");
            unpack(&at, &mut entry)
        };
        let (inputs, targets) = (array(&self.inputs)?, array(&self.targets)?);
        let arrays = Arrays::new(&name, inputs, targets)?;
        match self.classes {
            Some(classes) => arrays.of_classes(&name, classes),
            None => Ok(arrays),
        }
    }
}

/// Reads a packed array. The archive's word on its length counts for nothing: memory grows with what really comes, up
/// to what the array's own header promises.
fn unpack(at: &str, from: &mut impl Read) -> Result<HostTensor, DataError> {
    let broken = |why: String| DataError::Format { at: at.to_owned(), format: "NPY", why };
    let mut bytes = Vec::new();
    let start = from.take((LONGEST_HEADER + 12) as u64).read_to_end(&mut bytes);
    start.map_err(|error| broken(error.to_string()))?;
    let header = Header::read(at, &bytes)?;
    // One more, to see that nothing follows.
    let rest = (header.total()? + 1).saturating_sub(bytes.len() as u64);
    from.take(rest).read_to_end(&mut bytes).map_err(|error| broken(error.to_string()))?;
    header.array(at, bytes.into())
}

/// The array in the bytes of an `.npy` file.
pub(super) fn parse(at: &str, bytes: Bytes) -> Result<HostTensor, DataError> {
    Header::read(at, &bytes)?.array(at, bytes)
}

/// What the elements are, as they lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    As(DType),
    U16,
    U32,
    U64,
}

impl Stored {
    fn size(self) -> usize {
        match self {
            Stored::As(dtype) => dtype.size(),
            Stored::U16 => 2,
            Stored::U32 => 4,
            Stored::U64 => 8,
        }
    }
}

#[derive(Debug)]
struct Header {
    at: String,
    stored: Stored,
    big_endian: bool,
    fortran: bool,
    shape: Vec<usize>,
    /// Where the elements begin.
    start: usize,
}

impl Header {
    fn read(at: &str, bytes: &[u8]) -> Result<Self, DataError> {
        let broken = |why: String| DataError::Format { at: at.to_owned(), format: "NPY", why };
        let short = |promised: usize| DataError::Short {
            at: at.to_owned(),
            has: bytes.len() as u64,
            promised: promised as u64,
        };
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| broken("it does not begin as one does".to_owned()))?;
        let version = rest.split_off(..2).ok_or_else(|| short(10))?;
        let len = match version {
            [1, _] => rest.split_off(..2).map(|len| u16::from_le_bytes([len[0], len[1]]) as usize),
            [2 | 3, _] => rest
                .split_off(..4)
                .and_then(|len| len.try_into().ok())
                .map(|len| u32::from_le_bytes(len) as usize),
            [major, minor] => {
                return Err(broken(format!("it is of version {major}.{minor}")));
            }
            _ => None,
        };
        let len = len.ok_or_else(|| short(12))?;
        if len > LONGEST_HEADER {
            return Err(broken(format!("its header has {len} bytes, more than {LONGEST_HEADER}")));
        }
        let start = bytes.len() - rest.len() + len;
        let text = rest.get(..len).ok_or_else(|| short(start))?;
        let text = std::str::from_utf8(text).map_err(|error| broken(error.to_string()))?;
        let shown: String = text.trim().chars().take(200).collect();
        let wrong = |what: &str| broken(format!("{what} in its header {shown:?}"));

        let descr = value(text, "descr").and_then(quoted);
        let descr = descr.ok_or_else(|| wrong("no plain type `descr`"))?;
        let (stored, big_endian) = stored(descr).ok_or_else(|| {
            broken(format!("elements of type {descr:?} have no place in a tensor"))
        })?;
        let fortran = match value(text, "fortran_order") {
            Some(value) if value.starts_with("True") => true,
            Some(value) if value.starts_with("False") => false,
            _ => return Err(wrong("no `fortran_order`")),
        };
        let shape = value(text, "shape").and_then(|text| text.strip_prefix('('));
        let shape = shape.and_then(|text| text.split_once(')')).map(|(axes, _)| axes);
        let shape = shape.ok_or_else(|| wrong("no `shape`"))?;
        let shape: Vec<usize> = shape
            .split(',')
            .map(str::trim)
            .filter(|axis| !axis.is_empty())
            .map(|axis| axis.trim_end_matches('L').parse().map_err(|_| wrong("no numbers")))
            .collect::<Result<_, _>>()?;
        if shape.is_empty() || shape.len() > MAX_RANK {
            return Err(broken(format!(
                "it has {} axes: 1 to {MAX_RANK} are read, the first one for samples",
                shape.len()
            )));
        }
        if shape.contains(&0) {
            return Err(DataError::Empty { at: at.to_owned() });
        }
        Ok(Header { at: at.to_owned(), stored, big_endian, fortran, shape, start })
    }

    /// Number of elements.
    fn elements(&self) -> Result<usize, DataError> {
        let elements = self.shape.iter().try_fold(1usize, |all, &axis| all.checked_mul(axis));
        let fits = |elements: &usize| {
            elements.checked_mul(8).is_some_and(|bytes| bytes as u64 <= 8 * MAX_BYTES)
        };
        elements.filter(fits).ok_or_else(|| DataError::TooLarge {
            at: format!("{} (its header says {:?})", self.at, self.shape),
            bytes: u64::MAX,
            limit: MAX_BYTES,
        })
    }

    /// Bytes of the whole file.
    fn total(&self) -> Result<u64, DataError> {
        let bytes = self.elements()? as u64 * self.stored.size() as u64;
        if bytes > MAX_BYTES {
            return Err(DataError::TooLarge { at: self.at.clone(), bytes, limit: MAX_BYTES });
        }
        Ok(self.start as u64 + bytes)
    }

    /// The elements of a file.
    fn array(&self, at: &str, bytes: Bytes) -> Result<HostTensor, DataError> {
        let broken = |why: String| DataError::Format { at: at.to_owned(), format: "NPY", why };
        let (has, promised) = (bytes.len() as u64, self.total()?);
        if has < promised {
            return Err(DataError::Short { at: at.to_owned(), has, promised });
        }
        if has > promised {
            return Err(DataError::Long { at: at.to_owned(), has, promised });
        }
        let mut data = bytes.slice(self.start..);
        let size = self.stored.size();
        if self.big_endian && size > 1 {
            let mut turned = data.to_vec();
            turned.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            data = turned.into();
        }
        if self.fortran && self.shape.len() > 1 {
            data = row_major(&data, &self.shape, size).into();
        }
        let tensor = match self.stored {
            Stored::As(dtype) => HostTensor::from_bytes(dtype, &self.shape, data),
            Stored::U16 => {
                let wide = data.as_chunks().0.iter().map(|one| u16::from_le_bytes(*one).into());
                HostTensor::from_vec(wide.collect::<Vec<i32>>(), &self.shape)
            }
            Stored::U32 => {
                let wide = data.as_chunks().0.iter().map(|one| u32::from_le_bytes(*one).into());
                HostTensor::from_vec(wide.collect::<Vec<i64>>(), &self.shape)
            }
            Stored::U64 => {
                let wide = data.as_chunks().0.iter().map(|one| {
                    let number = u64::from_le_bytes(*one);
                    i64::try_from(number).map_err(|_| broken(format!("{number} does not fit i64")))
                });
                HostTensor::from_vec(wide.collect::<Result<Vec<i64>, _>>()?, &self.shape)
            }
        };
        tensor.map_err(|error| broken(error.to_string()))
    }
}

/// What follows a key of the dictionary.
fn value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let after = |quote: char| {
        let key = format!("{quote}{key}{quote}");
        header.split_once(key.as_str()).map(|(_, after)| after)
    };
    let after = after('\'').or_else(|| after('"'))?;
    Some(after.trim_start().strip_prefix(':')?.trim_start())
}

/// The text between the quotes with which it begins.
fn quoted(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|first| matches!(first, '\'' | '"'))?;
    text.get(1..)?.split_once(quote).map(|(inner, _)| inner)
}

/// NumPy's type string: byte order, kind, bytes.
fn stored(descr: &str) -> Option<(Stored, bool)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let big_endian = match order {
        "<" | "|" | "=" => false,
        ">" => true,
        _ => return None,
    };
    let stored = match kind {
        "f4" => Stored::As(DType::F32),
        "f8" => Stored::As(DType::F64),
        "f2" => Stored::As(DType::F16),
        "i8" => Stored::As(DType::I64),
        "i4" => Stored::As(DType::I32),
        "i2" => Stored::As(DType::I16),
        "i1" => Stored::As(DType::I8),
        "u1" => Stored::As(DType::U8),
        "b1" => Stored::As(DType::Bool),
        "u2" => Stored::U16,
        "u4" => Stored::U32,
        "u8" => Stored::U64,
        _ => return None,
    };
    Some((stored, big_endian))
}

/// Elements whose first axis runs fastest, in the order in which the last one does.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = size;
    for axis in shape {
        strides.push(stride);
        stride *= axis;
    }
    let mut turned = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    while turned.len() < data.len() {
        let from: usize = index.iter().zip(&strides).map(|(index, stride)| index * stride).sum();
        turned.extend_from_slice(data.get(from..from + size).unwrap_or_default());
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    turned
}

#[cfg(test)]
#[path = "npy_tests.rs"]
mod tests;
