use tch::nn;

use super::super::{LeNet5, SlotGradient};
use super::*;
use crate::data::{Arrays, IGNORE};

const DRAW: Draw = Draw { seed: 1, step: 2, slot: 3, part: 0 };

fn replica<M: Model>(seed: u64) -> Replica<M> {
    Replica::new(seed, Device::Cpu).unwrap()
}

/// Images that differ, with labels that depend on them.
fn samples(n: usize, pixels: usize) -> (Vec<u8>, Vec<u8>) {
    let images: Vec<u8> = (0..n * pixels).map(|i| (i * i / 7 + i / pixels * 31) as u8).collect();
    (images, (0..n).map(|i| (i * 3 % 10) as u8).collect())
}

/// Bytes as images of LeNet-5's size, and labels.
fn tensors(images: &[u8], labels: &[u8]) -> (HostTensor, HostTensor) {
    (bytes(images, &[images.len() / 784, 28, 28]), bytes(labels, &[labels.len()]))
}

fn bytes(of: &[u8], shape: &[usize]) -> HostTensor {
    HostTensor::from_vec(of.to_vec(), shape).unwrap()
}

/// The gradient of LeNet-5.
fn gradient(
    of: &mut Replica<LeNet5>,
    images: &[u8],
    labels: &[u8],
    batch: usize,
) -> Result<SlotGradient, ModelError> {
    let (inputs, targets) = tensors(images, labels);
    of.gradient(&inputs, &targets, batch, DRAW)
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
    let whole = gradient(&mut replica, &images, &labels, 12).unwrap();
    let mut sum = vec![0.0; whole.gradient.len()];
    let (mut loss, mut correct) = (0.0, 0);
    for (from, to) in [(0, 3), (3, 3), (3, 8), (8, 12)] {
        let slot =
            gradient(&mut replica, &images[from * 784..to * 784], &labels[from..to], 12).unwrap();
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
    let of = |precision, scale: f32| {
        let mut replica = replica::<LeNet5>(3);
        replica.set_precision(precision).unwrap();
        replica.set_loss_scale(scale);
        gradient(&mut replica, &images, &labels, 8).unwrap()
    };
    let norm = |of: &[f32]| of.iter().map(|number| number * number).sum::<f32>().sqrt();
    let whole = of(Precision::F32, 1.0);
    assert_eq!(of(Precision::F32, 65_536.0), whole, "a power of 2 rounds nothing");
    // 8 significant bits, and 11: what is nearly a tie in a maximum may be decided the other way.
    for (precision, scale, most) in [(Precision::Bf16, 1.0, 0.2), (Precision::Fp16, 1024.0, 0.04)] {
        let half = of(precision, scale).gradient;
        let pairs = half.iter().zip(&whole.gradient);
        let apart: Vec<f32> = pairs.map(|(half, whole)| half - whole).collect();
        let part = norm(&apart) / norm(&whole.gradient);
        println!("{precision:?}: {part} of the gradient's norm apart");
        assert!(part > 0.0 && part < most, "{precision:?}: {part}");
    }
    // Too large for fp16: an infinity, for the shards to leave out.
    let over = of(Precision::Fp16, f32::MAX / 2.0).gradient;
    assert!(over.iter().any(|number| !number.is_finite()));
}

#[test]
fn a_gradient_points_where_the_loss_grows() {
    let mut replica = replica::<LeNet5>(3);
    let (images, labels) = samples(4, 784);
    let here = gradient(&mut replica, &images, &labels, 4).unwrap();
    let norm: f32 = here.gradient.iter().map(|number| number * number).sum();
    let step = 1e-3 / norm.sqrt();
    let params = replica.flat_parameters().unwrap();
    let moved: Vec<f32> = params.iter().zip(&here.gradient).map(|(p, g)| p + step * g).collect();
    replica.set_all(&moved).unwrap();
    let there = gradient(&mut replica, &images, &labels, 4).unwrap();
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
        gradient(&mut one, &images, &labels, 64).unwrap(),
        gradient(&mut other, &images, &labels, 64),
    );
    assert_eq!(a, b.unwrap());
}

