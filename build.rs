//! Lets programs of this package find libtorch when they start, also from another folder and without a variable.
//!
//! The linker writes library folders (the run path) only into the programs of the package whose build script asks
//! for them, so every package whose programs or tests may link libtorch has this script: `footlight` as
//! `build = "build.rs"`, the others as `build = "../build.rs"`. With `links` in its manifest a package hands the
//! folder on to those that depend on it, and so nobody needs the variable `LIBTORCH` but torch-sys.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let Some(folder) = library_folder() else { return };
    let (library, beside) = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => ("libtorch_cpu.dylib", "@loader_path/libtorch/lib"),
        _ => ("libtorch_cpu.so", "$ORIGIN/libtorch/lib"),
    };
    let library = folder.join(library);
    // Asked again when it changes or goes: a cache that was emptied shows here and not in the linker's words.
    println!("cargo::rerun-if-changed={}", library.display());
    if !library.is_file() {
        println!(
            "cargo::error={} is gone. Run `cargo xtask setup` to get it again.",
            library.display()
        );
        return;
    }
    // A program that is copied elsewhere may have a libtorch beside it; that one comes first.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{beside}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    if env::var_os("CARGO_MANIFEST_LINKS").is_some() {
        println!("cargo::metadata=libtorch_lib={}", folder.display());
    }
}

/// The folder of libtorch's libraries, or `None` in a build without it.
fn library_folder() -> Option<PathBuf> {
    // torch-sys and this script in other packages hand it on. Cargo names the variable after the package's `links`,
    // and leaves out those that are dependencies of tests only: hence the second way.
    let handed_on = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.to_string_lossy();
        (name.starts_with("DEP_") && name.ends_with("_LIBTORCH_LIB")).then(|| PathBuf::from(value))
    };
    env::vars_os().find_map(handed_on).or_else(|| {
        env::var_os("CARGO_FEATURE_TORCH")?;
        Some(PathBuf::from(env::var_os("LIBTORCH")?).join("lib"))
    })
}
