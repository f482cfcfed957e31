//! The first samples of MNIST, as many as a check needs.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use footlight::actors::data::{IdxDataset, Images, Split};

/// The first `train` training samples and the first `test` test samples of the data in `from`, as files in a folder of
/// their own.
pub(crate) fn first(from: &Path, train: usize, test: usize) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().context("no folder for a part of the data")?;
    for (split, prefix, wanted) in [(Split::Train, "train", train), (Split::Test, "t10k", test)] {
        let samples = IdxDataset::open(from, split)?;
        let has = samples.len();
        ensure!(
            has >= wanted,
            "{} has {has} samples of {split:?}, and {wanted} are needed: give it more, or ask for less (--batch, --steps)",
            from.display()
        );
        let (images, labels) = part(&samples, wanted);
        let count = (wanted as u32).to_be_bytes();
        let axis = |length: usize| (length as u32).to_be_bytes();
        let (rows, cols) = (axis(samples.rows()), axis(samples.cols()));
        let write = |name: String, head: &[&[u8]], content: &[u8]| {
            let path = folder.path().join(name);
            let file = [&head.concat(), content].concat();
            fs::write(&path, file).with_context(|| format!("cannot write {}", path.display()))
        };
        let head: &[&[u8]] = &[&[0, 0, 8, 3], &count, &rows, &cols];
        write(format!("{prefix}-images-idx3-ubyte"), head, images)?;
        write(format!("{prefix}-labels-idx1-ubyte"), &[&[0, 0, 8, 1], &count], labels)?;
    }
    Ok(folder)
}

/// The first samples' pixels and labels.
pub(crate) fn part(samples: &Images, wanted: usize) -> (&[u8], &[u8]) {
    let pixels = samples.rows() * samples.cols();
    (&samples.images()[..wanted * pixels], &samples.labels()[..wanted])
}
