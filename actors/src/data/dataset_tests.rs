use std::{collections::BTreeSet, fs};

use footlight_runtime::{HostTensor, tensor::DType};
use rand_chacha::rand_core::Rng;

use super::*;
use crate::data::{
    Csv, Custom, CustomSource, DataSpec, Draws, IGNORE, Sources, Split, Text, Tokens, Transform,
};

const PASS: Pass = Pass { seed: 7, epoch: 0 };

/// Sequences of 1, 2, … elements, `i64`, each target the element.
struct Ladder {
    samples: usize,
    lies: bool,
}

impl Source for Ladder {
    fn len(&self) -> usize {
        self.samples
    }

    fn input(&self) -> Field {
        Field::new(DType::I64, &[Field::ANY])
    }

    fn target(&self) -> Field {
        Field::new(DType::I64, &[Field::ANY])
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let values = vec![index as i64; index + 1];
        let shape = if self.lies { vec![1, index + 1] } else { vec![index + 1] };
        let array = HostTensor::from_vec(values, &shape).map_err(|e| DataError::custom("x", e))?;
        Ok(Sample { input: array.clone(), target: array })
    }
}

impl CustomSource for Ladder {
    const NAME: &'static str = "test.ladder";
    type Args = (usize, bool);

    fn open((samples, lies): (usize, bool), _: Split) -> Result<Self, DataError> {
        match samples {
            99 => Err(DataError::custom(Self::NAME, "99 is refused")),
            _ => Ok(Ladder { samples, lies }),
        }
    }
}

/// Adds a random number to each input.
struct Noise(i64);

impl Transform for Noise {
    const NAME: &'static str = "test.noise";
    type Args = i64;

    fn new(by: i64) -> Result<Self, DataError> {
        Ok(Noise(by))
    }

    fn apply(&self, sample: Sample, draws: &mut Draws) -> Result<Sample, DataError> {
        let wrong = |why| DataError::custom(Self::NAME, why);
        let mut values = sample.input.as_slice::<i64>().map_err(wrong)?.to_vec();
        values.iter_mut().for_each(|value| *value += self.0 + i64::from(draws.next_u32() >> 8));
        let input = HostTensor::from_vec(values, sample.input.shape()).map_err(wrong)?;
        Ok(Sample { input, ..sample })
    }
}

fn sources() -> Sources {
    let mut sources = Sources::new();
    sources.source::<Ladder>().unwrap().transform::<Noise>().unwrap();
    sources
}

fn ladder(samples: usize) -> DataSpec {
    DataSpec::new(Custom::of::<Ladder>(&(samples, false)).unwrap())
}

fn open(spec: &DataSpec) -> Result<Dataset, String> {
    open_split(spec, Split::Train)
}

fn open_split(spec: &DataSpec, split: Split) -> Result<Dataset, String> {
    // As it travels.
    let text = serde_json::to_string(spec).unwrap();
    let spec: DataSpec = serde_json::from_str(&text).unwrap();
    spec.open_with(split, &sources()).map_err(|error| error.to_string())
}

fn numbers(of: &HostTensor) -> Vec<i64> {
    of.as_slice::<i64>().unwrap().to_vec()
}

#[test]
fn samples_of_unequal_length_are_padded_to_the_longest_and_their_targets_ignored_there() {
    let data = open(&ladder(5).pad_to_longest(9.0)).unwrap();
    assert_eq!(data.input(), Field::new(DType::I64, &[Field::ANY]));
    let batch = data.batch([0, 2, 1], PASS).unwrap();
    assert_eq!((batch.inputs.shape(), batch.len()), (&[3, 3][..], 3));
    assert_eq!(numbers(&batch.inputs), [0, 9, 9, 2, 2, 2, 1, 1, 9]);
    assert_eq!(numbers(&batch.targets), [0, IGNORE, IGNORE, 2, 2, 2, 1, 1, IGNORE]);
    let empty = data.batch([], PASS).unwrap();
    assert_eq!((empty.inputs.shape(), empty.is_empty()), (&[0, 0][..], true));
}

