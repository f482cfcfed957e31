//! `cargo xtask setup`: everything that a build and the demo need.

use crate::dataset::{self, Name};
use crate::libtorch::{self, Flavour};
use crate::tools;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Get libtorch and a data set into the cache directory.
///
/// Both are checked against known checksums. Run it again to finish what was interrupted: files that had come are kept.
/// When everything is there it only checks the data set. LIBTORCH, if set, names a libtorch 2.11.0 of your own to use instead. The cache is FOOTLIGHT_CACHE,
/// or footlight/ in your cache directory.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    flavour: FlavourOptions,
    /// The data set to get.
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    dataset: Name,
}

/// Which libtorch; the one in use if nothing is said, at first the one for the CPU.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct FlavourOptions {
    /// Use a libtorch with CUDA: 2.5 GB to download instead of 0.5 GB.
    #[arg(long)]
    cuda: bool,
    /// Use the libtorch for the CPU again.
    #[arg(long, conflicts_with = "cuda")]
    cpu: bool,
}

impl FlavourOptions {
    pub(crate) fn wish(self) -> Option<Flavour> {
        match (self.cuda, self.cpu) {
            (true, _) => Some(Flavour::Cuda),
            (_, true) => Some(Flavour::Cpu),
            _ => None,
        }
    }
}

/// What is ready.
pub(crate) struct Ready {
    pub(crate) libtorch: PathBuf,
    /// The data set's folder.
    pub(crate) data: PathBuf,
}

/// Makes compiler, libtorch and data set ready; a data set of the user's own is only looked at.
pub(crate) fn prepare(wish: Option<Flavour>, name: Name, own: Option<PathBuf>) -> Result<Ready> {
    // The quick questions come first: nobody should download for minutes to learn that a compiler is missing.
    tools::check_compiler()?;
    if let Some(own) = &own {
        dataset::check_given(own)?;
    }
    let libtorch = libtorch::prepare(wish)?;
    let data = own.map_or_else(|| dataset::prepare(name), Ok)?;
    Ok(Ready { libtorch, data })
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let ready = prepare(options.flavour.wish(), options.dataset, None)?;
    eprintln!("libtorch is ready in {}", ready.libtorch.display());
    eprintln!("{} is ready in {}", options.dataset.as_str(), ready.data.display());
    Ok(ExitCode::SUCCESS)
}
