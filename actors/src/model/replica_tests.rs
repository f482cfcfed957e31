use tch::nn;

use super::super::LeNet5;
use super::*;

const DRAW: Draw = Draw { seed: 1, step: 2, slot: 3, part: 0 };

fn replica<M: Model>(seed: u64) -> Replica<M> {
    Replica::new(seed, Device::Cpu).unwrap()
}

/// Images that differ, with labels that depend on them.
fn samples(n: usize, pixels: usize) -> (Vec<u8>, Vec<u8>) {
    let images: Vec<u8> = (0..n * pixels).map(|i| (i * i / 7 + i / pixels * 31) as u8).collect();
    (images, (0..n).map(|i| (i * 3 % 10) as u8).collect())
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 + 1e-4 * b.abs())
}

#[test]
fn lenet_has_its_61706_parameters_sorted_by_name() {
    let layout = replica::<LeNet5>(1).layout(2).unwrap();
    assert_eq!(layout.len(), 61_706);
    let names: Vec<_> =
        layout.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
    assert_eq!(names[..3], ["conv1.bias", "conv1.weight", "conv2.bias"]);
    assert!(names.is_sorted());
    assert_eq!(layout.parameters()[1].shape, [6, 1, 5, 5]);
}

#[test]
fn a_seed_gives_the_same_parameters_whoever_else_builds_at_the_same_time() {
    let expected = replica::<LeNet5>(7).flat_parameters().unwrap();
    let threads: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(|| replica::<LeNet5>(7).flat_parameters().unwrap()))
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), expected);
    }
    assert_ne!(replica::<LeNet5>(8).flat_parameters().unwrap(), expected);
}

#[test]
fn parameters_set_chunk_by_chunk_are_the_ones_that_are_read() {
    let mut replica = replica::<LeNet5>(1);
    let layout = replica.layout(7).unwrap();
    let values: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
    for chunk in 0..layout.chunks() {
        let range = layout.chunk(chunk).unwrap();
        replica.set_chunk(range.clone(), &values[range]).unwrap();
    }
    assert_eq!(replica.flat_parameters().unwrap(), values);
    replica.set_all(&vec![0.5; layout.len()]).unwrap();
    replica.set_chunk(3..5, &[8.0, 9.0]).unwrap();
    let read = replica.flat_parameters().unwrap();
    assert_eq!((read[2], read[3], read[4], read[5]), (0.5, 8.0, 9.0, 0.5));
}

#[test]
fn the_gradients_of_the_slots_add_up_to_the_gradient_of_the_batch() {
    let mut replica = replica::<LeNet5>(3);
    let (images, labels) = samples(12, 784);
    let whole = replica.gradient(&images, &labels, 12, DRAW).unwrap();
    let mut sum = vec![0.0; whole.gradient.len()];
    let (mut loss, mut correct) = (0.0, 0);
    for (from, to) in [(0, 3), (3, 3), (3, 8), (8, 12)] {
        let slot =
            replica.gradient(&images[from * 784..to * 784], &labels[from..to], 12, DRAW).unwrap();
        assert_eq!(slot.samples, to - from);
        sum.iter_mut().zip(&slot.gradient).for_each(|(sum, part)| *sum += part);
        (loss, correct) = (loss + slot.loss_sum, correct + slot.correct);
    }
    assert!(close(&sum, &whole.gradient));
    assert!((loss - whole.loss_sum).abs() < 1e-3 && correct == whole.correct);
    assert!(whole.gradient.iter().any(|number| number.abs() > 1e-3));
}

#[test]
fn a_gradient_in_halves_is_that_in_f32_but_for_rounding_and_a_scaled_loss_changes_none() {
    let (images, labels) = samples(8, 784);
    let gradient = |precision, scale: f32| {
        let mut replica = replica::<LeNet5>(3);
        replica.set_precision(precision).unwrap();
        replica.set_loss_scale(scale);
        replica.gradient(&images, &labels, 8, DRAW).unwrap()
    };
    let norm = |of: &[f32]| of.iter().map(|number| number * number).sum::<f32>().sqrt();
    let whole = gradient(Precision::F32, 1.0);
    assert_eq!(gradient(Precision::F32, 65_536.0), whole, "a power of 2 rounds nothing");
    // 8 significant bits, and 11: what is nearly a tie in a maximum may be decided the other way.
    for (precision, scale, most) in [(Precision::Bf16, 1.0, 0.2), (Precision::Fp16, 1024.0, 0.04)] {
        let half = gradient(precision, scale).gradient;
        let pairs = half.iter().zip(&whole.gradient);
        let apart: Vec<f32> = pairs.map(|(half, whole)| half - whole).collect();
        let part = norm(&apart) / norm(&whole.gradient);
        println!("{precision:?}: {part} of the gradient's norm apart");
        assert!(part > 0.0 && part < most, "{precision:?}: {part}");
    }
    // Too large for fp16: an infinity, for the shards to leave out.
    let over = gradient(Precision::Fp16, f32::MAX / 2.0).gradient;
    assert!(over.iter().any(|number| !number.is_finite()));
}