#[test]
fn input_that_does_not_fit_is_refused() {
    let mut replica = replica::<LeNet5>(1);
    let (images, labels) = samples(2, 784);
    let refused = |inputs: &HostTensor, targets: &HostTensor, batch| {
        let mut replica = self::replica::<LeNet5>(1);
        replica.gradient(inputs, targets, batch, DRAW).unwrap_err().to_string()
    };
    let (inputs, targets) = tensors(&images, &labels);
    let small = bytes(&images[..8], &[2, 2, 2]);
    assert_eq!(refused(&small, &targets, 2), "inputs are u8 2×2, and the model takes u8 28×28");
    let floats = HostTensor::from_vec(vec![0f32; 2 * 784], &[2, 28, 28]).unwrap();
    assert!(refused(&floats, &targets, 2).starts_with("inputs are f32 28×28"));
    let told = refused(&inputs, &bytes(&labels[1..], &[1]), 2);
    assert_eq!(told, "2 samples with 1 labels in a batch of 2 do not fit together");
    assert!(refused(&inputs, &targets, 1).contains("in a batch of 1"));
    let told = refused(&inputs, &bytes(&[0, 10], &[2]), 2);
    assert_eq!(told, "label 10 is not one of the 10 classes");
    let negative = HostTensor::from_vec(vec![0i64, -100], &[2]).unwrap();
    assert_eq!(refused(&inputs, &negative, 2), "label -100 is not one of the 10 classes");
    let numbers = HostTensor::from_vec(vec![0f32; 2], &[2]).unwrap();
    assert_eq!(
        refused(&inputs, &numbers, 2),
        "targets are f32, and the model learns one of 10 classes, an integer"
    );
    assert!(matches!(replica.predict(&small), Err(ModelError::Inputs { .. })));
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
    let told = replica.evaluate(&dataset(small, bytes(&labels, &[2]))).unwrap_err().to_string();
    assert_eq!(told, "the test samples are u8 2×2, and the model `lenet5` takes u8 28×28");
    let told = replica.evaluate(&dataset(inputs, numbers)).unwrap_err().to_string();
    assert_eq!(
        told,
        "the test targets are f32, and the model `lenet5` learns one of 10 classes, an integer"
    );
}

/// Two arrays as a data set.
fn dataset(inputs: HostTensor, targets: HostTensor) -> Dataset {
    Dataset::of(Arrays::new("memory", inputs, targets).unwrap()).unwrap()
}

#[test]
fn predictions_are_probabilities_and_evaluation_counts_the_best_ones() {
    let replica = replica::<LeNet5>(5);
    let (images, labels) = samples(1203, 784);
    let (inputs, targets) = tensors(&images, &labels);
    let predictions = replica.predict(&inputs).unwrap();
    assert_eq!(predictions.rows().count(), 1203);
    assert!(predictions.rows().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    let right = predictions
        .best()
        .zip(&labels)
        .filter(|((class, _), label)| *class == usize::from(**label))
        .count();
    let evaluation = replica.evaluate(&dataset(inputs, targets)).unwrap();
    assert_eq!((evaluation.samples, evaluation.targets, evaluation.correct), (1203, 1203, right));
    assert!(evaluation.loss > 0.0 && evaluation.accuracy() < Some(0.5));
    assert_eq!(replica.predict(&tensors(&[], &[]).0).unwrap().best().count(), 0);
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
    let (images, labels) = (bytes(&images, &[6, 8]), bytes(&labels, &[6]));
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
    let (inputs, targets) = (bytes(&[0; 16], &[2, 8]), bytes(&[1, 2], &[2]));
    let refused = replica::<Liar>(1).gradient(&inputs, &targets, 2, DRAW).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the model \"test.liar\" gave [2, 3] for 2 samples, and says that it tells one of 10 classes, an integer"
    );
    let refused = Replica::<NoClasses>::new(1, Device::Cpu).err().unwrap().to_string();
    assert_eq!(
        refused,
        "the model \"test.no_classes\" can't be: it has no CLASSES, and its target is one of them"
    );
}

struct NoClasses;

impl Model for NoClasses {
    const NAME: &'static str = "test.no_classes";
    const INPUT: &'static [usize] = &[8];

    fn new(_: &nn::Path) -> Self {
        NoClasses
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.shallow_clone()
    }
}

/// Two numbers from three.
struct Line(nn::Linear);

impl Model for Line {
    const NAME: &'static str = "test.line";
    const INPUT: &'static [usize] = &[3];
    const INPUT_TYPE: DType = DType::F32;
    const TARGET: Target = Target::Values(&[2]);
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        Line(nn::linear(vs / "out", 3, 2, Default::default()))
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.apply(&self.0)
    }
}

