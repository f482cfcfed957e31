//! Labelled images of one size, in memory.

use bytes::Bytes;
use footlight_runtime::{HostTensor, tensor::DType};
use thiserror::Error;

use super::{DataError, Field, Sample, Source};

/// Labelled images of one size, in memory. Cloning it copies nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Images {
    images: Bytes,
    labels: Bytes,
    rows: usize,
    cols: usize,
    classes: usize,
}

/// Why [`Images`] could not be made, or a sample not be found in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImagesError {
    /// There is nothing in it.
    #[error("the data set has no samples")]
    Empty,
    /// The images' bytes are not `labels × rows × cols`.
    #[error(
        "{labels} labels of {rows}×{cols} images need that many bytes of pixels, and there are {bytes}"
    )]
    Size {
        /// Number of labels.
        labels: usize,
        /// Height of an image.
        rows: usize,
        /// Width of an image.
        cols: usize,
        /// Bytes of pixels that came.
        bytes: usize,
    },
    /// A label is none of the classes.
    #[error("label {label} of sample {index} is not one of the {classes} classes 0..{classes}")]
    Label {
        /// Which sample.
        index: usize,
        /// What stands there.
        label: u8,
        /// How many classes there are.
        classes: usize,
    },
    /// A sample was asked for that is not there.
    #[error("there is no sample {index}: the data set has {samples}")]
    NoSample {
        /// Which sample.
        index: usize,
        /// How many there are.
        samples: usize,
    },
}

impl Images {
    /// Makes a data set of `labels.len()` images: `images` holds their pixels, one byte each, image after image and
    /// row after row (`n × rows × cols`), and every label is below `classes`.
    ///
    /// # Errors
    /// Whatever of that does not hold.
    pub fn new(
        images: impl Into<Bytes>,
        labels: impl Into<Bytes>,
        (rows, cols): (usize, usize),
        classes: usize,
    ) -> Result<Self, ImagesError> {
        let (images, labels) = (images.into(), labels.into());
        if images.is_empty() || labels.is_empty() {
            return Err(ImagesError::Empty);
        }
        let pixels = rows.checked_mul(cols).and_then(|pixels| pixels.checked_mul(labels.len()));
        if pixels != Some(images.len()) {
            return Err(ImagesError::Size {
                labels: labels.len(),
                rows,
                cols,
                bytes: images.len(),
            });
        }
        if let Some((index, &label)) =
            labels.iter().enumerate().find(|(_, label)| usize::from(**label) >= classes)
        {
            return Err(ImagesError::Label { index, label, classes });
        }
        Ok(Self { images, labels, rows, cols, classes })
    }

    /// Number of samples, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Height of an image in pixels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of an image in pixels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of classes; every label is below it.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// All pixels: `n × rows × cols` bytes.
    pub fn images(&self) -> &Bytes {
        &self.images
    }

    /// All labels: `n` bytes.
    pub fn labels(&self) -> &Bytes {
        &self.labels
    }

    /// One sample: its `rows × cols` pixels and its label.
    ///
    /// # Errors
    /// [`ImagesError::NoSample`].
    pub fn sample(&self, index: usize) -> Result<(&[u8], u8), ImagesError> {
        let missing = ImagesError::NoSample { index, samples: self.len() };
        let pixels = self.rows * self.cols;
        let start = index.checked_mul(pixels).ok_or(missing.clone())?;
        let image = start.checked_add(pixels).and_then(|end| self.images.get(start..end));
        match (image, self.labels.get(index)) {
            (Some(image), Some(&label)) => Ok((image, label)),
            _ => Err(missing),
        }
    }

    /// The samples `indices`, in that order: their pixels (`n × rows × cols` bytes) and their labels (`n` bytes).
    ///
    /// # Errors
    /// [`ImagesError::NoSample`].
    pub fn gather(&self, indices: &[u32]) -> Result<(Vec<u8>, Vec<u8>), ImagesError> {
        let mut images = Vec::with_capacity(indices.len() * self.rows * self.cols);
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            let (image, label) = self.sample(index as usize)?;
            images.extend_from_slice(image);
            labels.push(label);
        }
        Ok((images, labels))
    }
}

impl Source for Images {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn input(&self) -> Field {
        Field::new(DType::U8, &[self.rows, self.cols])
    }

    fn target(&self) -> Field {
        Field::scalar(DType::U8)
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        Images::sample(self, index)?;
        let pixels = self.rows * self.cols;
        let image = self.images.slice(index * pixels..(index + 1) * pixels);
        let label = self.labels.slice(index..index + 1);
        let tensor = |shape: &[usize], bytes| {
            HostTensor::from_bytes(DType::U8, shape, bytes)
                .map_err(|error| DataError::Spec(error.to_string()))
        };
        Ok(Sample { input: tensor(&[self.rows, self.cols], image)?, target: tensor(&[], label)? })
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Images({} of {}×{}, {} classes)", self.len(), self.rows, self.cols, self.classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> Images {
        Images::new((0..24).collect::<Vec<u8>>(), vec![0, 1, 2, 1], (2, 3), 3).unwrap()
    }

    #[test]
    fn samples_are_gathered_in_the_order_asked_for() {
        let (images, labels) = four().gather(&[3, 0]).unwrap();
        assert_eq!(images, [18, 19, 20, 21, 22, 23, 0, 1, 2, 3, 4, 5]);
        assert_eq!(labels, [1, 0]);
        assert_eq!(four().gather(&[]).unwrap(), (vec![], vec![]));
    }

    #[test]
    fn a_sample_that_is_not_there_is_an_error() {
        assert_eq!(four().gather(&[4]), Err(ImagesError::NoSample { index: 4, samples: 4 }));
        assert!(four().sample(usize::MAX).is_err());
        assert!(four().sample(usize::MAX / 6 + 1).is_err());
    }

    #[test]
    fn a_data_set_that_does_not_fit_together_is_refused() {
        assert_eq!(Images::new(vec![], vec![], (2, 3), 3), Err(ImagesError::Empty));
        assert!(matches!(
            Images::new(vec![0; 7], vec![0], (2, 3), 3),
            Err(ImagesError::Size { bytes: 7, .. })
        ));
        assert!(matches!(
            Images::new(vec![0; 6], vec![0], (usize::MAX, 3), 3),
            Err(ImagesError::Size { .. })
        ));
        let label = Images::new(vec![0; 12], vec![0, 3], (2, 3), 3).unwrap_err();
        assert_eq!(label.to_string(), "label 3 of sample 1 is not one of the 3 classes 0..3");
    }
}