#[test]
fn samples_are_padded_to_a_length_and_longer_ones_are_refused_unless_they_are_truncated() {
    let spec = ladder(5).pad_to(4, 0.0);
    let data = open(&spec).unwrap();
    assert_eq!(data.input(), Field::new(DType::I64, &[4]));
    assert_eq!(numbers(&data.batch([1], PASS).unwrap().inputs), [1, 1, 0, 0]);
    assert_eq!(
        data.batch([0, 4], PASS).unwrap_err().to_string(),
        "sample 4: input has 5 elements, and samples are padded to 4: truncate them, or let it be more"
    );
    let batch = open(&spec.truncate(3)).unwrap().batch([4], PASS).unwrap();
    assert_eq!(numbers(&batch.inputs), [4, 4, 4, 0]);
    assert_eq!(numbers(&batch.targets), [4, 4, 4, IGNORE]);
}

#[test]
fn unequal_lengths_without_a_word_on_padding_or_with_an_impossible_one_are_refused() {
    let told = open(&ladder(5)).unwrap_err();
    assert!(told.contains("say how they are padded, with pad_to_longest or pad_to"), "{told}");
    let told = open(&ladder(5).pad_to_longest(0.5)).unwrap_err();
    assert!(told.contains("can't be padded with 0.5: they are i64"), "{told}");
    assert!(open(&ladder(5).pad_to(0, 0.0)).unwrap_err().contains("to 1 at least"));
    assert!(open(&ladder(5).pad_to(3, 0.0).truncate(0)).unwrap_err().contains("to 1 at least"));
}

#[test]
fn a_source_that_gives_other_arrays_than_it_says_is_told() {
    let spec = DataSpec::new(Custom::of::<Ladder>(&(5, true)).unwrap()).pad_to_longest(0.0);
    assert_eq!(
        open(&spec).unwrap().batch([1], PASS).unwrap_err().to_string(),
        "sample 1: input is i64 1×2, and its source says i64 ?"
    );
}

#[test]
fn sources_and_transforms_are_found_by_name_and_what_is_unknown_or_refused_is_told() {
    assert_eq!(
        open(&DataSpec::new(Custom::of::<Ladder>(&(99, false)).unwrap())).unwrap_err(),
        "test.ladder: 99 is refused"
    );
    let unknown = ladder(5).open(Split::Train).unwrap_err().to_string();
    assert!(unknown.starts_with("there is no source \"test.ladder\" in this binary: it has []"));
    let mut twice = sources();
    let told = twice.source::<Ladder>().unwrap_err().to_string();
    assert_eq!(told, "two sources are named \"test.ladder\"");
    assert!(open(&ladder(0)).unwrap_err().ends_with("the training part holds no sample"));
}

#[test]
fn a_transform_draws_the_same_for_seed_epoch_and_sample_and_tests_are_left_as_they_are() {
    let spec = ladder(5).pad_to_longest(0.0).transform::<Noise>(&0).unwrap();
    let of = |spec: &DataSpec, pass, indices: &[u32]| {
        let batch = open(spec).unwrap().batch(indices.iter().copied(), pass).unwrap();
        numbers(&batch.inputs)
    };
    let alone = of(&spec, PASS, &[1]);
    assert_ne!(alone, [1, 1]);
    assert_eq!(of(&spec, PASS, &[1, 0])[..2], alone, "whatever else is in the batch");
    for other in [Pass { seed: 8, ..PASS }, Pass { epoch: 1, ..PASS }] {
        assert_ne!(of(&spec, other, &[1]), alone);
    }
    let test = open_split(&spec, Split::Test).unwrap().batch([1], PASS).unwrap();
    assert_eq!(numbers(&test.inputs), [1, 1]);
}

