//! Texts, through a tokenizer.

use std::{path::PathBuf, sync::Arc};

use footlight_runtime::tensor::DType;
use serde::{Deserialize, Serialize};

use super::{
    DataError, Field, Part, Sample, Source, files, name_of,
    windows::{Read, Windows, next_token},
};

/// A text in UTF-8, made into tokens when it is opened, and kept in memory as such.
///
/// Samples are windows as those of [`Tokens`](super::Tokens), or lines of unequal length.
///
/// ```
/// # use footlight_actors::data::{DataSpec, Text};
/// let characters = DataSpec::new(Text::at("corpus.txt").block(64)).hold_out_last(0.1);
/// // With the feature `tokenizers`, any tokenizer of Hugging Face's hub:
/// let pieces = DataSpec::new(Text::at("corpus.txt").tokenizer("tokenizer.json").block(256)).hold_out_last(0.1);
/// let lines = DataSpec::new(Text::at("names.txt").lines()).hold_out(0.1).pad_to_longest(0.0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    at: PathBuf,
    tokenizer: Tokenizer,
    cut: Cut,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Tokenizer {
    /// Each character is a token; these, or those of the text in the order of their code points.
    Characters(Option<String>),
    /// A `tokenizer.json`.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Cut {
    Windows { block: usize, stride: Option<usize> },
    Lines,
}

impl Text {
    /// This file, or `s3://bucket/key`; each character is a token; windows of 256.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Text {
            at: path.into(),
            tokenizer: Tokenizer::Characters(None),
            cut: Cut::Windows { block: 256, stride: None },
        }
    }

    /// Each character of this alphabet is a token, numbered as they stand there. Default: the characters of the text in
    /// the order of their code points, which [`Alphabet::of`] tells too.
    #[must_use]
    pub fn alphabet(mut self, characters: impl Into<String>) -> Self {
        self.tokenizer = Tokenizer::Characters(Some(characters.into()));
        self
    }

    /// A `tokenizer.json` as the models of Hugging Face's hub have it. Needs the feature `tokenizers`.
    #[must_use]
    pub fn tokenizer(mut self, path: impl Into<PathBuf>) -> Self {
        self.tokenizer = Tokenizer::File(path.into());
        self
    }

    /// Windows of so many tokens.
    #[must_use]
    pub fn block(mut self, tokens: usize) -> Self {
        self.cut = match self.cut {
            Cut::Windows { stride, .. } => Cut::Windows { block: tokens, stride },
            Cut::Lines => Cut::Windows { block: tokens, stride: None },
        };
        self
    }

    /// How far a window is from the next one. Default: a block.
    #[must_use]
    pub fn stride(mut self, tokens: usize) -> Self {
        if let Cut::Windows { stride, .. } = &mut self.cut {
            *stride = Some(tokens);
        }
        self
    }

    /// Each line is a sample, `i64` `[?]`, with its newline as the last target; empty ones are left out. They are of
    /// unequal length: say how they are padded.
    #[must_use]
    pub fn lines(mut self) -> Self {
        self.cut = Cut::Lines;
        self
    }

    pub(super) fn has_windows(&self) -> bool {
        matches!(self.cut, Cut::Windows { .. })
    }

    pub(super) fn open(&self, part: Part) -> Result<Arc<dyn Source>, DataError> {
        let at = name_of(&self.at);
        let bytes = files::read(&self.at)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| DataError::Format {
            at: at.clone(),
            format: "UTF-8 text",
            why: error.to_string(),
        })?;
        if text.is_empty() {
            return Err(DataError::Empty { at });
        }
        let encoder = self.encoder(&at, text)?;
        Ok(match self.cut {
            Cut::Windows { block, stride } => {
                let tokens = InMemory(encoder.encode(&at, text)?);
                Arc::new(Windows::new(&at, tokens, block, stride.unwrap_or(block), part)?)
            }
            Cut::Lines => {
                let mut lines = Lines { tokens: Vec::new(), ends: Vec::new() };
                for line in text.split_inclusive('\n').filter(|line| !line.trim().is_empty()) {
                    let tokens = encoder.encode(&at, line)?;
                    // Of a single token nothing can be learnt.
                    if tokens.len() > 1 {
                        lines.tokens.extend(tokens);
                        lines.ends.push(lines.tokens.len());
                    }
                }
                if lines.ends.is_empty() {
                    return Err(DataError::Empty { at });
                }
                Arc::new(lines)
            }
        })
    }

    fn encoder(&self, at: &str, text: &str) -> Result<Encoder, DataError> {
        match &self.tokenizer {
            Tokenizer::Characters(None) => Ok(Encoder::Characters(Alphabet::of(text))),
            Tokenizer::Characters(Some(given)) => {
                let alphabet = Alphabet::given(given);
                let count = alphabet.len();
                if count == 0 || count != given.chars().count() {
                    return Err(DataError::Spec(format!(
                        "the alphabet for {at} is empty or has a character twice"
                    )));
                }
                Ok(Encoder::Characters(alphabet))
            }
            Tokenizer::File(path) => Encoder::load(path),
        }
    }
}

