//! The first samples of an IDX file.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Copies the first `wanted` samples of a file, or all if there are fewer.
pub(super) fn copy_first(from: &Path, to: &Path, wanted: u32) -> Result<()> {
    let shown = from.display();
    let mut file = File::open(from).with_context(|| format!("cannot read {shown}"))?;
    let mut read = |bytes: &mut [u8]| {
        file.read_exact(bytes).with_context(|| format!("{shown} ends too early"))
    };
    // Two zeros, the type (8: bytes), the number of axes; then the length of each, most significant byte first.
    let mut magic = [0; 4];
    read(&mut magic)?;
    let [0, 0, 8, axes @ 1..=3] = magic else {
        anyhow::bail!("{shown} is no IDX file of bytes");
    };
    let mut lengths = vec![0; usize::from(axes) * 4];
    read(&mut lengths)?;
    let (samples, sample) = lengths.split_at_mut(4);
    let there = u32::from_be_bytes([samples[0], samples[1], samples[2], samples[3]]);
    let taken = there.min(wanted);
    samples.copy_from_slice(&taken.to_be_bytes());
    let axis = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let size: u64 = sample.chunks_exact(4).map(|bytes| u64::from(axis(bytes))).product();
    let bytes = size.saturating_mul(u64::from(taken));
    ensure!(bytes <= super::stage::LIMIT, "{shown} has samples of {size} bytes");
    let mut content = vec![0; bytes as usize];
    read(&mut content)?;
    let mut out = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    [&magic[..], &lengths, &content]
        .iter()
        .try_for_each(|part| out.write_all(part))
        .with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_with_fewer_samples_says_so_in_its_head() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        // Three samples of 1×2.
        fs::write(&from, [0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6])?;
        copy_first(&from, &to, 2)?;
        assert_eq!(fs::read(&to)?, [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4]);
        copy_first(&from, &to, 9)?;
        assert_eq!(fs::read(&to)?, fs::read(&from)?);
        Ok(())
    }

    #[test]
    fn what_is_no_idx_file_or_ends_too_early_is_told() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for (content, why) in [
            (&[1, 0, 8, 1, 0, 0, 0, 1, 7][..], "is no IDX file of bytes"),
            (&[0, 0, 8, 1, 0, 0, 0, 3, 7], "ends too early"),
            (&[0, 0], "ends too early"),
            (&[0, 0, 8, 3, 0, 0, 0, 1, 255, 0, 0, 0, 255, 0, 0, 0], "has samples of"),
        ] {
            fs::write(&from, content)?;
            let error = copy_first(&from, &to, 9).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        Ok(())
    }
}
