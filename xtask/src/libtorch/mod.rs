//! Brings libtorch: the user's own if `LIBTORCH` names one, or else the libraries of the PyPI wheels.
//!
//! In the cache, `libtorch-2.11.0/cpu` and `libtorch-2.11.0/cuda` each hold the folders `torch` and `nvidia`, and the
//! link `use` points to one of them: builds know only the link, so that a switch rebuilds nothing.
//! `.cargo/libtorch.toml` tells cargo where that is.

mod download;
mod given;
mod install;
mod wheels;

use crate::{lock, paths, tools};
use anyhow::{Context, Result, ensure};
use std::env::consts::{ARCH, OS};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub(crate) use given::given;

/// The version that `tch` is made for.
pub(crate) const VERSION: &str = "2.11.0";

/// For which processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flavour {
    /// Without the CUDA libraries: a sixth of the size.
    Cpu,
    /// With them; it computes on the CPU as well.
    Cuda,
}

impl Flavour {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Makes libtorch ready, and returns the folder that builds use. Without a wish for a flavour it keeps the one in use.
pub(crate) fn prepare(wish: Option<Flavour>) -> Result<PathBuf> {
    if let Some(own) = given() {
        given::check(&own, wish)?;
        return Ok(own);
    }
    let cache = paths::cache()?;
    let home = cache.join(format!("libtorch-{VERSION}"));
    let flavour = wish.unwrap_or_else(|| in_use(&home));
    let wheels = wheels::select(OS, ARCH, flavour)?;
    if !install::is_complete(&home.join(flavour.name())) {
        let python = tools::python()?;
        let _lock = lock::take(&cache)?;
        // Another set-up may have done it while this one waited.
        if !install::is_complete(&home.join(flavour.name())) {
            let partial = home.join(format!("{}.partial", flavour.name()));
            let files = download::fetch(&wheels, &partial, &python)?;
            install::unpack(&files, &partial, &home.join(flavour.name()), flavour)?;
        }
    }
    point_use_at(&home, flavour)?;
    let folder = home.join("use").join("torch");
    write_configuration(&folder)?;
    Ok(folder)
}

/// What pip is asked for where PyTorch of this version is to compute on the CPU: on Linux more than PyTorch itself.
pub(crate) fn requirements() -> Vec<&'static str> {
    // Where no wheels are known, pip is left to say what it finds.
    wheels::select(OS, ARCH, Flavour::Cpu).map_or_else(
        |_| vec!["torch==2.11.0"],
        |wheels| wheels.iter().map(|wheel| wheel.requirement).collect(),
    )
}

fn in_use(home: &Path) -> Flavour {
    match fs::read_link(home.join("use")) {
        Ok(target) if target == Path::new(Flavour::Cuda.name()) => Flavour::Cuda,
        _ => Flavour::Cpu,
    }
}

fn point_use_at(home: &Path, flavour: Flavour) -> Result<()> {
    let link = home.join("use");
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(flavour.name())) {
        return Ok(());
    }
    // A rename replaces the link at once: a build that goes on meanwhile never finds it missing.
    let new = home.join("use.new");
    remove_if_there(&new)?;
    std::os::unix::fs::symlink(flavour.name(), &new)
        .and_then(|()| fs::rename(&new, &link))
        .with_context(|| format!("cannot make the link {}", link.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// The file that cargo includes, once a checkout.
fn configuration_file() -> PathBuf {
    paths::root().join(".cargo/libtorch.toml")
}

fn write_configuration(folder: &Path) -> Result<()> {
    let text = configuration(folder)?;
    let file = configuration_file();
    if fs::read_to_string(&file).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let new = file.with_extension("toml.new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn configuration(folder: &Path) -> Result<String> {
    Ok(format!(
        "# Written by `cargo xtask setup`; a LIBTORCH in the environment wins over it.\n\
         [env]\nLIBTORCH = {{ value = {}, relative = false }}\n",
        quoted(folder)?,
    ))
}

/// A path as a string of TOML.
fn quoted(folder: &Path) -> Result<String> {
    let folder = folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))?;
    ensure!(
        !folder.contains(char::is_control),
        "the path of the cache has a control character in it"
    );
    Ok(format!("\"{}\"", folder.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_switched_and_read_back() -> Result<()> {
        let home = tempfile::tempdir()?;
        assert_eq!(in_use(home.path()), Flavour::Cpu);
        point_use_at(home.path(), Flavour::Cuda)?;
        assert_eq!(in_use(home.path()), Flavour::Cuda);
        point_use_at(home.path(), Flavour::Cpu)?;
        assert_eq!(in_use(home.path()), Flavour::Cpu);
        Ok(())
    }

    #[test]
    fn a_path_is_quoted_for_toml() -> Result<()> {
        let text = configuration(Path::new("/a \"b\"\\c"))?;
        assert!(
            text.ends_with("LIBTORCH = { value = \"/a \\\"b\\\"\\\\c\", relative = false }\n"),
            "{text}"
        );
        assert!(configuration(Path::new("/a\nb")).is_err());
        Ok(())
    }
}
