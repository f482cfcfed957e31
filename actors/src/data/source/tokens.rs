//! A file of tokens, mapped into memory.

use std::{fs::File, io::Write, path::PathBuf};

use memmap2::{MmapOptions, MmapRaw};
use serde::{Deserialize, Serialize};

use super::{
    DataError, Part, files, name_of,
    windows::{Read, Windows},
};

/// Tokens as numbers in a file, one after another and nothing else: what `numpy.array(ids, "<u2").tofile(…)` writes.
///
/// The file is mapped into memory and not read: it may be much larger than memory is. A sample is a window of
/// [`block`](Self::block) tokens, `i64` `[block]`; its target is the same window one token later. Windows don't reach
/// from the training into the test part ([`hold_out_last`](crate::data::DataSpec::hold_out_last)).
///
/// An object of `s3://` is fetched into a file of the system's temporary folder, up to [`MAX_BYTES`](super::MAX_BYTES).
///
/// ```
/// # use footlight_actors::data::{DataSpec, Tokens};
/// let data = DataSpec::new(Tokens::u16("shakespeare.tokens").block(64).vocabulary(84)).hold_out_last(0.1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    at: PathBuf,
    width: TokenWidth,
    block: usize,
    stride: Option<usize>,
    vocabulary: Option<u32>,
}

/// How a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenWidth {
    /// Two bytes, little-endian: vocabularies of up to 65,536.
    U16,
    /// Four bytes, little-endian.
    U32,
}

impl TokenWidth {
    /// Bytes of a token.
    pub fn bytes(self) -> usize {
        match self {
            TokenWidth::U16 => 2,
            TokenWidth::U32 => 4,
        }
    }
}

impl Tokens {
    /// A file of `u16` tokens, or `s3://bucket/key`; windows of 256.
    pub fn u16(path: impl Into<PathBuf>) -> Self {
        Tokens {
            at: path.into(),
            width: TokenWidth::U16,
            block: 256,
            stride: None,
            vocabulary: None,
        }
    }

    /// A file of `u32` tokens; as [`u16`](Self::u16) otherwise.
    pub fn u32(path: impl Into<PathBuf>) -> Self {
        Tokens { width: TokenWidth::U32, ..Self::u16(path) }
    }

    /// Tokens of a window.
    #[must_use]
    pub fn block(mut self, tokens: usize) -> Self {
        self.block = tokens;
        self
    }

    /// How far a window is from the next one. Default: a block, so that each token is a target once an epoch.
    #[must_use]
    pub fn stride(mut self, tokens: usize) -> Self {
        self.stride = Some(tokens);
        self
    }

    /// Tokens are below this: checked in each window that is read.
    #[must_use]
    pub fn vocabulary(mut self, tokens: u32) -> Self {
        self.vocabulary = Some(tokens);
        self
    }

    pub(super) fn open(&self, part: Part) -> Result<Windows<Mapped>, DataError> {
        let at = name_of(&self.at);
        let file = match files::is_remote(&self.at) {
            false => files::open_local(&self.at)?.0,
            true => downloaded(&at, &files::read(&self.at)?)?,
        };
        let mapped = Mapped::new(&at, file, self.width, self.vocabulary)?;
        Windows::new(&at, mapped, self.block, self.stride.unwrap_or(self.block), part)
    }
}

/// A file without a name that holds these bytes.
fn downloaded(at: &str, bytes: &[u8]) -> Result<File, DataError> {
    let write = || {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        Ok(file)
    };
    write().map_err(|error: std::io::Error| DataError::Read {
        at: at.to_owned(),
        why: format!("no room for it in the temporary folder: {error}"),
    })
}

/// A file that is mapped into memory.
pub(super) struct Mapped {
    at: String,
    file: File,
    map: MmapRaw,
    width: TokenWidth,
    vocabulary: Option<u32>,
}

impl Mapped {
    fn new(
        at: &str,
        file: File,
        width: TokenWidth,
        vocabulary: Option<u32>,
    ) -> Result<Self, DataError> {
        let wrong =
            |error: std::io::Error| DataError::Read { at: at.to_owned(), why: error.to_string() };
        let bytes = file.metadata().map_err(wrong)?.len();
        if bytes == 0 {
            return Err(DataError::Empty { at: at.to_owned() });
        }
        let size = width.bytes() as u64;
        if bytes % size != 0 {
            return Err(DataError::Format {
                at: at.to_owned(),
                format: "token",
                why: format!("its {bytes} bytes are no whole number of tokens of {size} bytes"),
            });
        }
        let map = MmapOptions::new().map_raw_read_only(&file).map_err(wrong)?;
        Ok(Mapped { at: at.to_owned(), file, map, width, vocabulary })
    }
}

impl Read for Mapped {
    fn len(&self) -> usize {
        self.map.len() / self.width.bytes()
    }

