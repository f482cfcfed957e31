//! The IDX format of MNIST and Fashion-MNIST, plain or gzipped.
//!
//! A file is a magic number (two zero bytes, the element type 0x08 for `u8`, the number of dimensions), each
//! dimension as a big-endian `u32`, and the elements. The source is Yann LeCun's page of MNIST.
//!
//! Nothing is allocated on a header's word alone: a plain file must be as long as its header says before it is
//! read, and a gzipped one is read no further than its header and [`MAX_BYTES`] allow.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{DataError, Images, ImagesError, files};
use crate::data::Split;

/// The most data that one file may hold: 1 GiB (MNIST's largest file has 47 MB).
pub(super) const MAX_BYTES: u64 = 1 << 30;

/// Classes of the data sets in this format unless told otherwise: the digits, or Fashion-MNIST's ten kinds of clothes.
const CLASSES: usize = 10;

fn prefix(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Test => "t10k",
    }
}

/// What an IDX file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Three dimensions: images, rows, columns.
    Images,
    /// One dimension.
    Labels,
}

impl Content {
    fn name(self) -> &'static str {
        match self {
            Self::Images => "images-idx3-ubyte",
            Self::Labels => "labels-idx1-ubyte",
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Images => "images",
            Self::Labels => "labels",
        })
    }
}

/// Why a data set could not be read: each says in one line which file, what is wrong with it, and what to do.
#[derive(Debug, Error)]
pub enum IdxError {
    /// Neither the plain nor the gzipped file is there.
    #[error(
        "there is no {name} (nor {name}.gz) in {}: `cargo xtask setup --dataset mnist` (or fashion-mnist) gets the \
         data, or name a folder that has it with `--data DIR`", .dir.display()
    )]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The plain file's name.
        name: String,
    },
    /// An object store could not be read.
    #[error("{0}")]
    Remote(String),
    /// The system would not let the file be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The gzip layer is damaged.
    #[error("{} is damaged: its gzip data cannot be unpacked ({source}); get the file again", .path.display())]
    Gzip {
        /// The file.
        path: PathBuf,
        /// What the decoder found.
        source: io::Error,
    },
    /// The file begins otherwise than it must.
    #[error(
        "{} is no IDX file of {content}: it begins with {found:#010x} where {expected:#010x} belongs", .path.display()
    )]
    Magic {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        content: Content,
        /// The magic number it has.
        found: u32,
        /// The magic number of such a file.
        expected: u32,
    },
    /// The file ends too early.
    #[error(
        "{} is cut short: it has {has} bytes and its header promises {promised}; get the file again", .path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes (unpacked) that are there, header included.
        has: u64,
        /// Bytes that must be there, header included.
        promised: u64,
    },
    /// The file goes on after its end.
    #[error(
        "{} is too long: its header promises {promised} bytes and more follow; get the file again", .path.display()
    )]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Bytes (unpacked) that belong there, header included.
        promised: u64,
    },
    /// The header's dimensions are beyond what is read at all.
    #[error(
        "{} promises {dimensions:?} elements, more than the {MAX_BYTES} bytes that a data file may have",
        .path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The header's dimensions.
        dimensions: Vec<u32>,
    },
    /// The file holds no element.
    #[error("{} is empty: its header says {dimensions:?}", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The header's dimensions.
        dimensions: Vec<u32>,
    },
    /// Images and labels are not of one set.
    #[error(
        "{} has {images} images and {} has {labels} labels: they do not belong together",
        .images_path.display(), .labels_path.display()
    )]
    Counts {
        /// The images' file.
        images_path: PathBuf,
        /// Number of images.
        images: usize,
        /// The labels' file.
        labels_path: PathBuf,
        /// Number of labels.
        labels: usize,
    },
    /// A label is out of range.
    #[error("{}: {source}", .path.display())]
    Labels {
        /// The labels' file.
        path: PathBuf,
        /// What is wrong.
        source: ImagesError,
    },
}

/// A data set in four IDX files of one folder, under their canonical names: `train-images-idx3-ubyte`,
/// `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each as it is or with `.gz`.
///
/// Samples are `u8` `[rows, cols]` with a `u8` label. It knows training and test samples apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idx {
    dir: PathBuf,
    classes: usize,
}

impl Idx {
    /// In this folder, or below `s3://bucket/prefix`. Labels are below 10.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Idx { dir: dir.into(), classes: CLASSES }
    }

    /// Labels are below this, at most 256.
    #[must_use]
    pub fn classes(mut self, classes: usize) -> Self {
        self.classes = classes;
        self
    }

    pub(super) fn open(&self, split: Split) -> Result<Images, DataError> {
        Ok(open(&self.dir, split, self.classes)?)
    }
}

/// Reads the files of an [`Idx`] directly.
#[derive(Debug, Clone, Copy)]
pub struct IdxDataset;

impl IdxDataset {
    /// Reads one part of the data set in `dir` into memory. Where a file is there both ways, the plain one is read.
    ///
    /// # Errors
    /// See [`IdxError`].
    pub fn open(dir: impl AsRef<Path>, split: Split) -> Result<Images, IdxError> {
        open(dir.as_ref(), split, CLASSES)
    }
}

fn open(dir: &Path, split: Split, classes: usize) -> Result<Images, IdxError> {
    let images = read::<3>(dir, split, Content::Images)?;
    let labels = read::<1>(dir, split, Content::Labels)?;
    let [count, rows, cols] = images.dimensions;
    if count as usize != labels.data.len() {
        return Err(IdxError::Counts {
            images_path: images.path,
            images: count as usize,
            labels_path: labels.path,
            labels: labels.data.len(),
        });
    }
    Images::new(images.data, labels.data, (rows as usize, cols as usize), classes)
        .map_err(|source| IdxError::Labels { path: labels.path, source })
}

