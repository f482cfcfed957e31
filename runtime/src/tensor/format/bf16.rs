//! f32 as bf16 and back: two bytes a value, the upper half of the f32 after rounding.

/// Rounds to the nearest bf16, to the even one of two that are equally near.
///
/// Adding a little less than half of the last place that stays, and one more if that place is odd,
/// carries into it exactly when rounding up is right; so does the carry into the exponent, up to
/// infinity. A NaN must not be rounded (it could become infinity): it stays one by its quiet bit.
/// Without a branch, so that the loop around it becomes SIMD.
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    ((if value.is_nan() { quiet } else { rounded }) >> 16) as u16
}

/// `bytes` has two bytes for each value.
pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
    for (pair, &value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *pair = round(value).to_le_bytes();
    }
}

/// Hands each slot of `out` to `put` with its value. `bytes` has two bytes for each slot.
pub(super) fn decode(bytes: &[u8], out: &mut [f32], put: impl Fn(&mut f32, f32)) {
    for (slot, &pair) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        put(slot, f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16));
    }
}