#[test]
fn a_regression_has_the_mean_squared_error_of_each_sample_and_no_accuracy() {
    let mut replica = replica::<Line>(1);
    let values: Vec<f64> = (0..12).map(|one| f64::from(one) / 4.0).collect();
    // Numbers of another width become the model's.
    let inputs = HostTensor::from_vec(values, &[4, 3]).unwrap();
    let told = vec![1f32, -1.0, 2.0, 0.5, 0.0, 3.0, 1.0, 1.0];
    let targets = HostTensor::from_vec(told.clone(), &[4, 2]).unwrap();
    let predicted = replica.predict(&inputs).unwrap();
    assert_eq!((predicted.classes, predicted.probabilities.len()), (2, 8));
    let squares = predicted.probabilities.iter().zip(&told).map(|(a, b)| (a - b) * (a - b));
    let expected = squares.sum::<f32>() / 2.0;
    let slot = replica.gradient(&inputs, &targets, 8, DRAW).unwrap();
    assert!((slot.loss_sum / expected - 1.0).abs() < 1e-5, "{} {expected}", slot.loss_sum);
    let evaluation = replica.evaluate(&dataset(inputs, targets)).unwrap();
    assert!((evaluation.loss * 4.0 / f64::from(expected) - 1.0).abs() < 1e-5);
    assert_eq!((evaluation.accuracy(), evaluation.targets), (None, 0));
}

/// Scores for the token that follows each of 5.
struct Bigram(nn::Embedding);

impl Model for Bigram {
    const NAME: &'static str = "test.bigram";
    const INPUT: &'static [usize] = &[0];
    const INPUT_TYPE: DType = DType::I64;
    const VOCABULARY: Option<usize> = Some(5);
    const TARGET: Target = Target::Sequence;
    const CLASSES: usize = 5;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        Bigram(nn::embedding(vs / "next", 5, 5, Default::default()))
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.apply(&self.0)
    }
}

fn tokens(of: &[i64], shape: &[usize]) -> HostTensor {
    HostTensor::from_vec(of.to_vec(), shape).unwrap()
}

