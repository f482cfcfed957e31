//! The types of a tensor's elements, and their codes on the wire.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::TensorError;

/// The type of a tensor's elements.
///
/// The codes that travel ([`DType::code`]) never change their meaning; new types get new codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit IEEE 754 floating point.
    F32,
    /// 64-bit IEEE 754 floating point.
    F64,
    /// 16-bit IEEE 754 floating point.
    F16,
    /// The upper 16 bits of an [`F32`](DType::F32).
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// A truth value in one byte: 0 or 1, nothing else.
    Bool,
}

impl DType {
    /// Every type, in the order of the codes.
    pub const ALL: [DType; 10] = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::Bool,
    ];

    /// Bytes that one element takes.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// The name that people read: `f32`, `bf16`, `bool`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I16 => "i16",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    /// The code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            DType::F32 => 1,
            DType::F64 => 2,
            DType::F16 => 3,
            DType::BF16 => 4,
            DType::I64 => 5,
            DType::I32 => 6,
            DType::I16 => 7,
            DType::I8 => 8,
            DType::U8 => 9,
            DType::Bool => 10,
        }
    }

    /// The type with that code.
    ///
    /// # Errors
    /// [`TensorError::UnknownDType`] for a code that this version doesn't know.
    pub fn from_code(code: u8) -> Result<DType, TensorError> {
        DType::ALL
            .into_iter()
            .find(|dtype| dtype.code() == code)
            .ok_or(TensorError::UnknownDType { code })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A Rust type that can be a tensor's element. Sealed: the list is [`DType`]'s, without `Bool`,
/// whose bytes are read with [`HostTensor::bytes`](super::HostTensor::bytes).
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The matching element type.
    const DTYPE: DType;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements! {
    f32 => F32, f64 => F64, half::f16 => F16, half::bf16 => BF16,
    i64 => I64, i32 => I32, i16 => I16, i8 => I8, u8 => U8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_on_the_wire_stay_what_they_are() {
        let codes: Vec<_> = DType::ALL.iter().map(|d| (d.code(), d.name(), d.size())).collect();
        assert_eq!(
            codes,
            [
                (1, "f32", 4),
                (2, "f64", 8),
                (3, "f16", 2),
                (4, "bf16", 2),
                (5, "i64", 8),
                (6, "i32", 4),
                (7, "i16", 2),
                (8, "i8", 1),
                (9, "u8", 1),
                (10, "bool", 1)
            ]
        );
    }

    #[test]
    fn a_code_finds_its_type_again_and_an_unknown_one_is_an_error() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype.code()), Ok(dtype));
        }
        for code in [0, 11, 255] {
            assert_eq!(DType::from_code(code), Err(TensorError::UnknownDType { code }));
        }
    }

    #[test]
    fn an_elements_size_is_its_types_size() {
        fn check<T: Element>() {
            assert_eq!(size_of::<T>(), T::DTYPE.size());
        }
        check::<f32>();
        check::<f64>();
        check::<half::f16>();
        check::<half::bf16>();
        check::<i64>();
        check::<i32>();
        check::<i16>();
        check::<i8>();
        check::<u8>();
    }
}