    fn read(&self, start: usize, into: &mut [i64]) -> Result<(), DataError> {
        let size = self.width.bytes();
        let (from, len) = (start * size, into.len() * size);
        let end = from + len;
        if end > self.map.len() {
            return Err(DataError::NoSample { index: start, samples: self.len() });
        }
        // Somebody may have cut the file since it was mapped: reading beyond its end would be a SIGBUS.
        let there = self
            .file
            .metadata()
            .map_err(|error| DataError::Read { at: self.at.clone(), why: error.to_string() })?;
        if there.len() < end as u64 {
            let (has, promised) = (there.len(), self.map.len() as u64);
            return Err(DataError::Short { at: self.at.clone(), has, promised });
        }
        let mut bytes = vec![0u8; len];
        // SAFETY: `from..end` lies in the map, which lives as long as `self`; `bytes` is ours and as long. No reference
        // to the map's memory is ever made, so another process that writes to the file breaks no rule of Rust's: what
        // is copied is then old or new, and any bytes are tokens. Pages beyond the end of a file that is cut between
        // the question above and the copy raise SIGBUS, which ends this process as a crash would: the node is lost,
        // and the loader starts on another one. Nothing wrong is read.
        unsafe {
            std::ptr::copy_nonoverlapping(self.map.as_ptr().add(from), bytes.as_mut_ptr(), len);
        }
        for (position, (token, bytes)) in into.iter_mut().zip(bytes.chunks_exact(size)).enumerate()
        {
            let number = match *bytes {
                [a, b] => u16::from_le_bytes([a, b]).into(),
                [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                _ => 0,
            };
            if let Some(vocabulary) = self.vocabulary.filter(|most| number >= *most) {
                return Err(DataError::Token {
                    at: self.at.clone(),
                    token: number,
                    position: (start + position) as u64,
                    vocabulary,
                });
            }
            *token = number.into();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::data::source::Source;

    fn file(tokens: &[u16]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn window(of: &impl Source, index: usize) -> (Vec<i64>, Vec<i64>) {
        let sample = of.sample(index).unwrap();
        let tokens = |of: &footlight_runtime::HostTensor| of.as_slice::<i64>().unwrap().to_vec();
        (tokens(&sample.input), tokens(&sample.target))
    }

    /// The one line that a user sees, without the folder.
    fn told(error: impl ToString, dir: &TempDir) -> String {
        let text = error.to_string();
        assert!(!text.contains('\n'), "one line: {text}");
        text.replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn windows_go_through_the_file_and_targets_are_one_token_later() {
        let (_dir, path) = file(&(0..10).map(|at| at * 1000).collect::<Vec<u16>>());
        let windows = Tokens::u16(&path).block(3).open(Part::All).unwrap();
        assert_eq!(windows.len(), 3);
        assert_eq!(window(&windows, 0), (vec![0, 1000, 2000], vec![1000, 2000, 3000]));
        assert_eq!(window(&windows, 2), (vec![6000, 7000, 8000], vec![7000, 8000, 9000]));
        assert!(windows.sample(3).is_err());
        let windows = Tokens::u16(&path).block(3).stride(1).open(Part::All).unwrap();
        assert_eq!(windows.len(), 7);
        assert_eq!(window(&windows, 6).1, [7000, 8000, 9000]);
        // The same bytes as half as many wider ones.
        let wide = Tokens::u32(&path).block(4).open(Part::All).unwrap();
        assert_eq!(
            window(&wide, 0).0,
            [1000 << 16, 2000 | 3000 << 16, 4000 | 5000 << 16, 6000 | 7000 << 16]
        );
    }

    #[test]
    fn no_token_of_the_test_part_is_seen_in_training() {
        let (_dir, path) = file(&(0..100).collect::<Vec<u16>>());
        let tokens = Tokens::u16(&path).block(7).stride(2);
        let of = |part| {
            let windows = tokens.open(part).unwrap();
            let all = (0..windows.len()).flat_map(|index| {
                let (input, target) = window(&windows, index);
                [input, target].concat()
            });
            (all.clone().min().unwrap(), all.max().unwrap())
        };
        assert_eq!(of(Part::First(0.2)), (0, 79));
        assert_eq!(of(Part::Last(0.2)), (80, 99));
    }

    #[test]
    fn a_file_that_is_no_file_of_tokens_or_too_short_is_told() {
        let (dir, path) = file(&[1, 2, 3, 4]);
        let refused = |tokens: Tokens| told(tokens.open(Part::All).err().unwrap(), &dir);
        assert_eq!(
            refused(Tokens::u16(&path).block(4)),
            "the data can't be used so: t has 4 tokens for this part, and a window of 4 takes 5"
        );
        assert!(Tokens::u16(&path).block(3).open(Part::All).is_ok());
        assert!(refused(Tokens::u16(&path).block(0)).contains("at least 1 token"));
        assert!(refused(Tokens::u16(&path).block(usize::MAX)).contains("a window of"));
        fs::write(&path, [0; 7]).unwrap();
        assert_eq!(
            refused(Tokens::u16(&path)),
            "t is no token file that can be read here: its 7 bytes are no whole number of tokens of 2 bytes"
        );
        fs::write(&path, []).unwrap();
        assert_eq!(refused(Tokens::u16(&path)), "t holds no sample");
    }

    #[test]
    fn a_file_that_is_cut_short_meanwhile_is_an_error_and_no_signal() {
        let (dir, path) = file(&vec![1; 100_000]);
        let windows = Tokens::u16(&path).block(1000).open(Part::All).unwrap();
        assert_eq!(window(&windows, 98).0, vec![1; 1000]);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let error = told(windows.sample(98).unwrap_err(), &dir);
        assert_eq!(
            error,
            "t is cut short: it has 5000 bytes and 200000 belong there; get the file again"
        );
        assert_eq!(window(&windows, 0).0, vec![1; 1000], "what is left is read");
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_told_with_its_place() {
        let (dir, path) = file(&[1, 2, 3, 99, 5, 6]);
        let windows = Tokens::u16(&path).block(2).vocabulary(84).open(Part::All).unwrap();
        assert_eq!(
            told(windows.sample(1).unwrap_err(), &dir),
            "t: token 99 at position 3 is not one of the vocabulary's 84"
        );
    }
}
