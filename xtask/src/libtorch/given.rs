//! A libtorch of the user's own, named by `LIBTORCH`.

use super::{Flavour, VERSION, configuration_file, quoted};
use crate::paths;
use anyhow::{Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The folder that the user has named. Cargo gives this program the `LIBTORCH` of `.cargo` if the user set none;
/// those values are not the user's.
pub(crate) fn given() -> Option<PathBuf> {
    let value = env::var_os("LIBTORCH").filter(|value| !value.is_empty()).map(PathBuf::from)?;
    let placeholder = paths::root().join(".cargo/no-libtorch");
    let configured = fs::read_to_string(configuration_file()).unwrap_or_default();
    (!is_ours(&value, &placeholder, &configured)).then_some(value)
}

fn is_ours(value: &Path, placeholder: &Path, configured: &str) -> bool {
    value == placeholder
        || quoted(value).is_ok_and(|value| configured.contains(&format!("value = {value},")))
}

/// Checks that it is one that `tch` can be built with.
pub(super) fn check(folder: &Path, wish: Option<Flavour>) -> Result<()> {
    let shown = folder.display();
    let advice = format!(
        "correct LIBTORCH, or unset it and run `cargo xtask setup` to get libtorch {VERSION}"
    );
    ensure!(folder.is_absolute(), "LIBTORCH is `{shown}`, which is not an absolute path: {advice}");
    ensure!(folder.is_dir(), "LIBTORCH is {shown}, which is not a folder: {advice}");
    let library = format!("lib/{}", library("torch_cpu"));
    ensure!(
        folder.join(&library).is_file(),
        "LIBTORCH is {shown}, which has no {library}: {advice}"
    );
    match version(folder) {
        Some(found) if found == VERSION => {}
        Some(found) => {
            bail!("LIBTORCH is {shown}, which is libtorch {found} and not {VERSION}: {advice}")
        }
        None => bail!(
            "LIBTORCH is {shown}, which does not tell its version (in a file build-version): {advice}"
        ),
    }
    ensure!(
        wish != Some(Flavour::Cuda)
            || folder.join("lib").join(self::library("torch_cuda")).is_file(),
        "LIBTORCH is {shown}, which has no CUDA libraries: unset it, or leave out --cuda",
    );
    Ok(())
}

/// The file name of a shared library on this system.
pub(super) fn library(name: &str) -> String {
    format!("{}{name}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)
}

/// The version without the build's suffix: a libtorch archive has it in `build-version`, a Python package in
/// `version.py`.
fn version(folder: &Path) -> Option<String> {
    let archive = fs::read_to_string(folder.join("build-version")).ok();
    let found = archive.or_else(|| {
        let text = fs::read_to_string(folder.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_owned())
    })?;
    let plain = found.trim().split('+').next().unwrap_or_default();
    (!plain.is_empty()).then(|| plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn libtorch(version: Option<(&str, &str)>) -> std::io::Result<TempDir> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("lib"))?;
        fs::write(folder.path().join("lib").join(library("torch_cpu")), "")?;
        if let Some((file, text)) = version {
            fs::write(folder.path().join(file), text)?;
        }
        Ok(folder)
    }

    fn said(folder: &Path, wish: Option<Flavour>) -> String {
        check(folder, wish).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_right_version_is_taken_from_either_file() -> std::io::Result<()> {
        for file in
            [("build-version", "2.11.0+cpu\n"), ("version.py", "x\n__version__ = '2.11.0+cu130'\n")]
        {
            assert_eq!(said(libtorch(Some(file))?.path(), None), "");
        }
        Ok(())
    }

    #[test]
    fn another_version_and_an_unknown_one_are_refused() -> std::io::Result<()> {
        let old = said(libtorch(Some(("build-version", "2.10.0+cpu\n")))?.path(), None);
        assert!(old.contains("is libtorch 2.10.0 and not 2.11.0"), "{old}");
        let unknown = said(libtorch(None)?.path(), None);
        assert!(unknown.contains("does not tell its version"), "{unknown}");
        Ok(())
    }

    #[test]
    fn what_is_no_libtorch_is_refused_in_one_line() -> std::io::Result<()> {
        let empty = tempfile::tempdir()?;
        for (folder, reason) in [
            (empty.path().to_path_buf(), "which has no lib/"),
            (empty.path().join("gone"), "which is not a folder"),
            ("relative".into(), "which is not an absolute path"),
        ] {
            let error = said(&folder, None);
            assert!(error.contains(reason) && !error.contains('\n'), "{error}");
        }
        Ok(())
    }

    #[test]
    fn cuda_is_not_promised_without_its_libraries() -> std::io::Result<()> {
        let folder = libtorch(Some(("build-version", "2.11.0")))?;
        assert!(said(folder.path(), Some(Flavour::Cuda)).contains("no CUDA libraries"));
        assert_eq!(said(folder.path(), Some(Flavour::Cpu)), "");
        Ok(())
    }

    #[test]
    fn the_values_of_cargos_configuration_are_not_the_users() -> Result<()> {
        let (placeholder, folder) =
            (Path::new("/repo/.cargo/no-libtorch"), Path::new("/cache/use/torch"));
        let configured = super::super::configuration(folder)?;
        assert!(is_ours(placeholder, placeholder, ""));
        assert!(is_ours(folder, placeholder, &configured));
        // Another version of this program may have written it, with other words around it.
        assert!(is_ours(folder, placeholder, configured.trim_start_matches('#')));
        assert!(!is_ours(Path::new("/opt/libtorch"), placeholder, &configured));
        Ok(())
    }
}
