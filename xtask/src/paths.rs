//! Where things lie: this checkout, and the user's cache directory.

use anyhow::{Context, Result};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    // Cargo tells where the package lies now; the path known to the compiler is the one of build time.
    let package =
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let package = PathBuf::from(package);
    package.parent().map(Path::to_path_buf).unwrap_or(package)
}

/// Footlight's folder in the user's cache directory.
pub(crate) fn cache() -> Result<PathBuf> {
    cache_from(|name| env::var_os(name).filter(|value| !value.is_empty()), env::consts::OS)
        .and_then(|dir| std::path::absolute(&dir).context("no current directory"))
}

fn cache_from(variable: impl Fn(&str) -> Option<OsString>, os: &str) -> Result<PathBuf> {
    if let Some(own) = variable("FOOTLIGHT_CACHE") {
        return Ok(own.into());
    }
    // The XDG specification says that a relative path in it is to be ignored.
    if let Some(xdg) =
        variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute())
    {
        return Ok(xdg.join("footlight"));
    }
    let home = variable("HOME")
        .map(PathBuf::from)
        .context("no place for the cache: neither HOME nor FOOTLIGHT_CACHE is set")?;
    let caches = if os == "macos" { "Library/Caches" } else { ".cache" };
    Ok(home.join(caches).join("footlight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)], os: &str) -> Option<PathBuf> {
        cache_from(
            |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()),
            os,
        )
        .ok()
    }

    #[test]
    fn the_users_own_choice_comes_first() {
        let all = [("FOOTLIGHT_CACHE", "/own"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/me")];
        assert_eq!(with(&all, "linux"), Some("/own".into()));
        assert_eq!(with(&all[1..], "linux"), Some("/xdg/footlight".into()));
        assert_eq!(with(&all[2..], "linux"), Some("/home/me/.cache/footlight".into()));
        assert_eq!(with(&all[2..], "macos"), Some("/home/me/Library/Caches/footlight".into()));
        assert_eq!(with(&[], "linux"), None);
    }

    #[test]
    fn a_relative_xdg_directory_is_ignored() {
        let set = [("XDG_CACHE_HOME", "here"), ("HOME", "/home/me")];
        assert_eq!(with(&set, "linux"), Some("/home/me/.cache/footlight".into()));
    }
}