/// The characters of a text, each a token: from 0, in the order of their code points.
///
/// ```
/// # use footlight_actors::data::Alphabet;
/// let alphabet = Alphabet::of("to be");
/// assert_eq!(alphabet.encode("bet").unwrap(), [1, 2, 4]);
/// assert_eq!(alphabet.decode(&[4, 3, 0, 99]), "to \u{fffd}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alphabet {
    characters: Vec<char>,
    numbers: std::collections::HashMap<char, u32>,
}

impl Alphabet {
    /// The characters of this text.
    pub fn of(text: &str) -> Self {
        let characters: std::collections::BTreeSet<char> = text.chars().collect();
        Self::numbered(characters.into_iter().collect())
    }

    /// These, as they stand.
    fn given(characters: &str) -> Self {
        Self::numbered(characters.chars().collect())
    }

    fn numbered(characters: Vec<char>) -> Self {
        let numbers = characters.iter().copied().zip(0..).collect();
        Alphabet { characters, numbers }
    }

    /// How many characters there are.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// A text's tokens.
    ///
    /// # Errors
    /// The first character that is not of this alphabet.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, char> {
        text.chars().map(|one| self.numbers.get(&one).copied().ok_or(one)).collect()
    }

    /// The text of some tokens; `U+FFFD` for what is none.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let of = |token: &u32| self.characters.get(*token as usize).copied();
        tokens.iter().map(|token| of(token).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }
}

enum Encoder {
    Characters(Alphabet),
    #[cfg(feature = "tokenizers")]
    Model(Box<tokenizers::Tokenizer>),
}

impl Encoder {
    #[cfg(feature = "tokenizers")]
    fn load(path: &std::path::Path) -> Result<Self, DataError> {
        let bytes = files::read(path)?;
        let tokenizer = tokenizers::Tokenizer::from_bytes(&bytes[..]);
        let tokenizer = tokenizer.map_err(|error| DataError::Format {
            at: name_of(path),
            format: "tokenizer",
            why: error.to_string().replace('\n', " "),
        })?;
        Ok(Encoder::Model(Box::new(tokenizer)))
    }

    #[cfg(not(feature = "tokenizers"))]
    fn load(path: &std::path::Path) -> Result<Self, DataError> {
        Err(DataError::Spec(format!(
            "{} needs the feature `tokenizers` of footlight, without which this program was built",
            path.display()
        )))
    }

    fn encode(&self, at: &str, text: &str) -> Result<Vec<u32>, DataError> {
        match self {
            Encoder::Characters(alphabet) => {
                alphabet.encode(text).map_err(|character| DataError::Format {
                    at: at.to_owned(),
                    format: "text",
                    why: format!("its character {character:?} is not of the alphabet"),
                })
            }
            #[cfg(feature = "tokenizers")]
            Encoder::Model(tokenizer) => {
                let encoded = tokenizer.encode(text, false).map_err(|error| DataError::Format {
                    at: at.to_owned(),
                    format: "text",
                    why: error.to_string().replace('\n', " "),
                })?;
                Ok(encoded.get_ids().to_vec())
            }
        }
    }
}

struct InMemory(Vec<u32>);

impl Read for InMemory {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, start: usize, into: &mut [i64]) -> Result<(), DataError> {
        let tokens = self.0.get(start..start + into.len());
        let tokens = tokens.ok_or(DataError::NoSample { index: start, samples: self.0.len() })?;
        into.iter_mut().zip(tokens).for_each(|(into, token)| *into = (*token).into());
        Ok(())
    }
}

/// Lines one after another, and where each ends.
struct Lines {
    tokens: Vec<u32>,
    ends: Vec<usize>,
}

impl Source for Lines {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn input(&self) -> Field {
        Field::new(DType::I64, &[Field::ANY])
    }

    fn target(&self) -> Field {
        self.input()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let missing = || DataError::NoSample { index, samples: self.ends.len() };
        let end = *self.ends.get(index).ok_or_else(missing)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        let tokens = self.tokens.get(start.unwrap_or(0)..end).ok_or_else(missing)?;
        next_token(&tokens.iter().map(|token| i64::from(*token)).collect::<Vec<_>>())
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