/// A file's content: `N` dimensions and as many elements as they say.
struct Array<const N: usize> {
    path: PathBuf,
    dimensions: [u32; N],
    data: Vec<u8>,
}

fn read<const N: usize>(dir: &Path, split: Split, content: Content) -> Result<Array<N>, IdxError> {
    let name = format!("{}-{}", prefix(split), content.name());
    let plain = dir.join(&name);
    let gzipped = dir.join(format!("{name}.gz"));
    if files::is_remote(dir) {
        let fetch = |path: &Path, limit| {
            files::read_if_there(path, limit).map_err(|error| IdxError::Remote(error.to_string()))
        };
        let limit = MAX_BYTES + Header::<N>::LEN;
        if let Some(bytes) = fetch(&plain, limit)? {
            return read_plain(&bytes[..], bytes.len() as u64, plain, content);
        }
        if let Some(bytes) = fetch(&gzipped, limit)? {
            return read_gzipped(&bytes[..], gzipped, content);
        }
    } else if plain.exists() {
        let (file, len) = open_file(&plain)?;
        return read_plain(BufReader::new(file), len, plain, content);
    } else if gzipped.exists() {
        let (file, _) = open_file(&gzipped)?;
        return read_gzipped(BufReader::new(file), gzipped, content);
    }
    Err(IdxError::Missing { dir: dir.to_owned(), name })
}

fn read_plain<const N: usize>(
    mut file: impl BufRead,
    len: u64,
    path: PathBuf,
    content: Content,
) -> Result<Array<N>, IdxError> {
    let wrong = |source| IdxError::Read { path: path.clone(), source };
    let header = Header::<N>::read(&mut file, &path, content, &wrong)?;
    let promised = header.promised();
    match len.cmp(&promised) {
        std::cmp::Ordering::Less => Err(IdxError::Truncated { path, has: len, promised }),
        std::cmp::Ordering::Greater => Err(IdxError::Trailing { path, promised }),
        std::cmp::Ordering::Equal => {
            let data = Vec::with_capacity(header.elements as usize);
            header.read_elements(&mut file, &path, data, &wrong)
        }
    }
}

fn read_gzipped<const N: usize>(
    file: impl BufRead,
    path: PathBuf,
    content: Content,
) -> Result<Array<N>, IdxError> {
    let wrong = |source| IdxError::Gzip { path: path.clone(), source };
    let mut file = MultiGzDecoder::new(file);
    let header = Header::<N>::read(&mut file, &path, content, &wrong)?;
    header.read_elements(&mut file, &path, Vec::new(), &wrong) // grows with what really comes
}

fn open_file(path: &Path) -> Result<(File, u64), IdxError> {
    let wrong = |source| IdxError::Read { path: path.to_owned(), source };
    let about = path.metadata().map_err(wrong)?;
    if !about.is_file() {
        return Err(wrong(io::Error::other("it is not a file"))); // a pipe would make us wait for ever
    }
    Ok((File::open(path).map_err(wrong)?, about.len()))
}

struct Header<const N: usize> {
    dimensions: [u32; N],
    /// Their product, at most [`MAX_BYTES`].
    elements: u64,
}

impl<const N: usize> Header<N> {
    const LEN: u64 = 4 + 4 * N as u64;

    fn read(
        file: &mut impl Read,
        path: &Path,
        content: Content,
        wrong: &impl Fn(io::Error) -> IdxError,
    ) -> Result<Self, IdxError> {
        let mut bytes = Vec::new();
        fill(file, Self::LEN, &mut bytes).map_err(wrong)?;
        let mut words = bytes.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word));
        let expected = 0x0800 + N as u32;
        if let Some(found) = words.next().filter(|found| *found != expected) {
            return Err(IdxError::Magic { path: path.to_owned(), content, found, expected });
        }
        let Ok(dimensions) = <[u32; N]>::try_from(words.collect::<Vec<_>>()) else {
            let has = bytes.len() as u64;
            return Err(IdxError::Truncated { path: path.to_owned(), has, promised: Self::LEN });
        };
        if dimensions.contains(&0) {
            return Err(IdxError::Empty { path: path.to_owned(), dimensions: dimensions.into() });
        }
        let elements = dimensions.iter().try_fold(1u64, |all, &one| all.checked_mul(one.into()));
        match elements.filter(|elements| *elements <= MAX_BYTES) {
            Some(elements) => Ok(Self { dimensions, elements }),
            None => {
                Err(IdxError::TooLarge { path: path.to_owned(), dimensions: dimensions.into() })
            }
        }
    }

    /// Bytes of the whole file.
    fn promised(&self) -> u64 {
        Self::LEN + self.elements
    }

    fn read_elements(
        self,
        file: &mut impl Read,
        path: &Path,
        mut data: Vec<u8>,
        wrong: &impl Fn(io::Error) -> IdxError,
    ) -> Result<Array<N>, IdxError> {
        let (path, promised) = (path.to_owned(), self.promised());
        fill(file, self.elements, &mut data).map_err(wrong)?;
        let has = Self::LEN + data.len() as u64;
        if has < promised {
            return Err(IdxError::Truncated { path, has, promised });
        }
        // Looking for more also makes gzip check its sum.
        if file.take(1).read_to_end(&mut Vec::new()).map_err(wrong)? > 0 {
            return Err(IdxError::Trailing { path, promised });
        }
        Ok(Array { path, dimensions: self.dimensions, data })
    }
}

/// Reads `len` bytes, or as many as there are. A gzip stream that was cut off counts as its end.
fn fill(file: &mut impl Read, len: u64, into: &mut Vec<u8>) -> io::Result<()> {
    match file.take(len).read_to_end(into) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "idx_tests.rs"]
mod tests;