#[test]
fn a_gradient_points_where_the_loss_grows() {
    let mut replica = replica::<LeNet5>(3);
    let (images, labels) = samples(4, 784);
    let here = replica.gradient(&images, &labels, 4, DRAW).unwrap();
    let norm: f32 = here.gradient.iter().map(|number| number * number).sum();
    let step = 1e-3 / norm.sqrt();
    let params = replica.flat_parameters().unwrap();
    let moved: Vec<f32> = params.iter().zip(&here.gradient).map(|(p, g)| p + step * g).collect();
    replica.set_all(&moved).unwrap();
    let there = replica.gradient(&images, &labels, 4, DRAW).unwrap();
    let (grown, expected) = ((there.loss_sum - here.loss_sum) / 4.0, step * norm);
    assert!((grown / expected - 1.0).abs() < 0.1, "{grown} {expected}");
}

#[test]
fn two_replicas_with_the_same_parameters_give_the_same_bits() {
    let (images, labels) = samples(16, 784);
    let mut one = replica::<LeNet5>(3);
    let mut other = replica::<LeNet5>(4);
    other.set_all(&one.flat_parameters().unwrap()).unwrap();
    let (a, b) = (
        one.gradient(&images, &labels, 64, DRAW).unwrap(),
        other.gradient(&images, &labels, 64, DRAW),
    );
    assert_eq!(a, b.unwrap());
}

#[test]
fn input_that_does_not_fit_is_refused() {
    let mut replica = replica::<LeNet5>(1);
    let (images, labels) = samples(2, 784);
    assert!(matches!(
        replica.gradient(&images[1..], &labels, 2, DRAW),
        Err(ModelError::Input { bytes: 1567, .. })
    ));
    assert!(matches!(
        replica.gradient(&images, &labels[1..], 2, DRAW),
        Err(ModelError::Samples { labels: 1, .. })
    ));
    assert!(matches!(
        replica.gradient(&images, &labels, 1, DRAW),
        Err(ModelError::Samples { batch: 1, .. })
    ));
    assert!(matches!(
        replica.gradient(&images, &[0, 10], 2, DRAW),
        Err(ModelError::Label { label: 10, .. })
    ));
    assert!(matches!(replica.predict(&images[1..]), Err(ModelError::Input { .. })));
    let before = replica.flat_parameters().unwrap();
    for (range, got) in [
        (0..61_707, 61_707),
        (Range { start: 5, end: 4 }, 0),
        (0..2, 3),
        (usize::MAX - 1..usize::MAX, 1),
    ] {
        assert!(matches!(replica.set_chunk(range, &vec![9.0; got]), Err(ModelError::Range { .. })));
    }
    assert!(replica.set_all(&[]).is_err());
    assert_eq!(replica.flat_parameters().unwrap(), before);
    let small = Dataset::new(vec![0; 12], vec![0; 3], (2, 2), 10).unwrap();
    assert!(matches!(replica.evaluate(&small), Err(ModelError::Input { bytes: 4, .. })));
}

