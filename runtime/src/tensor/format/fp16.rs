//! f32 as IEEE 754 binary16 and back: two bytes a value.
//!
//! The conversion is `half`'s: the processor's own (F16C) if it is there at run time, else the same
//! results in software.

use half::{f16, slice::HalfFloatSliceExt};

/// Values converted at once. They lie on the stack, in the first cache, between the caller's bytes,
/// which need not be aligned, and `half`'s slices, which must be.
const STEP: usize = 256;

/// `bytes` has two bytes for each value.
pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
    let mut step = [f16::ZERO; STEP];
    for (values, bytes) in values.chunks(STEP).zip(bytes.chunks_mut(2 * STEP)) {
        let step = &mut step[..values.len()];
        step.convert_from_f32_slice(values);
        bytes.copy_from_slice(bytemuck::cast_slice(step));
    }
}

/// Hands each slot of `out` to `put` with its value. `bytes` has two bytes for each slot.
pub(super) fn decode(bytes: &[u8], out: &mut [f32], put: impl Fn(&mut f32, f32)) {
    let (mut step, mut wide) = ([f16::ZERO; STEP], [0.0f32; STEP]);
    for (slots, bytes) in out.chunks_mut(STEP).zip(bytes.chunks(2 * STEP)) {
        let (step, wide) = (&mut step[..slots.len()], &mut wide[..slots.len()]);
        bytemuck::cast_slice_mut(step).copy_from_slice(bytes);
        step.convert_to_f32_slice(wide);
        for (slot, &value) in slots.iter_mut().zip(&*wide) {
            put(slot, value);
        }
    }
}