#[test]
fn columns_are_normalised_each_by_its_own_mean_and_deviation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.csv");
    fs::write(&path, "a,b,y\n1,10,0\n3,30,1\n").unwrap();
    let spec = |mean: &[f32], deviation: &[f32]| {
        let csv = Csv::at(&path).label("y").classes(2);
        DataSpec::new(csv.clone()).test(csv).normalise(mean.to_vec(), deviation.to_vec())
    };
    let data = open(&spec(&[2.0, 20.0], &[0.5, 10.0])).unwrap();
    let batch = data.batch([0, 1], PASS).unwrap();
    assert_eq!(batch.inputs.as_slice::<f32>().unwrap(), [-2.0, -1.0, 2.0, 1.0]);
    for (mean, deviation, part) in [
        (&[1.0, 2.0, 3.0][..], &[1.0, 1.0, 1.0][..], "one mean or 2 are needed: there are 3"),
        (&[1.0], &[0.0], "deviations above 0"),
        (&[1.0], &[], "as many deviations as means"),
    ] {
        let told = open(&spec(mean, deviation)).unwrap_err();
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn what_is_held_out_is_not_trained_on_and_all_the_rest_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.csv");
    let rows: String = (0..50).map(|row| format!("{row},0\n")).collect();
    fs::write(&path, format!("x,y\n{rows}")).unwrap();
    let of = |spec: &DataSpec, split| {
        let data = open_split(spec, split).unwrap();
        let batch = data.batch(0..data.len() as u32, PASS).unwrap();
        let values = batch.inputs.as_slice::<f32>().unwrap();
        values.iter().map(|value| *value as u32).collect::<Vec<_>>()
    };
    let spec = || DataSpec::new(Csv::at(&path).label("y"));
    let last = spec().hold_out_last(0.1);
    assert_eq!(of(&last, Split::Test), (45..50).collect::<Vec<_>>());
    assert_eq!(of(&last.clone().limit(3), Split::Train), [0, 1, 2]);
    let random = spec().hold_out(0.2);
    let (train, test) = (of(&random, Split::Train), of(&random, Split::Test));
    assert_eq!((train.len(), test.len()), (40, 10));
    assert!(test.iter().any(|row| *row < 25) && test.iter().any(|row| *row >= 25));
    assert_eq!(train.iter().chain(&test).collect::<BTreeSet<_>>().len(), 50);
    assert_eq!(of(&random.limit(3), Split::Train), train[..3]);
    for (spec, part) in [
        (spec(), "say which samples are for evaluating"),
        (spec().hold_out(1.0), "above 0 and below 1"),
        (spec().hold_out_last(0.0), "above 0 and below 1"),
        (spec().hold_out(0.001), "of 50 samples none are left for the test part"),
        (spec().hold_out(0.1).limit(0), "a limit of no samples"),
    ] {
        let told = open_split(&spec, Split::Test).unwrap_err();
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn windows_of_tokens_and_of_texts_are_batches_of_integers() {
    let dir = tempfile::tempdir().unwrap();
    let (tokens, text) = (dir.path().join("tokens"), dir.path().join("text"));
    let bytes: Vec<u8> = (0..100u16).flat_map(u16::to_le_bytes).collect();
    fs::write(&tokens, bytes).unwrap();
    fs::write(&text, "abc".repeat(40)).unwrap();
    let spec = DataSpec::new(Tokens::u16(&tokens).block(4)).hold_out_last(0.2);
    let data = open_split(&spec, Split::Test).unwrap();
    assert_eq!((data.len(), data.input()), (4, Field::new(DType::I64, &[4])));
    assert_eq!(numbers(&data.batch([0], PASS).unwrap().inputs), [80, 81, 82, 83]);
    let spec = DataSpec::new(Text::at(&text).block(2)).hold_out_last(0.5);
    let batch = open(&spec).unwrap().batch([0, 1], PASS).unwrap();
    assert_eq!(numbers(&batch.inputs), [0, 1, 2, 0]);
    assert_eq!(numbers(&batch.targets), [1, 2, 0, 1]);
    let lines = DataSpec::new(Text::at(&text).lines()).hold_out_last(0.5).pad_to_longest(0.0);
    assert!(open(&lines).unwrap_err().contains("of 1 samples none are left for the training part"));
}
