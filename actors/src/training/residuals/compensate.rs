//! What int8 rounds off, and how it gets into the next gradient.

use footlight_runtime::{
    Error, HostTensor, Result,
    tensor::{BufferPool, WireFormat, WireTensor},
};

use crate::parameters::layout::Layout;

/// A slot's gradient as it goes to the shards, and the residual for its next step.
pub(in crate::training) struct Compensated {
    /// By chunk.
    pub(in crate::training) chunks: Vec<WireTensor>,
    /// Of all of them.
    pub(in crate::training) residual: WireTensor,
}

/// Adds a slot's residual to its gradient and rounds it. What is not finite leaves no residual: it says nothing of what
/// was rounded off.
pub(in crate::training) fn compensate(
    layout: &Layout,
    gradient: &HostTensor,
    residual: Option<&WireTensor>,
    pool: &BufferPool,
) -> Result<Compensated> {
    let gradient = gradient.as_slice::<f32>()?;
    let len = layout.len();
    let of_residual = residual.map_or(len, |residual| residual.shape().iter().product());
    if gradient.len() != len || of_residual != len {
        return Err(Error::other(format!(
            "the gradient has {} floats and its residual {of_residual}, and the job's parameters have {len}",
            gradient.len()
        )));
    }
    let mut rest = vec![0.0f32; len];
    if let Some(before) = residual {
        before.copy_to(&mut rest)?;
    }
    let mut chunks = Vec::with_capacity(layout.chunks());
    for chunk in 0..layout.chunks() {
        let range = layout.chunk(chunk).unwrap_or_default();
        let rest = &mut rest[range.clone()];
        let wanted = gradient[range].iter().zip(&*rest).map(|(value, before)| value + before);
        let wanted = HostTensor::from_vec(wanted.collect(), &[rest.len()])?;
        let encoded = wanted.encoded_in(WireFormat::Int8, pool);
        encoded.copy_to(rest)?;
        for (rest, wanted) in rest.iter_mut().zip(wanted.as_slice::<f32>()?) {
            let left = wanted - *rest;
            *rest = if left.is_finite() { left } else { 0.0 };
        }
        chunks.push(encoded);
    }
    let residual = HostTensor::from_vec(rest, &[len])?.encoded_in(WireFormat::Int8, pool);
    Ok(Compensated { chunks, residual })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(len: usize) -> Layout {
        Layout::new([("flat", vec![len])], 2).unwrap()
    }

    /// A gradient of numbers that int8 rounds, other ones each time.
    fn gradient(len: usize, step: usize) -> HostTensor {
        let values =
            (0..len).map(|at| (((at * 7919 + step * 104_729) % 2003) as f32 - 1001.0) / 1e3);
        HostTensor::from_vec(values.collect(), &[len]).unwrap()
    }

    #[test]
    fn what_is_sent_over_many_steps_is_what_was_computed_but_for_the_last_residual() {
        // The largest value, and with a residual that is a 254th of it at most.
        let largest = 1.002 * (1.0 + 1.0 / 254.0);
        let (len, steps) = (3000, 50);
        let (layout, pool) = (layout(len), BufferPool::new(1 << 20));
        let (mut computed, mut sent) = (vec![0.0f64; len], vec![0.0f64; len]);
        let mut residual = None;
        for step in 0..steps {
            let gradient = gradient(len, step);
            let done = compensate(&layout, &gradient, residual.as_ref(), &pool).unwrap();
            let mut flat = vec![0.0f32; len];
            for (chunk, encoded) in done.chunks.iter().enumerate() {
                encoded.copy_to(&mut flat[layout.chunk(chunk).unwrap()]).unwrap();
            }
            let all = sent.iter_mut().zip(&mut computed).zip(&flat);
            for (((sent, computed), q), g) in all.zip(gradient.as_slice::<f32>().unwrap()) {
                *sent += f64::from(*q);
                *computed += f64::from(*g);
            }
            residual = Some(done.residual);
        }
        let residual = residual.unwrap().into_tensor();
        for ((sent, computed), rest) in
            sent.iter().zip(&computed).zip(residual.as_slice::<f32>().unwrap())
        {
            let (lost, rest) = (computed - sent - f64::from(*rest), f64::from(*rest));
            assert!(lost.abs() < steps as f64 * largest / (254.0 * 254.0) + 1e-5, "{lost}");
            // One step's rounding, however many there were.
            assert!(rest.abs() < 1.01 * largest / 254.0, "{rest}");
        }
    }

    #[test]
    fn the_same_gradient_and_residual_give_the_same_bytes() {
        let (layout, pool) = (layout(3000), BufferPool::new(1 << 20));
        let rest = gradient(3000, 9).encoded(WireFormat::Int8);
        let [one, other] =
            [0, 1].map(|_| compensate(&layout, &gradient(3000, 1), Some(&rest), &pool).unwrap());
        let bytes = |done: &Compensated| -> Vec<_> {
            done.chunks.iter().map(|chunk| chunk.bytes().clone()).collect()
        };
        assert_eq!(bytes(&one), bytes(&other));
        assert_eq!(one.residual, other.residual);
    }

    #[test]
    fn what_is_not_finite_leaves_no_residual() {
        let (layout, pool) = (layout(8), BufferPool::new(1 << 20));
        let values = vec![1.0, f32::NAN, f32::INFINITY, 0.3, -0.7, 0.0, 1e-3, 5e-4];
        let gradient = HostTensor::from_vec(values, &[8]).unwrap();
        let done = compensate(&layout, &gradient, None, &pool).unwrap();
        let rest = done.residual.into_tensor();
        let rest = rest.as_slice::<f32>().unwrap();
        assert!(rest.iter().all(|rest| rest.is_finite()));
        assert_eq!((rest[1], rest[2]), (0.0, 0.0));
        assert!(rest[3] != 0.0 || rest[4] != 0.0);
    }

    #[test]
    fn a_residual_of_another_model_is_refused() {
        let (layout, pool) = (layout(8), BufferPool::new(1 << 20));
        let other = gradient(9, 0).encoded(WireFormat::Int8);
        let refused = compensate(&layout, &gradient(8, 0), Some(&other), &pool);
        let why = refused.err().unwrap().to_string();
        assert!(why.contains("its residual 9") && why.contains("parameters have 8"), "{why}");
    }
}
