use std::{fs, io::Write, path::Path};

use super::*;
use crate::data::{Field, source::Source};

/// What `numpy.save` writes (NumPy 2.1): the header is padded with spaces to a multiple of 64, and ends in a newline.
fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let len = (header.len() as u16).to_le_bytes();
    [MAGIC, &[1, 0], &len, header.as_bytes(), data].concat()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn parsed(bytes: Vec<u8>) -> Result<HostTensor, DataError> {
    parse("x.npy", bytes.into())
}

fn complaint(bytes: Vec<u8>) -> String {
    let text = parsed(bytes).unwrap_err().to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn what_numpy_writes_is_read_bit_by_bit() {
    // numpy.save(file, numpy.arange(6, dtype="<f4").reshape(2, 3)), byte by byte.
    let written = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\
        \x20                                                         \n\
        \x00\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40\x00\x00\x80\x40\x00\x00\xa0\x40";
    let read = parsed(written.to_vec()).unwrap();
    assert_eq!(read.shape(), [2, 3]);
    assert_eq!(read.as_slice::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn either_order_of_bytes_and_of_memory_is_read() {
    let columns = floats(&[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    let read = parsed(npy("<f4", "True", "(2, 3)", &columns)).unwrap();
    assert_eq!(read.as_slice::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let cube: Vec<u8> = (0..24).collect();
    let read = parsed(npy("|u1", "True", "(2, 3, 4)", &cube)).unwrap();
    // Element [i, j, k] lies at i + 2 j + 6 k.
    let expected: Vec<u8> = (0..2)
        .flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |k| i + 2 * j + 6 * k)))
        .collect();
    assert_eq!(read.as_slice::<u8>().unwrap(), expected);
    let big: Vec<u8> = [1i32, -2].iter().flat_map(|one| one.to_be_bytes()).collect();
    assert_eq!(
        parsed(npy(">i4", "False", "(2,)", &big)).unwrap().as_slice::<i32>().unwrap(),
        [1, -2]
    );
}

#[test]
fn unsigned_numbers_become_the_next_wider_signed_ones() {
    let read = parsed(npy("<u2", "False", "(2,)", &[0xff, 0xff, 1, 0])).unwrap();
    assert_eq!(read.as_slice::<i32>().unwrap(), [65_535, 1]);
    let read = parsed(npy("<u4", "False", "(1,)", &[0xff; 4])).unwrap();
    assert_eq!(read.as_slice::<i64>().unwrap(), [i64::from(u32::MAX)]);
    let told = complaint(npy("<u8", "False", "(1,)", &[0xff; 8]));
    assert!(told.ends_with("18446744073709551615 does not fit i64"), "{told}");
}

#[test]
fn a_file_that_is_cut_or_goes_on_is_told_with_its_lengths() {
    let whole = npy("<f4", "False", "(2, 3)", &floats(&[0.0; 6]));
    let promised = whole.len();
    for len in 0..promised {
        let told = complaint(whole[..len].to_vec());
        assert!(told.contains("cut short") || told.contains("does not begin"), "{len}: {told}");
    }
    let told = complaint(whole[..promised - 1].to_vec());
    assert_eq!(
        told,
        "x.npy is cut short: it has 151 bytes and 152 belong there; get the file again"
    );
    let told = complaint([whole, vec![0]].concat());
    assert!(told.contains("is too long: it has 153 bytes and 152 belong there"), "{told}");
}

#[test]
fn a_header_that_lies_allocates_nothing() {
    for shape in [
        "(18446744073709551615,)",
        "(4294967296, 4294967296)",
        "(99999999999, 2)",
        "(4611686018427387904, 4)",
    ] {
        let told = complaint(npy("<f8", "False", shape, &[0; 8]));
        assert!(told.contains("at most 4294967296 are read"), "{told}");
    }
    let told = complaint(npy("<f4", "False", "(1000000000,)", &[0; 4]));
    assert!(told.contains("is cut short") && told.contains("4000000128"), "{told}");
    let endless = [MAGIC, &[2, 0, 0xff, 0xff, 0xff, 0xff], b"{"].concat();
    assert!(complaint(endless).contains("its header has 4294967295 bytes"));
}

#[test]
fn what_is_no_array_of_numbers_is_refused_with_the_reason() {
    for (bytes, part) in [
        (b"PK\x03\x04".to_vec(), "does not begin as one does"),
        (npy("|O", "False", "(2,)", &[0; 16]), "type \"|O\" have no place in a tensor"),
        (npy("<c8", "False", "(2,)", &[0; 16]), "type \"<c8\" have no place"),
        (npy("<f4", "Maybe", "(1,)", &[0; 4]), "no `fortran_order`"),
        (npy("<f4", "False", "3", &[0; 12]), "no `shape`"),
        (npy("<f4", "False", "(x,)", &[0; 4]), "no numbers"),
        (npy("<f4", "False", "(-1,)", &[0; 4]), "no numbers"),
        (npy("<f4", "False", "()", &[0; 4]), "it has 0 axes"),
        (npy("<f4", "False", "(0, 3)", &[]), "x.npy holds no sample"),
        (npy("|b1", "False", "(1,)", &[2]), "only 0 and 1 are truth values"),
        ([MAGIC, &[9, 0, 0, 0]].concat(), "it is of version 9.0"),
    ] {
        let told = complaint(bytes);
        assert!(told.contains(part), "{part:?} is not in {told:?}");
    }
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let whole = npy("<f4", "True", "(2, 3)", &floats(&[0.0; 6]));
    for at in 0..whole.len() {
        for byte in [0, 0xff, b'9', b'(', b'\''] {
            let mut changed = whole.clone();
            changed[at] = byte;
            let _ = parsed(changed);
        }
    }
}

fn npz(dir: &Path, arrays: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> PathBuf {
    let path = dir.join("set.npz");
    let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in arrays {
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}

#[test]
fn arrays_of_an_archive_are_samples_packed_or_not() {
    let arrays = [
        ("x", npy("<f4", "False", "(2, 3)", &floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))),
        ("y", npy("<i8", "False", "(2,)", &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])),
    ];
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let dir = tempfile::tempdir().unwrap();
        let path = npz(dir.path(), &arrays, method);
        let data = Npz::at(&path, "x", "y").classes(3).open().unwrap();
        assert_eq!((data.len(), data.input()), (2, Field::new(DType::F32, &[3])));
        let sample = data.sample(1).unwrap();
        assert_eq!(sample.input.as_slice::<f32>().unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(sample.target.as_slice::<i64>().unwrap(), [2]);

        let told = Npz::at(&path, "x", "z").open().unwrap_err().to_string();
        assert!(told.ends_with("has no array \"z\": it has [\"x\", \"y\"]"), "{told}");
        let told = Npz::at(&path, "x", "y").classes(2).open().unwrap_err().to_string();
        assert!(told.ends_with("label 2 of sample 1 is not one of the 2 classes 0..2"), "{told}");

        let mut damaged = fs::read(&path).unwrap();
        damaged.truncate(damaged.len() / 2);
        fs::write(&path, damaged).unwrap();
        let told = Npz::at(&path, "x", "y").open().unwrap_err().to_string();
        assert!(told.contains("is no NPZ file that can be read here"), "{told}");
    }
}

#[test]
fn an_archive_whose_array_promises_more_than_it_unpacks_to_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let y = npy("|u1", "False", "(4,)", &[0; 4]);
    let short = npy("<f8", "False", "(400000000,)", &[0; 8]);
    let path = npz(dir.path(), &[("x", short), ("y", y.clone())], zip::CompressionMethod::Deflated);
    let told = Npz::at(&path, "x", "y").open().unwrap_err().to_string();
    assert!(told.contains("array \"x\" is cut short: it has 136 bytes"), "{told}");
    let long = npy("|u1", "False", "(4,)", &vec![0; 50_000]);
    let path = npz(dir.path(), &[("x", long), ("y", y)], zip::CompressionMethod::Deflated);
    let told = Npz::at(&path, "x", "y").open().unwrap_err().to_string();
    assert!(told.contains("is too long"), "{told}");
}

#[test]
fn two_files_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (dir.path().join("x.npy"), dir.path().join("y.npy"));
    fs::write(&x, npy("<f4", "False", "(2, 1)", &floats(&[0.0, 1.0]))).unwrap();
    fs::write(&y, npy("|u1", "False", "(3,)", &[0, 1, 2])).unwrap();
    let told = Npy::at(&x, &y).open().unwrap_err().to_string();
    assert!(
        told.ends_with("there are 2 inputs and 3 targets: they do not belong together"),
        "{told}"
    );
    let told = Npy::at(&x, dir.path().join("no")).open().unwrap_err().to_string();
    assert!(told.ends_with("there is nothing of that name"), "{told}");
}
