//! The norm of a gradient that is spread over shards, the same bits however it is spread.
//!
//! Floating-point sums depend on their order, and chunks, and so the order, depend on the number of shards. Here
//! the squares of 16 neighbours are added in a fixed order, and those sums exactly, as whole numbers: each goes into
//! a bin by its exponent, and bins are added in whatever order (a small superaccumulator, as in Neal, "Fast exact
//! summation using small and large superaccumulators", 2015).

use serde::{Deserialize, Serialize};

use super::layout::GROUP;

/// Spaces of fewer numbers than these are summed one by one: there chunks may begin anywhere.
const FEW: usize = 1 << 20;

/// A bin holds numbers whose binary exponents differ by less than this.
const WIDTH: u32 = 32;
/// Of the sums of a few squares of `f32`, the smallest has its bin here…
const FIRST: u32 = (1023 - 298) / WIDTH;
/// …and the largest, below 2²⁶¹, here.
const LAST: u32 = (1023 + 261) / WIDTH;
const BINS: usize = (LAST - FIRST + 1) as usize;

/// An exact sum of squares of `f32`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SquareSum {
    /// Bin `i` counts in units of 2^(32 × (i + FIRST) − 1075). There is room for 2⁴⁴ numbers.
    bins: [u128; BINS],
    finite: bool,
}

impl Default for SquareSum {
    fn default() -> Self {
        SquareSum { bins: [0; BINS], finite: true }
    }
}

impl SquareSum {
    /// Adds the squares of numbers which are part of a space of `space` numbers, and begin at a multiple of 16 in it
    /// or where it is small.
    pub fn add(&mut self, numbers: &[f32], space: usize) {
        if space < FEW {
            numbers.iter().for_each(|number| self.add_one(square(*number)));
            return;
        }
        let (groups, rest) = numbers.as_chunks::<GROUP>();
        for group in groups {
            // Four sums side by side, so that the processor adds several at once.
            let mut sums = [0.0f64; 4];
            for four in group.as_chunks::<4>().0 {
                sums.iter_mut().zip(four).for_each(|(sum, number)| *sum += square(*number));
            }
            self.add_one((sums[0] + sums[1]) + (sums[2] + sums[3]));
        }
        // What is left ends the space, wherever it is cut.
        rest.iter().for_each(|number| self.add_one(square(*number)));
    }

    fn add_one(&mut self, value: f64) {
        if value == 0.0 {
            return;
        }
        self.finite &= value.is_finite();
        // No square of an f32 is so small that it has no leading one of its own.
        let bits = value.to_bits();
        let exponent = (bits >> 52) as u32 & 0x7ff;
        let whole = u128::from(bits & ((1 << 52) - 1) | 1 << 52);
        let bin =
            (exponent / WIDTH).checked_sub(FIRST).and_then(|bin| self.bins.get_mut(bin as usize));
        if let Some(bin) = bin {
            *bin = bin.saturating_add(whole << (exponent % WIDTH));
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &SquareSum) {
        let both = self.bins.iter_mut().zip(other.bins);
        both.for_each(|(bin, more)| *bin = bin.saturating_add(more));
        self.finite &= other.finite;
    }

    /// Whether all numbers were finite.
    pub fn is_finite(&self) -> bool {
        self.finite
    }

    /// The square root of the sum; not a number if one of the numbers was not finite.
    pub fn norm(&self) -> f64 {
        if !self.finite {
            return f64::NAN;
        }
        let bins = (FIRST..)
            .zip(self.bins)
            .map(|(at, bin)| bin as f64 * libm::ldexp(1.0, (at * WIDTH) as i32 - 1075));
        bins.sum::<f64>().sqrt()
    }
}

fn square(number: f32) -> f64 {
    // Exact: 48 bits at most.
    f64::from(number) * f64::from(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(numbers: &[f32], space: usize) -> SquareSum {
        let mut sum = SquareSum::default();
        sum.add(numbers, space);
        sum
    }

    #[test]
    fn the_norm_is_that_of_all_numbers() {
        for space in [0, FEW] {
            assert_eq!(of(&[3.0, 4.0], space).norm(), 5.0);
            assert_eq!(of(&[], space).norm(), 0.0);
            let numbers: Vec<f32> = (0..1003).map(|at| at as f32 / 8.0 - 3.0).collect();
            let right = numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            assert!((of(&numbers, space).norm() / right - 1.0).abs() < 1e-15);
        }
    }

    #[test]
    fn the_largest_and_the_smallest_numbers_have_their_place() {
        for number in [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
            for space in [0, FEW] {
                let norm = of(&[number; 16], space).norm();
                assert!((norm / (4.0 * f64::from(number)) - 1.0).abs() < 1e-15, "{number} {norm}");
            }
        }
    }

    #[test]
    fn one_number_that_is_not_finite_shows() {
        for at in [0, 15, 16, 32] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut numbers = [1.0; 33];
                numbers[at] = bad;
                for space in [0, FEW] {
                    let mut sum = SquareSum::default();
                    sum.merge(&of(&numbers, space));
                    assert!(!sum.is_finite() && sum.norm().is_nan());
                }
            }
        }
    }

    proptest! {
        /// Wherever a space is cut, in whatever order the parts are added.
        #[test]
        fn a_cut_does_not_change_a_bit(
            numbers in prop::collection::vec(-1e20f32..1e20, 1..400),
            scale in -40i32..20,
            cut in 0usize..400,
            large: bool,
        ) {
            let scale = libm::ldexp(1.0, scale) as f32;
            let numbers: Vec<f32> = numbers.iter().map(|x| x * scale * x.fract()).collect();
            let space = if large { FEW } else { numbers.len() };
            let cut = cut.min(numbers.len());
            let cut = if large { cut - cut % GROUP } else { cut };
            let mut parts = of(&numbers[cut..], space);
            parts.merge(&of(&numbers[..cut], space));
            let whole = of(&numbers, space);
            prop_assert_eq!(parts, whole);
            prop_assert_eq!(parts.norm().to_bits(), whole.norm().to_bits());
        }
    }
}