#[test]
fn predictions_are_probabilities_and_evaluation_counts_the_best_ones() {
    let replica = replica::<LeNet5>(5);
    let (images, labels) = samples(1203, 784);
    let predictions = replica.predict(&images).unwrap();
    assert_eq!(predictions.rows().count(), 1203);
    assert!(predictions.rows().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    let right = predictions
        .best()
        .zip(&labels)
        .filter(|((class, _), label)| *class == usize::from(**label))
        .count();
    let data = Dataset::new(images, labels, (28, 28), 10).unwrap();
    let evaluation = replica.evaluate(&data).unwrap();
    assert_eq!((evaluation.samples, evaluation.correct), (1203, right));
    assert!(evaluation.loss > 0.0 && evaluation.accuracy() < 0.5);
    assert_eq!(replica.predict(&[]).unwrap().best().count(), 0);
}

struct Dropout(nn::Linear);

impl Model for Dropout {
    const NAME: &'static str = "test.dropout";
    const INPUT: &'static [usize] = &[8];
    const CLASSES: usize = 10;

    fn new(vs: &nn::Path) -> Self {
        Self(nn::linear(vs / "out", 8, 10, Default::default()))
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        input.dropout(0.5, train).apply(&self.0)
    }
}

#[test]
fn random_numbers_come_from_seed_step_and_slot_whoever_else_draws() {
    let (images, labels) = samples(6, 8);
    let gradient = |draw| replica::<Dropout>(1).gradient(&images, &labels, 6, draw).unwrap();
    let expected = gradient(DRAW);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..20).map(|_| gradient(DRAW)).collect::<Vec<_>>()))
            .collect();
        for thread in threads {
            assert!(thread.join().unwrap().iter().all(|got| *got == expected));
        }
    });
    for other in [
        Draw { seed: 2, ..DRAW },
        Draw { step: 3, ..DRAW },
        Draw { slot: 2, ..DRAW },
        Draw { part: 1, ..DRAW },
    ] {
        assert_ne!(gradient(other), expected);
    }
}

struct Normalised(nn::BatchNorm);

impl Model for Normalised {
    const NAME: &'static str = "test.normalised";
    const INPUT: &'static [usize] = &[8];
    const CLASSES: usize = 8;

    fn new(vs: &nn::Path) -> Self {
        Self(nn::batch_norm1d(vs / "norm", 8, Default::default()))
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        input.apply_t(&self.0, train)
    }
}

struct Liar(nn::Linear);

impl Model for Liar {
    const NAME: &'static str = "test.liar";
    const INPUT: &'static [usize] = &[8];
    const CLASSES: usize = 10;

    fn new(vs: &nn::Path) -> Self {
        Self(nn::linear(vs / "out", 8, 3, Default::default()))
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.apply(&self.0)
    }
}

#[test]
fn models_that_cannot_be_trained_here_are_refused_with_the_reason() {
    let refused = Replica::<Normalised>::new(1, Device::Cpu).err().unwrap().to_string();
    assert!(refused.contains("\"norm.running_mean\" is a buffer that is not trained"), "{refused}");
    let refused = replica::<Liar>(1).gradient(&[0; 16], &[1, 2], 2, DRAW).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the model \"test.liar\" gave [2, 3] for 2 samples, and says that it has 10 classes"
    );
}

#[test]
fn a_slot_in_parts_has_the_gradient_of_the_whole() {
    let mut replica = replica::<LeNet5>(3);
    let images: Vec<u8> = (0..10 * 784).map(|at| (at % 251) as u8).collect();
    let labels: Vec<u8> = (0..10).collect();
    let mut of = |parts| replica.begin(&images, &labels, 12, parts, DRAW).unwrap().wait().unwrap();
    let whole = of(1);
    for parts in [0, 2, 3, 10, 99] {
        let sum = of(parts);
        assert_eq!((sum.samples, sum.correct), (10, whole.correct));
        assert!((sum.loss_sum / whole.loss_sum - 1.0).abs() < 1e-5);
        let sum = sum.gradient.as_slice::<f32>().unwrap();
        assert!(close(sum, whole.gradient.as_slice().unwrap()), "{parts} parts");
    }
}

#[test]
fn a_slot_of_no_samples_has_a_gradient_of_zeros_in_parts_too() {
    let mut replica = replica::<LeNet5>(3);
    let none = replica.begin(&[], &[], 12, 3, DRAW).unwrap().wait().unwrap();
    assert!(none.samples == 0 && none.loss_sum == 0.0);
    let gradient = none.gradient.as_slice::<f32>().unwrap();
    assert!(gradient.len() == replica.len() && gradient.iter().all(|number| *number == 0.0));
}

#[test]
fn a_gradient_stays_as_it_is_while_the_next_one_is_computed() {
    let mut replica = replica::<LeNet5>(3);
    let images: Vec<u8> = (0..4 * 784).map(|at| (at % 241) as u8).collect();
    let first = replica.begin(&images[..2 * 784], &[1, 2], 4, 1, DRAW).unwrap();
    let second = replica.begin(&images[2 * 784..], &[3, 4], 4, 1, DRAW).unwrap();
    let alone = replica.gradient(&images[..2 * 784], &[1, 2], 4, DRAW).unwrap();
    assert_ne!(alone, second.wait().unwrap().into());
    assert_eq!(alone, first.wait().unwrap().into());
}
