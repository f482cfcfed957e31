//! Unpacks wheels into a folder of the cache. A wheel is a zip archive: unpacking it here rather than through pip
//! leaves out the Python parts, and shows progress.

use super::given::library;
use super::{Flavour, VERSION, remove_if_there};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use zip::ZipArchive;

/// The list of libraries with their sizes, written into the folder last.
const LIST: &str = "installed";

/// Whether a folder has every library, each of its size. Quick: a few dozen questions to the file system.
pub(super) fn is_complete(folder: &Path) -> bool {
    let Ok(list) = fs::read_to_string(folder.join(LIST)) else {
        return false;
    };
    let fits = |line: &str| {
        let (size, name) = line.split_once(' ')?;
        (fs::metadata(folder.join(name)).ok()?.len() == size.parse::<u64>().ok()?).then_some(())
    };
    !list.is_empty() && list.lines().all(|line| fits(line).is_some())
}

/// Unpacks wheels below `partial`, moves the result to `target`, and only then removes the wheels.
pub(super) fn unpack(
    wheels: &[PathBuf],
    partial: &Path,
    target: &Path,
    flavour: Flavour,
) -> Result<()> {
    let stage = partial.join("stage");
    remove_if_there(&stage)?;
    fs::create_dir_all(&stage).with_context(|| format!("cannot make {}", stage.display()))?;
    let mut archives = Vec::new();
    let mut total = 0;
    for wheel in wheels {
        let mut archive = open(wheel)?;
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index)?;
            total += if is_wanted(&entry.name()?, flavour) { entry.size() } else { 0 };
        }
        archives.push(archive);
    }
    let progress = Progress::begin("libtorch", "unpacking", "unpacked", total);
    for (archive, wheel) in archives.iter_mut().zip(wheels) {
        unpack_one(archive, &stage, flavour, &progress).with_context(|| {
            format!("cannot unpack {} (run it again: it is not downloaded again)", wheel.display())
        })?;
    }
    progress.end();
    complete(&stage, flavour)?;
    let old = partial.join("old");
    remove_if_there(&old)?;
    if target.exists() {
        fs::rename(target, &old).with_context(|| format!("cannot move {}", target.display()))?;
    }
    fs::rename(&stage, target).with_context(|| format!("cannot write {}", target.display()))?;
    remove_if_there(partial)
}

fn open(wheel: &Path) -> Result<ZipArchive<File>> {
    let file = File::open(wheel).with_context(|| format!("cannot read {}", wheel.display()))?;
    ZipArchive::new(file).with_context(|| format!("{} is not a wheel", wheel.display()))
}

/// Libraries, headers and licences; no Python, and without CUDA none of the libraries that load it.
fn is_wanted(name: &str, flavour: Flavour) -> bool {
    const CUDA: [&str; 5] =
        ["torch_cuda", "torch_cuda_linalg", "c10_cuda", "torch_nvshmem", "caffe2_nvrtc"];
    let library_of =
        |names: &[&str]| names.iter().any(|short| name == format!("torch/lib/{}", library(short)));
    if name.ends_with('/') || library_of(&["torch_python"]) {
        return false;
    }
    if flavour == Flavour::Cpu && library_of(&CUDA) {
        return false;
    }
    name.starts_with("torch/lib/")
        || name.starts_with("torch/include/")
        // A program that links shared libraries has no use for archives.
        || (name.starts_with("nvidia/") && name.contains("/lib/") && !name.ends_with(".a"))
        || name.contains(".dist-info/licenses/")
}

fn unpack_one(
    archive: &mut ZipArchive<File>,
    stage: &Path,
    flavour: Flavour,
    progress: &Progress,
) -> Result<()> {
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        if !is_wanted(&entry.name()?, flavour) {
            continue;
        }
        let Some(inside) = entry.enclosed_name() else { bail!("an entry leads out of the folder") };
        let path = stage.join(inside);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut file = Counted { file: BufWriter::with_capacity(1 << 18, file), progress };
        io::copy(&mut entry, &mut file)?;
        file.flush()?;
    }
    Ok(())
}

/// Tells the progress what has been written.
struct Counted<'a> {
    file: BufWriter<File>,
    progress: &'a Progress,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.progress.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Adds what a wheel lacks and writes the list.
