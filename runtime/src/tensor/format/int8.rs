//! f32 as 8-bit integers with a scale for each block, and back.
//!
//! Symmetric block-wise quantisation, as in Dettmers and others, "8-bit Optimizers via Block-wise
//! Quantization" (2022), with evenly spaced codes: a block's scale is its largest magnitude / 127,
//! a value becomes the integer nearest to value / scale. One outlier then costs precision in its
//! own block and nowhere else.
//!
//! ```text
//! block = scale: f32 LE │ one i8 for each value: -127 to 127, or -128 for what is not finite
//! ```
//!
//! Blocks follow one another; the last one may be shorter. So the length depends on the number of
//! values alone, and each block can be read without the others.

/// Values that share a scale. A scale is 0.4 % of a block's bytes.
pub(super) const BLOCK: usize = 1024;
/// Bytes of a scale.
const SCALE: usize = size_of::<f32>();
/// The code of a value that is not finite; otherwise it would be the one that has no opposite.
const NOT_FINITE: u8 = i8::MIN as u8;

/// The bits of every finite positive f32 are below these.
const INFINITY: i32 = f32::INFINITY.to_bits() as i32;

/// Added to a number of at most 2^22, this leaves the nearest integer (the even one of two) in the
/// low bits of the sum. Rust's own conversion saturates, which would keep the loop from SIMD.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// Bytes for that many values.
pub(super) fn encoded_len(values: usize) -> usize {
    values.saturating_add(values.div_ceil(BLOCK).saturating_mul(SCALE))
}

/// `bytes` is of the length that [`encoded_len`] says.
pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
    for (values, block) in values.chunks(BLOCK).zip(bytes.chunks_mut(SCALE + BLOCK)) {
        let Some((head, codes)) = block.split_first_chunk_mut::<SCALE>() else { return };
        // A choice for each value would keep the loops from SIMD, so it is made for the block.
        let largest = largest(values, |_| true);
        let all_finite = largest < INFINITY;
        let largest = if all_finite { largest } else { self::largest(values, |x| x.is_finite()) };
        let (scale, inverse) = scale(f32::from_bits(largest as u32));
        *head = scale.to_le_bytes();
        for (code, value) in codes.iter_mut().zip(values) {
            *code = (value * inverse + ROUND).to_bits() as u8;
        }
        if !all_finite {
            let exceptions = codes.iter_mut().zip(values).filter(|(_, value)| !value.is_finite());
            exceptions.for_each(|(code, _)| *code = NOT_FINITE);
        }
    }
}

/// The bits of the largest magnitude among the values that count, without the sign. Those of
/// positive floats are ordered as the floats are, and an integer's `max` becomes SIMD.
fn largest(values: &[f32], counts: impl Fn(f32) -> bool) -> i32 {
    values.iter().filter(|&&value| counts(value)).fold(0, |largest, value| {
        let magnitude = value.to_bits() & 0x7fff_ffff;
        largest.max(magnitude as i32)
    })
}

/// The scale of a block, and what to multiply with to divide by it.
fn scale(largest: f32) -> (f32, f32) {
    let scale = largest / 127.0;
    // Rounded up, the scale of the greatest values would make infinities of them.
    let scale = if (127.0 * scale).is_finite() { scale } else { scale.next_down() };
    // A subnormal scale would be too coarse itself; the block is as good as zero.
    if scale < f32::MIN_POSITIVE { (0.0, 0.0) } else { (scale, 127.0 / largest) }
}

/// Hands each slot of `out` to `put` with its value. `bytes` is of the length that [`encoded_len`]
/// says.
pub(super) fn decode(bytes: &[u8], out: &mut [f32], put: impl Fn(&mut f32, f32)) {
    for (slots, block) in out.chunks_mut(BLOCK).zip(bytes.chunks(SCALE + BLOCK)) {
        let Some((head, codes)) = block.split_first_chunk::<SCALE>() else { return };
        let scale = f32::from_le_bytes(*head);
        let value = |code: u8| f32::from(code as i8) * scale;
        // Found first, in a quarter of the memory, so that the usual loop has no choice to make.
        // Without an early end, for the sake of SIMD.
        let all_finite = codes.iter().fold(true, |all, &code| all & (code != NOT_FINITE));
        let pairs = slots.iter_mut().zip(codes);
        if all_finite {
            pairs.for_each(|(slot, &code)| put(slot, value(code)));
        } else {
            pairs.for_each(|(slot, &code)| {
                put(slot, if code == NOT_FINITE { f32::NAN } else { value(code) });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So what was decoded has the same bytes when it is encoded again.
    #[test]
    fn the_scale_of_what_has_been_rounded_is_the_same_again() {
        for mantissa in 0..1 << 23 {
            let (once, _) = scale(f32::from_bits(127 << 23 | mantissa));
            assert_eq!(scale(127.0 * once).0, once, "{mantissa:#x}");
        }
    }
}
