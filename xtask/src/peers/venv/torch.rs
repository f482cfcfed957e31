//! PyTorch without the libraries for a GPU: a fifth of what pip would fetch with all that the package asks for.
//!
//! There is one package for both. Its libraries name those of CUDA, which the loader wants to find, although nothing in
//! them is called on a CPU. So an empty one stands in for each, and Python is told to look functions up when they are
//! called first, not all at once.

use super::{Package, Venv};
use crate::command;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the package asks for besides CUDA.
const DEPENDENCIES: &[&str] = &[
    "filelock",
    "typing-extensions>=4.10",
    "setuptools<82",
    "sympy>=1.13.3",
    "networkx>=2.5.1",
    "jinja2",
    "fsspec>=0.8.5",
    "numpy>=2,<3",
];

/// The libraries of CUDA that PyTorch 2.11 names.
const ABSENT: &[&str] = &[
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcufft.so.12",
    "libcufile.so.0",
    "libcurand.so.10",
    "libcusolver.so.12",
    "libcusparse.so.12",
    "libcusparseLt.so.0",
    "libnccl.so.2",
    "libnvshmem_host.so.3",
];

/// Python runs such a line of a `.pth` file whenever it starts.
const LAZY: &str = "import os, sys; sys.setdlopenflags(os.RTLD_LAZY)\n";

pub(super) fn install(venv: &Venv) -> Result<()> {
    venv.pip("torch", &["--no-deps"], &Package::Torch.requirements())?;
    venv.pip("what torch needs", &[], DEPENDENCIES)?;
    if cfg!(target_os = "linux") {
        stand_in(&site_packages(venv)?)?;
    }
    let mut python = venv.python();
    python.args(["-c", "import torch.distributed.rpc"]);
    venv.quietly("starting torch", "import torch", &mut python)
}

fn site_packages(venv: &Venv) -> Result<PathBuf> {
    let mut python = venv.python();
    let asked = python.args(["-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]);
    let output = asked.output().context("cannot start the environment's Python")?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    ensure!(folder.is_dir(), "the environment has no folder for packages");
    Ok(folder)
}

fn stand_in(packages: &Path) -> Result<()> {
    let libraries = packages.join("torch/lib");
    let empty = "libfootlight-empty.so";
    // The compiler that builds of this checkout use.
    let cxx = std::env::var("CXX").ok().filter(|own| !own.trim().is_empty());
    let cxx = cxx.unwrap_or_else(|| "c++".to_owned());
    let mut words = cxx.split_whitespace();
    let mut compiler = Command::new(words.next().unwrap_or("c++"));
    compiler
        .args(words)
        .args(["-shared", "-x", "c++", "/dev/null", "-o"])
        .arg(libraries.join(empty));
    command::quietly("c++ -shared", &mut compiler, &libraries.join("footlight.log"), || ())?;
    for name in ABSENT {
        let link = libraries.join(name);
        if !link.exists() {
            symlink(empty, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    let pth = packages.join("footlight-lazy.pth");
    fs::write(&pth, LAZY).with_context(|| format!("cannot write {}", pth.display()))
}
