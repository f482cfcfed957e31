use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;

fn file(magic: u32, dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    let header = std::iter::once(&magic).chain(dimensions).flat_map(|word| word.to_be_bytes());
    header.chain(data.iter().copied()).collect()
}

fn images() -> Vec<u8> {
    file(0x803, &[3, 2, 2], &(0..12).collect::<Vec<u8>>())
}

fn labels() -> Vec<u8> {
    file(0x801, &[3], &[7, 0, 9])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn folder(images: &[u8], labels: &[u8], suffix: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(format!("train-images-idx3-ubyte{suffix}")), images).unwrap();
    fs::write(dir.path().join(format!("train-labels-idx1-ubyte{suffix}")), labels).unwrap();
    dir
}

/// The one line that a user sees, without the temporary folder's name.
fn complaint(images: &[u8], labels: &[u8], suffix: &str) -> String {
    let dir = folder(images, labels, suffix);
    let text = IdxDataset::open(dir.path(), Split::Train).unwrap_err().to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text.replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn plain_and_gzipped_files_give_the_same_data_set() {
    let plain = folder(&images(), &labels(), "");
    let zipped = folder(&gzip(&images()), &gzip(&labels()), ".gz");
    let data = IdxDataset::open(plain.path(), Split::Train).unwrap();
    assert_eq!(data, IdxDataset::open(zipped.path(), Split::Train).unwrap());
    assert_eq!((data.len(), data.rows(), data.cols(), data.classes()), (3, 2, 2, 10));
    assert_eq!(data.sample(2).unwrap(), (&[8, 9, 10, 11][..], 9));
}

#[test]
fn a_missing_file_is_named_with_what_provides_it() {
    let dir = folder(&images(), &labels(), "");
    let text = IdxDataset::open(dir.path(), Split::Test).unwrap_err().to_string();
    assert!(
        text.starts_with("there is no t10k-images-idx3-ubyte (nor t10k-images-idx3-ubyte.gz) in /"),
        "{text}"
    );
    assert!(
        text.contains("cargo xtask setup --dataset mnist") && text.contains("--data DIR"),
        "{text}"
    );
}

#[test]
fn a_wrong_magic_number_is_told() {
    assert_eq!(
        complaint(&labels(), &labels(), ""),
        "train-images-idx3-ubyte is no IDX file of images: it begins with 0x00000801 where 0x00000803 belongs"
    );
}

#[test]
fn a_truncated_file_says_how_many_bytes_are_there_and_how_many_belong_there() {
    let expected = "is cut short: it has 27 bytes and its header promises 28; get the file again";
    let short = &images()[..27];
    assert_eq!(complaint(short, &labels(), ""), format!("train-images-idx3-ubyte {expected}"));
    let (short, labels) = (gzip(short), gzip(&labels()));
    assert_eq!(complaint(&short, &labels, ".gz"), format!("train-images-idx3-ubyte.gz {expected}"));
}

#[test]
fn a_file_that_ends_in_its_header_is_truncated_too() {
    for len in [0, 3, 4, 15] {
        let text = complaint(&images()[..len], &labels(), "");
        assert!(text.contains(&format!("it has {len} bytes and its header promises 16")), "{text}");
    }
}

#[test]
fn a_gzip_file_that_was_cut_or_damaged_is_refused() {
    let whole = gzip(&images());
    for len in 0..whole.len() {
        let text = complaint(&whole[..len], &gzip(&labels()), ".gz");
        assert!(text.contains("is cut short") || text.contains("is damaged"), "{len}: {text}");
    }
    let mut wrong_sum = whole.clone();
    *wrong_sum.last_mut().unwrap() ^= 1;
    let text = complaint(&wrong_sum, &gzip(&labels()), ".gz");
    assert!(text.contains("is damaged"), "{text}");
    let text = complaint(b"this was never gzip", &gzip(&labels()), ".gz");
    assert!(text.contains("is damaged"), "{text}");
}

#[test]
fn bytes_after_the_end_are_refused() {
    let long = [images(), vec![0]].concat();
    let expected = "is too long: its header promises 28 bytes and more follow; get the file again";
    assert_eq!(complaint(&long, &labels(), ""), format!("train-images-idx3-ubyte {expected}"));
    let text = complaint(&gzip(&long), &gzip(&labels()), ".gz");
    assert_eq!(text, format!("train-images-idx3-ubyte.gz {expected}"));
}

#[test]
fn counts_that_differ_are_told() {
    assert_eq!(
        complaint(&images(), &file(0x801, &[2], &[1, 2]), ""),
        "train-images-idx3-ubyte has 3 images and train-labels-idx1-ubyte has 2 labels: they do not belong together"
    );
}

#[test]
fn a_label_above_nine_is_told() {
    assert_eq!(
        complaint(&images(), &file(0x801, &[3], &[7, 10, 9]), ""),
        "train-labels-idx1-ubyte: label 10 of sample 1 is not one of the 10 classes 0..10"
    );
}

#[test]
fn an_empty_file_is_told() {
    let text = complaint(&file(0x803, &[0, 28, 28], &[]), &labels(), "");
    assert_eq!(text, "train-images-idx3-ubyte is empty: its header says [0, 28, 28]");
}

#[test]
fn a_header_that_would_need_absurd_memory_allocates_nothing() {
    let absurd = file(0x803, &[u32::MAX, u32::MAX, u32::MAX], &[]);
    let text = complaint(&absurd, &labels(), "");
    assert!(text.contains("more than the 1073741824 bytes"), "{text}");
    // Within the limit, but far more than the file has.
    let boastful = file(0x803, &[1 << 20, 32, 32], &[0; 12]);
    let text = complaint(&boastful, &labels(), "");
    assert!(text.contains("has 28 bytes and its header promises 1073741840"), "{text}");
    let text = complaint(&gzip(&boastful), &gzip(&labels()), ".gz");
    assert!(text.contains("has 28 bytes and its header promises 1073741840"), "{text}");
}

#[test]
fn a_folder_in_a_files_place_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("train-images-idx3-ubyte")).unwrap();
    let text = IdxDataset::open(dir.path(), Split::Train).unwrap_err().to_string();
    assert!(text.ends_with("train-images-idx3-ubyte: it is not a file"), "{text}");
}
