use super::*;

/// Numbers of about -1 to 1 without a random source.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn the_first_step_of_adam_moves_each_parameter_by_the_learning_rate() {
    let adam = OptimizerSpec::from(Adam::new(0.01));
    let (mut state, mut out) = (adam.state(3), [0.0; 3]);
    adam.apply(&mut state, 1, 1.0, &[1.0, 1.0, 1.0], &[5.0, -0.001, 0.0], &mut out).unwrap();
    for (out, expected) in out.iter().zip([0.99, 1.01, 1.0]) {
        assert!((out - expected).abs() < 1e-6, "{out} {expected}");
    }
}

#[test]
fn a_cut_into_chunks_does_not_change_a_bit() {
    for spec in [
        OptimizerSpec::from(Adam::new(1e-2).weight_decay(0.1)),
        AdamW::new(1e-2).weight_decay(0.1).into(),
        Adagrad::new(1e-2).weight_decay(0.1).into(),
        Sgd::new(0.1).weight_decay(0.01).into(),
        Sgd::new(0.1).momentum(0.9).nesterov(true).into(),
    ] {
        let (start, grad) = (numbers(101, 1), numbers(101, 2));
        let (mut whole, mut state) = (start.clone(), spec.state(101));
        let mut cut = start.clone();
        let mut states = [spec.state(37), spec.state(64)];
        for t in 1..=20 {
            let from = whole.clone();
            spec.apply(&mut state, t, 0.5, &from, &grad, &mut whole).unwrap();
            let from = cut.clone();
            spec.apply(&mut states[0], t, 0.5, &from[..37], &grad[..37], &mut cut[..37]).unwrap();
            spec.apply(&mut states[1], t, 0.5, &from[37..], &grad[37..], &mut cut[37..]).unwrap();
        }
        assert!(whole.iter().zip(&cut).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_ne!(whole, start);
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused_and_nothing_changes() {
    let adam = OptimizerSpec::from(Adam::new(0.01));
    let (mut state, mut out) = (adam.state(3), [7.0; 3]);
    for (params, grad) in
        [(&[1.0; 3][..], &[1.0; 2][..]), (&[1.0; 2], &[1.0; 2]), (&[1.0; 2], &[1.0; 3])]
    {
        let refused = adam.apply(&mut state, 1, 1.0, params, grad, &mut out);
        assert!(matches!(refused, Err(OptimizerError::Mismatch { .. })));
    }
    let sgd = OptimizerSpec::from(Sgd::new(0.1));
    assert!(sgd.apply(&mut state, 1, 1.0, &[1.0; 3], &[1.0; 3], &mut out).is_err());
    assert_eq!((state, out), (adam.state(3), [7.0; 3]));
}

#[test]
fn settings_out_of_range_are_named() {
    let refused = |spec: OptimizerSpec| spec.validate().unwrap_err().to_string();
    assert!(refused(Adam::new(-1.0).into()).contains("learning rate is -1"));
    assert!(refused(Adam::new(f64::NAN).into()).contains("learning rate is NaN"));
    assert!(refused(Adam::new(f64::INFINITY).into()).contains("learning rate is inf"));
    assert!(refused(Adam::new(1e-3).betas(0.9, 1.0).into()).contains("beta2 is 1"));
    assert!(refused(Adam::new(1e-3).eps(0.0).into()).contains("eps is 0"));
    assert!(refused(Sgd::new(0.1).nesterov(true).into()).contains("Nesterov"));
    assert!(refused(Sgd::new(0.1).momentum(1.0).into()).contains("momentum is 1"));
    assert!(refused(Sgd::new(0.1).weight_decay(-1.0).into()).contains("weight decay is -1"));
    assert_eq!(OptimizerSpec::from(Sgd::new(0.1).momentum(0.9).nesterov(true)).validate(), Ok(()));
}

#[test]
fn a_specification_travels() {
    let spec = OptimizerSpec::from(Adam::new(1e-3).schedule(Schedule::Cosine));
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<OptimizerSpec>(&text).unwrap(), spec);
}

#[cfg(feature = "torch")]
mod against_libtorch {
    use tch::nn::{self, OptimizerConfig};
    use tch::{Device, Tensor};

    use super::*;

    fn assert_close(t: u64, ours: &[f32], theirs: &[f32]) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            let close = (ours - theirs).abs() <= 1e-6 + 1e-6 * theirs.abs();
            assert!(close, "step {t}: {ours} {theirs}");
        }
    }

    /// A hundred steps of both on the same gradients: those of a quadratic, with noise. Every step's learning rate
    /// is another one.
    fn compare(ours: OptimizerSpec, theirs: impl OptimizerConfig, lr: f64) {
        const LEN: usize = 1000;
        let store = nn::VarStore::new(Device::Cpu);
        let mut variable = store.root().zeros("p", &[LEN as i64]);
        let mut params = numbers(LEN, 7);
        tch::no_grad(|| variable.copy_(&Tensor::from_slice(&params)));
        let mut optimizer = theirs.build(&store, lr).unwrap();
        let mut state = ours.state(LEN);
        for t in 1..=100 {
            let scale = Schedule::Cosine.factor(t - 1, 100);
            let noise = numbers(LEN, 100 + t as u32);
            optimizer.set_lr(lr * scale);
            optimizer.zero_grad();
            let loss = ((&variable * 1.5 + Tensor::from_slice(&noise)) * variable.detach())
                .sum(tch::Kind::Float);
            loss.backward();
            let mut grad = vec![0.0; LEN];
            variable.grad().copy_data(&mut grad, LEN);
            optimizer.step();

            let from = params.clone();
            ours.apply(&mut state, t, scale, &from, &grad, &mut params).unwrap();
            let mut expected = vec![0.0; LEN];
            variable.copy_data(&mut expected, LEN);
            assert_close(t, &params, &expected);
        }
        assert_ne!(params, numbers(LEN, 7));
    }

    #[test]
    fn adam_takes_the_steps_of_libtorch() {
        compare(Adam::new(1e-3).into(), nn::Adam::default(), 1e-3);
    }

    #[test]
    fn adam_with_other_settings_takes_the_steps_of_libtorch() {
        let ours = Adam::new(1e-2).betas(0.8, 0.99).eps(1e-6).weight_decay(0.05);
        let theirs = nn::Adam::default().beta1(0.8).beta2(0.99).eps(1e-6).wd(0.05);
        compare(ours.into(), theirs, 1e-2);
    }

    #[test]
    fn adamw_takes_the_steps_of_libtorch() {
        let theirs = nn::AdamW { wd: 0.01, ..nn::AdamW::default() };
        compare(AdamW::new(1e-3).into(), theirs, 1e-3);
        let ours = AdamW::new(1e-2).betas(0.8, 0.99).eps(1e-6).weight_decay(0.3);
        let theirs = nn::AdamW::default().beta1(0.8).beta2(0.99).eps(1e-6).wd(0.3);
        compare(ours.into(), theirs, 1e-2);
    }

    /// Of Adagrad libtorch's class is not bound by tch: these are its steps, by libtorch's kernels.
    #[test]
    fn adagrad_takes_the_steps_of_libtorch() {
        const LEN: usize = 1000;
        for (lr, eps, decay) in [(0.01, 1e-10, 0.0), (0.1, 1e-6, 0.05)] {
            let ours = OptimizerSpec::from(Adagrad::new(lr).eps(eps).weight_decay(decay));
            let (mut state, mut params) = (ours.state(LEN), numbers(LEN, 7));
            let mut theirs = Tensor::from_slice(&params);
            let mut sum = theirs.zeros_like();
            for t in 1..=100 {
                let scale = Schedule::Linear.factor(t - 1, 100);
                let grad = numbers(LEN, 100 + t as u32);
                let g = Tensor::from_slice(&grad) + &theirs * decay;
                sum += &g * &g;
                theirs -= g * (lr * scale) / (sum.sqrt() + eps);

                let from = params.clone();
                ours.apply(&mut state, t, scale, &from, &grad, &mut params).unwrap();
                let mut expected = vec![0.0; LEN];
                theirs.copy_data(&mut expected, LEN);
                assert_close(t, &params, &expected);
            }
            assert_ne!(params, numbers(LEN, 7));
        }
    }

    #[test]
    fn descent_takes_the_steps_of_libtorch() {
        compare(Sgd::new(0.05).into(), nn::Sgd::default(), 0.05);
        compare(Sgd::new(0.05).weight_decay(0.1).into(), nn::sgd(0.0, 0.0, 0.1, false), 0.05);
        compare(
            Sgd::new(0.05).momentum(0.9).weight_decay(0.1).into(),
            nn::sgd(0.9, 0.0, 0.1, false),
            0.05,
        );
        compare(
            Sgd::new(0.05).momentum(0.9).nesterov(true).into(),
            nn::sgd(0.9, 0.0, 0.0, true),
            0.05,
        );
    }
}
