//! The formats in which f32 elements travel, and the conversions from and to them.
//!
//! Each format is a file with two loops over slices: `encode`, and `decode`, which hands value by
//! value to what the caller does with it (store or add), so that adding needs no second pass. The
//! loops are written so that LLVM makes SIMD of them; every operation rounds as IEEE 754 says, so
//! the same values give the same bytes on every machine.

mod bf16;
mod fp16;
mod int8;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::TensorError;

/// How the elements of an f32 tensor travel: the sender's choice for each message.
///
/// What becomes of a value `x`; "largest" is the largest finite magnitude of the 1024 values that
/// share a scale:
///
/// | format | bytes a value | error at most | NaN | ±∞ | beyond the range |
/// | --- | --- | --- | --- | --- | --- |
/// | `F32` | 4 | 0 | same bits | same | – |
/// | `Bf16` | 2 | magnitude of `x` / 256 | NaN | same | from 3.3962e38 on ±∞ |
/// | `Fp16` | 2 | magnitude of `x` / 2048 | NaN | same | from 65520 on ±∞ |
/// | `Int8` | 1.004 | largest / 254 | NaN | NaN | – |
///
/// `Bf16` and `Fp16` round to the nearest, to the even one of two. Below their normal range (1.2e-38
/// and 6.1e-5) the error of a value is at most 2^-134 and 2^-25 instead.
/// With `Int8` the division and the product round as f32 do, which adds less than a
/// ten-thousandth of the bound; a block whose largest is below 1.5e-36 becomes zeros. Values
/// beside a NaN or an infinity in a block keep their precision.
///
/// ```
/// # use footlight_runtime::tensor::WireFormat;
/// let gradient = [1.0f32, -2.0, 0.5, f32::NAN];
/// let mut bytes = vec![0; WireFormat::Bf16.encoded_len(gradient.len())];
/// WireFormat::Bf16.encode_into(&gradient, &mut bytes)?;
/// assert_eq!(bytes.len(), 8);
///
/// let mut sums = [10.0f32; 4];
/// WireFormat::Bf16.add_decoded_into(&bytes, &mut sums)?;
/// assert_eq!(sums[..3], [11.0, 8.0, 10.5]);
/// assert!(sums[3].is_nan());
/// # Ok::<(), footlight_runtime::tensor::TensorError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum WireFormat {
    /// As they are: little-endian f32. The default.
    #[default]
    F32,
    /// The upper 16 bits of the f32: its range, with 8 significant bits.
    Bf16,
    /// IEEE 754 binary16: 11 significant bits, up to 65504.
    Fp16,
    /// 8-bit integers from -127 to 127 with an f32 scale for each 1024 values.
    Int8,
}

impl WireFormat {
    /// Every format, in the order of the codes.
    pub const ALL: [WireFormat; 4] =
        [WireFormat::F32, WireFormat::Bf16, WireFormat::Fp16, WireFormat::Int8];

    /// A tensor in any format can be read from every so many elements on.
    pub const PART: usize = int8::BLOCK;

    /// The name that people read: `f32`, `bf16`, `fp16`, `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            WireFormat::F32 => "f32",
            WireFormat::Bf16 => "bf16",
            WireFormat::Fp16 => "fp16",
            WireFormat::Int8 => "int8",
        }
    }

    /// The code on the wire. Codes never change their meaning; new formats get new ones.
    pub(super) const fn code(self) -> u8 {
        match self {
            WireFormat::F32 => 0,
            WireFormat::Bf16 => 1,
            WireFormat::Fp16 => 2,
            WireFormat::Int8 => 3,
        }
    }

    /// The format with that code.
    pub(super) fn from_code(code: u8) -> Result<WireFormat, TensorError> {
        WireFormat::ALL
            .into_iter()
            .find(|format| format.code() == code)
            .ok_or(TensorError::UnknownFormat { code })
    }

    /// Bytes that so many values take; `usize::MAX` if they are more than memory can have.
    pub fn encoded_len(self, values: usize) -> usize {
        match self {
            WireFormat::F32 => values.saturating_mul(4),
            WireFormat::Bf16 | WireFormat::Fp16 => values.saturating_mul(2),
            WireFormat::Int8 => int8::encoded_len(values),
        }
    }

    /// Writes `values` in this format over `bytes`, whose alignment doesn't matter.
    ///
    /// # Errors
    /// [`TensorError::EncodedLength`] if `bytes` is not of the length that
    /// [`encoded_len`](WireFormat::encoded_len) says; nothing is written then.
    pub fn encode_into(self, values: &[f32], bytes: &mut [u8]) -> Result<(), TensorError> {
        self.check(values.len(), bytes.len())?;
        self.encode(values, bytes);
        Ok(())
    }

    /// Writes the values that `bytes` stand for in this format over `values`. Any bytes of the
    /// right length are some values.
    ///
    /// # Errors
    /// [`TensorError::EncodedLength`] if `bytes` is not of the length that so many values take;
    /// nothing is written then.
    pub fn decode_into(self, bytes: &[u8], values: &mut [f32]) -> Result<(), TensorError> {
        self.check(values.len(), bytes.len())?;
        if self == WireFormat::F32 {
            bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
        } else {
            self.decode(bytes, values, |slot, value| *slot = value);
        }
        Ok(())
    }

    /// Adds the values that `bytes` stand for in this format to `sums`, in one pass. The sums have
    /// the same bits as if the values had been decoded first and added then.
    ///
    /// # Errors
    /// [`TensorError::EncodedLength`] if `bytes` is not of the length that so many values take;
    /// nothing is added then.
    pub fn add_decoded_into(self, bytes: &[u8], sums: &mut [f32]) -> Result<(), TensorError> {
        self.check(sums.len(), bytes.len())?;
        self.decode(bytes, sums, |sum, value| *sum += value);
        Ok(())
    }

    /// As [`encode_into`](WireFormat::encode_into), of lengths that are known to agree.
    pub(super) fn encode(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            WireFormat::F32 => bytes.copy_from_slice(bytemuck::cast_slice(values)),
            WireFormat::Bf16 => bf16::encode(values, bytes),
            WireFormat::Fp16 => fp16::encode(values, bytes),
            WireFormat::Int8 => int8::encode(values, bytes),
        }
    }

    /// Hands each slot of `out` to `put` with its value; of lengths that are known to agree.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32], put: impl Fn(&mut f32, f32)) {
        match self {
            WireFormat::F32 => {
                for (slot, &bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    put(slot, f32::from_le_bytes(bytes));
                }
            }
            WireFormat::Bf16 => bf16::decode(bytes, out, put),
            WireFormat::Fp16 => fp16::decode(bytes, out, put),
            WireFormat::Int8 => int8::decode(bytes, out, put),
        }
    }

    /// Whether so many bytes are so many values.
    pub(super) fn check(self, values: usize, found: usize) -> Result<(), TensorError> {
        let expected = self.encoded_len(values);
        if expected != found {
            return Err(TensorError::EncodedLength { format: self, values, expected, found });
        }
        Ok(())
    }
}

impl fmt::Display for WireFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
