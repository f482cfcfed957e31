//! What goes wrong with data.

use thiserror::Error;

use super::source::{IdxError, ImagesError};

/// Why data can't be had: each says in one line where, what is wrong, and where it helps what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or object is not there, or can't be read.
    #[error("cannot read {at}: {why}")]
    Read {
        /// Its path or address.
        at: String,
        /// What the system says.
        why: String,
    },
    /// It is not what it is said to be.
    #[error("{at} is no {format} file that can be read here: {why}")]
    Format {
        /// Its path or address.
        at: String,
        /// What it should be.
        format: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It ends too early.
    #[error(
        "{at} is cut short: it has {has} bytes and {promised} belong there; get the file again"
    )]
    Short {
        /// Its path or address.
        at: String,
        /// Bytes that are there.
        has: u64,
        /// Bytes that its header promises.
        promised: u64,
    },
    /// It goes on after its end.
    #[error("{at} is too long: it has {has} bytes and {promised} belong there; get the file again")]
    Long {
        /// Its path or address.
        at: String,
        /// Bytes that are there.
        has: u64,
        /// Bytes that its header promises.
        promised: u64,
    },
    /// It is larger than what is read into memory.
    #[error("{at} takes {bytes} bytes, and at most {limit} are read into memory")]
    TooLarge {
        /// Its path or address.
        at: String,
        /// What it takes.
        bytes: u64,
        /// What may be.
        limit: u64,
    },
    /// It holds no sample.
    #[error("{at} holds no sample")]
    Empty {
        /// Its path or address.
        at: String,
    },
    /// It has no column or array of this name.
    #[error("{at} has no {what} {name:?}: it has {there:?}")]
    NoSuchName {
        /// Its path or address.
        at: String,
        /// A column, an array.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names that are there, the first few.
        there: Vec<String>,
    },
    /// A field of a table is not what its column holds.
    #[error("{at}, line {line}, column {column:?}: {text:?} is {why}")]
    Value {
        /// Its path or address.
        at: String,
        /// The line, from 1.
        line: u64,
        /// The column.
        column: String,
        /// What stands there, the first few characters.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// Inputs and targets are not of one set.
    #[error("{at}: there are {inputs} inputs and {targets} targets: they do not belong together")]
    Counts {
        /// Path or address.
        at: String,
        /// Number of inputs.
        inputs: usize,
        /// Number of targets.
        targets: usize,
    },
    /// A label is none of the classes.
    #[error(
        "{at}: label {label} of sample {index} is not one of the {classes} classes 0..{classes}"
    )]
    Label {
        /// Path or address.
        at: String,
        /// Which sample.
        index: usize,
        /// What stands there.
        label: i64,
        /// How many classes there are.
        classes: usize,
    },
    /// A token is not in the vocabulary.
    #[error(
        "{at}: token {token} at position {position} is not one of the vocabulary's {vocabulary}"
    )]
    Token {
        /// Path or address.
        at: String,
        /// What stands there.
        token: u32,
        /// Where, in tokens from the file's start.
        position: u64,
        /// How many tokens the vocabulary has.
        vocabulary: u32,
    },
    /// A sample was asked for that is not there.
    #[error("there is no sample {index}: the data set has {samples}")]
    NoSample {
        /// Which.
        index: usize,
        /// How many there are.
        samples: usize,
    },
    /// A sample is not as its source said.
    #[error("sample {index}: {what} is {found}, and its source says {expected}")]
    Sample {
        /// Which.
        index: usize,
        /// Its input or its target.
        what: &'static str,
        /// What came.
        found: String,
        /// What was to come.
        expected: String,
    },
    /// A sample is too long for what samples are padded to.
    #[error(
        "sample {index}: {what} has {len} elements, and samples are padded to {to}: truncate them, or let it be more"
    )]
    TooLong {
        /// Which.
        index: usize,
        /// Its input or its target.
        what: &'static str,
        /// How many it has.
        len: usize,
        /// How many it may have.
        to: usize,
    },
    /// The description of the data can't work.
    #[error("the data can't be used so: {0}")]
    Spec(String),
    /// Nothing of that name is registered in this binary.
    #[error(
        "there is no {what} {name:?} in this binary: it has {known:?}; register it where the node is built"
    )]
    Unknown {
        /// A source or a transform.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names that are registered.
        known: Vec<&'static str>,
    },
    /// Two have one name.
    #[error("two {what}s are named {name:?}")]
    Duplicate {
        /// Source or transform.
        what: &'static str,
        /// The name.
        name: &'static str,
    },
    /// A user's source or transform says so.
    #[error("{name}: {why}")]
    Custom {
        /// Its name.
        name: String,
        /// What it says.
        why: String,
    },
    /// IDX files.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// Images in memory.
    #[error(transparent)]
    Images(#[from] ImagesError),
}

impl DataError {
    /// What a user's own source or transform says.
    pub fn custom(name: impl Into<String>, why: impl std::fmt::Display) -> Self {
        DataError::Custom { name: name.into(), why: why.to_string() }
    }
}
