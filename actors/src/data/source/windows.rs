//! Windows of a long row of tokens: what language models learn from.

use footlight_runtime::{HostTensor, tensor::DType};

use super::{DataError, Field, Part, Sample, Source};

/// Tokens that can be read somewhere.
pub(super) trait Read: Send + Sync + 'static {
    /// Number of tokens.
    fn len(&self) -> usize;

    /// The tokens from `start` on; as many as `into` has room for, which there are.
    ///
    /// # Errors
    /// What keeps them from being read.
    fn read(&self, start: usize, into: &mut [i64]) -> Result<(), DataError>;
}

/// Windows of `block` tokens, each `stride` after the one before; the target of a token is the next one.
pub(super) struct Windows<R> {
    tokens: R,
    /// Where the first window begins.
    start: usize,
    block: usize,
    stride: usize,
    len: usize,
}

impl<R: Read> Windows<R> {
    pub(super) fn new(
        at: &str,
        tokens: R,
        block: usize,
        stride: usize,
        part: Part,
    ) -> Result<Self, DataError> {
        if block == 0 || stride == 0 {
            let why =
                format!("{at}: a window has at least 1 token and is at least 1 from the next");
            return Err(DataError::Spec(why));
        }
        let range = part.of(tokens.len());
        // The last window's targets end one token after it.
        let Some(room) = range.len().checked_sub(block.saturating_add(1)) else {
            return Err(DataError::Spec(format!(
                "{at} has {} tokens for this part, and a window of {block} takes {}",
                range.len(),
                block.saturating_add(1)
            )));
        };
        Ok(Windows { tokens, start: range.start, block, stride, len: room / stride + 1 })
    }
}

impl<R: Read> Source for Windows<R> {
    fn len(&self) -> usize {
        self.len
    }

    fn input(&self) -> Field {
        Field::new(DType::I64, &[self.block])
    }

    fn target(&self) -> Field {
        Field::new(DType::I64, &[self.block])
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        if index >= self.len {
            return Err(DataError::NoSample { index, samples: self.len });
        }
        let mut tokens = vec![0; self.block + 1];
        self.tokens.read(self.start + index * self.stride, &mut tokens)?;
        next_token(&tokens)
    }
}

/// The sample of some tokens: all but the last, and all but the first.
pub(super) fn next_token(tokens: &[i64]) -> Result<Sample, DataError> {
    let part = |range: std::ops::Range<usize>| {
        let part = tokens.get(range).unwrap_or_default().to_vec();
        let len = part.len();
        HostTensor::from_vec(part, &[len]).map_err(|error| DataError::Spec(error.to_string()))
    };
    Ok(Sample { input: part(0..tokens.len().saturating_sub(1))?, target: part(1..tokens.len())? })
}