fn complete(stage: &Path, flavour: Flavour) -> Result<()> {
    let libraries = stage.join("torch/lib");
    // Wheels have no such file; torch-sys compares it with the version that it wants.
    fs::write(stage.join("torch/build-version"), format!("{VERSION}\n"))
        .context("cannot write build-version")?;
    let stub = libraries.join("libtorch.so");
    if flavour == Flavour::Cpu && stub.is_file() {
        // The stub asks for libtorch_cuda.so, which was left out; it holds nothing itself.
        fs::remove_file(&stub)
            .and_then(|()| std::os::unix::fs::symlink("libtorch_cpu.so", &stub))
            .with_context(|| format!("cannot link {}", stub.display()))?;
    }
    let mut list = Vec::new();
    list_libraries(stage, Path::new(""), &mut list)
        .with_context(|| format!("cannot read {}", stage.display()))?;
    list.sort();
    if !list.iter().any(|line| line.ends_with(&format!("torch/lib/{}", library("torch_cpu")))) {
        bail!("the wheels have no {}", library("torch_cpu"));
    }
    fs::write(stage.join(LIST), list.join("\n") + "\n")
        .context("cannot write the list of libraries")
}

fn list_libraries(stage: &Path, below: &Path, list: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(stage.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list_libraries(stage, &path, list)?;
        } else if below.file_name().is_some_and(|folder| folder == "lib") {
            list.push(format!("{} {}", fs::metadata(entry.path())?.len(), path.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    #[test]
    fn cuda_and_python_are_left_out() {
        let cpu = |name: &str| is_wanted(name, Flavour::Cpu);
        assert!(cpu("torch/include/torch/all.h") && cpu("nvidia/cu13/lib/libcudart.so.13"));
        assert!(cpu(&format!("torch/lib/{}", library("torch_cpu"))));
        assert!(cpu("torch-2.11.0.dist-info/licenses/LICENSE"));
        let cuda = format!("torch/lib/{}", library("torch_cuda"));
        assert!(!cpu(&cuda) && is_wanted(&cuda, Flavour::Cuda));
        assert!(!cpu("torch/nn/__init__.py") && !cpu("torch/lib/") && !cpu("torch/bin/protoc"));
        assert!(!is_wanted(&format!("torch/lib/{}", library("torch_python")), Flavour::Cuda));
    }

    fn wheel(path: &Path, files: &[(&str, &str)]) -> Result<()> {
        let mut zip = ZipWriter::new(File::create(path)?);
        for (name, text) in files {
            zip.start_file(*name, SimpleFileOptions::default())?;
            zip.write_all(text.as_bytes())?;
        }
        zip.finish()?;
        Ok(())
    }

    #[test]
    fn an_installed_folder_is_complete_until_a_library_shrinks() -> Result<()> {
        let home = tempfile::tempdir()?;
        let (partial, target) = (home.path().join("cpu.partial"), home.path().join("cpu"));
        fs::create_dir(&partial)?;
        let (file, library) =
            (partial.join("a.whl"), format!("torch/lib/{}", library("torch_cpu")));
        wheel(&file, &[(&library, "code"), ("torch/include/a.h", ""), ("torch/a.py", "")])?;
        // An earlier run was interrupted while it unpacked, and an older install lost its list.
        fs::create_dir_all(partial.join("stage/torch"))?;
        fs::create_dir(&target)?;
        assert!(!is_complete(&target));
        unpack(&[file], &partial, &target, Flavour::Cpu)?;
        assert!(is_complete(&target) && !partial.exists());
        assert_eq!(fs::read_to_string(target.join("torch/build-version"))?, "2.11.0\n");
        assert!(!target.join("torch/a.py").exists());
        fs::write(target.join(library), "cod")?;
        assert!(!is_complete(&target));
        Ok(())
    }

    #[test]
    fn a_wheel_without_libtorch_is_no_success() -> Result<()> {
        let home = tempfile::tempdir()?;
        let (partial, target) = (home.path().join("cpu.partial"), home.path().join("cpu"));
        fs::create_dir(&partial)?;
        let file = partial.join("a.whl");
        wheel(&file, &[("torch/lib/other", "code")])?;
        let error = unpack(&[file], &partial, &target, Flavour::Cpu).unwrap_err();
        assert!(error.to_string().starts_with("the wheels have no "), "{error}");
        assert!(!target.exists());
        Ok(())
    }
}