#[test]
fn a_sequence_s_loss_is_the_mean_over_its_tokens_and_what_is_padded_changes_nothing() {
    let mut replica = replica::<Bigram>(1);
    let short =
        replica.gradient(&tokens(&[1, 2], &[1, 2]), &tokens(&[2, 3], &[1, 2]), 1, DRAW).unwrap();
    let padded = replica
        .gradient(&tokens(&[1, 2, 0], &[1, 3]), &tokens(&[2, 3, IGNORE], &[1, 3]), 1, DRAW)
        .unwrap();
    assert!(
        close(&padded.gradient, &short.gradient) && (padded.loss_sum - short.loss_sum).abs() < 1e-5
    );
    let each = |input, target| {
        let predicted = self::replica::<Bigram>(1).predict(&tokens(&[input], &[1, 1])).unwrap();
        -predicted.probabilities[target as usize].ln()
    };
    let expected = (each(1, 2) + each(2, 3)) / 2.0;
    assert!((short.loss_sum / expected - 1.0).abs() < 1e-4, "{} {expected}", short.loss_sum);

    let (inputs, targets) = (tokens(&[1, 2, 0, 4], &[2, 2]), tokens(&[2, 3, IGNORE, 1], &[2, 2]));
    let best = replica.predict(&inputs).unwrap();
    assert_eq!((best.classes, best.rows().count()), (5, 4));
    let right =
        best.best().zip([2, 3, 99, 1]).filter(|((class, _), target)| class == target).count();
    let evaluation = replica.evaluate(&dataset(inputs, targets)).unwrap();
    assert_eq!((evaluation.samples, evaluation.targets, evaluation.correct), (2, 3, right));
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_libtorch_sees_it() {
    let mut replica = replica::<Bigram>(1);
    let mut refused = |input, target| {
        let (inputs, targets) = (tokens(&[1, input], &[1, 2]), tokens(&[2, target], &[1, 2]));
        replica.gradient(&inputs, &targets, 1, DRAW).unwrap_err().to_string()
    };
    assert_eq!(refused(5, 0), "input 5 is not one of the vocabulary's 5");
    assert_eq!(refused(-1, 0), "input -1 is not one of the vocabulary's 5");
    assert_eq!(refused(0, 5), "label 5 is not one of the 5 classes");
    assert_eq!(refused(0, -1), "label -1 is not one of the 5 classes");
}

#[test]
fn a_slot_in_parts_has_the_gradient_of_the_whole() {
    let images: Vec<u8> = (0..10 * 784).map(|at| (at % 251) as u8).collect();
    in_parts::<LeNet5>(&tensors(&images, &(0..10).collect::<Vec<u8>>()));
    let array = |each: usize| {
        let numbers: Vec<f32> = (0..10 * each).map(|at| (at as f32 * 0.7).sin()).collect();
        HostTensor::from_vec(numbers, &[10, each]).unwrap()
    };
    in_parts::<Line>(&(array(3), array(2)));
    // Of each sample's three elements one is padded, or none.
    let target = |at: i64| if at % 6 == 5 { IGNORE } else { at * at % 5 };
    let of = |each: &dyn Fn(i64) -> i64| tokens(&(0..30).map(each).collect::<Vec<_>>(), &[10, 3]);
    in_parts::<Bigram>(&(of(&|at| at % 5), of(&target)));
}

fn in_parts<M: Model>((inputs, targets): &(HostTensor, HostTensor)) {
    let mut replica = replica::<M>(3);
    let mut of = |parts| replica.begin(inputs, targets, 12, parts, DRAW).unwrap().wait().unwrap();
    let whole = of(1);
    for parts in [0, 2, 3, 10, 99] {
        let sum = of(parts);
        assert_eq!((sum.samples, sum.correct), (10, whole.correct), "{} in {parts}", M::NAME);
        assert!((sum.loss_sum / whole.loss_sum - 1.0).abs() < 1e-5, "{} in {parts}", M::NAME);
        let sum = sum.gradient.as_slice::<f32>().unwrap();
        assert!(close(sum, whole.gradient.as_slice().unwrap()), "{} in {parts}", M::NAME);
    }
}

#[test]
fn each_part_of_a_slot_draws_numbers_of_its_own() {
    let (images, labels) = samples(6, 8);
    let (images, labels) = (bytes(&images, &[6, 8]), bytes(&labels, &[6]));
    let mut replica = replica::<Dropout>(1);
    let slot = replica.begin(&images, &labels, 6, 2, DRAW).unwrap().wait().unwrap();
    let mut sum = vec![0f32; replica.len()];
    for (part, first) in (0..).zip([0, 3]) {
        let of = |all| rows(all, first..first + 3).unwrap();
        let draw = Draw { part, ..DRAW };
        let one = replica.gradient(&of(&images), &of(&labels), 6, draw).unwrap();
        sum.iter_mut().zip(&one.gradient).for_each(|(sum, one)| *sum += one);
    }
    assert_eq!(slot.gradient.as_slice::<f32>().unwrap(), sum);
}

#[test]
fn what_is_wrong_in_any_part_of_a_slot_is_told_when_it_is_begun() {
    let mut replica = replica::<LeNet5>(3);
    let (images, _) = samples(4, 784);
    let (inputs, targets) = tensors(&images, &[1, 2, 3, 10]);
    let told = replica.begin(&inputs, &targets, 4, 2, DRAW).unwrap_err();
    assert!(told.is_of_data(), "{told}");
    assert_eq!(told.to_string(), "label 10 is not one of the 10 classes");
    let told = replica.begin(&inputs, &bytes(&[1], &[1]), 4, 2, DRAW).unwrap_err().to_string();
    assert_eq!(told, "4 samples with 1 labels in a batch of 4 do not fit together");
}

#[test]
fn a_slot_of_no_samples_has_a_gradient_of_zeros_in_parts_too() {
    let mut replica = replica::<LeNet5>(3);
    let (inputs, targets) = tensors(&[], &[]);
    let none = replica.begin(&inputs, &targets, 12, 3, DRAW).unwrap().wait().unwrap();
    assert!((none.samples, none.correct) == (0, 0) && none.loss_sum == 0.0);
    let gradient = none.gradient.as_slice::<f32>().unwrap();
    assert!(gradient.len() == replica.len() && gradient.iter().all(|number| *number == 0.0));
}

#[test]
fn a_gradient_stays_as_it_is_while_the_next_one_is_computed() {
    let mut replica = replica::<LeNet5>(3);
    let images: Vec<u8> = (0..4 * 784).map(|at| (at % 241) as u8).collect();
    let (these, labels) = tensors(&images[..2 * 784], &[1, 2]);
    let first = replica.begin(&these, &labels, 4, 1, DRAW).unwrap();
    let (others, their_labels) = tensors(&images[2 * 784..], &[3, 4]);
    let second = replica.begin(&others, &their_labels, 4, 1, DRAW).unwrap();
    let alone = replica.gradient(&these, &labels, 4, DRAW).unwrap();
    assert_ne!(alone, second.wait().unwrap().into());
    assert_eq!(alone, first.wait().unwrap().into());
}
