use super::*;
use crate::testing::stand_in::stand_in;
use std::process::{Output, Stdio};
use tempfile::TempDir;

/// Data of so many samples, and a program: one that is on every machine.
fn made(samples: u32, pixels: u32) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    fs::create_dir(&data)?;
    for split in ["train", "t10k"] {
        let head =
            [&[0, 0, 8, 3][..], &samples.to_be_bytes(), &1u32.to_be_bytes(), &pixels.to_be_bytes()];
        let images = [head.concat(), vec![7; (samples * pixels) as usize]].concat();
        fs::write(data.join(format!("{split}-images-idx3-ubyte")), images)?;
        let labels =
            [&[0, 0, 8, 1][..], &samples.to_be_bytes(), &vec![1; samples as usize]].concat();
        fs::write(data.join(format!("{split}-labels-idx1-ubyte")), labels)?;
    }
    Ok(folder)
}

/// This test's own program.
fn program() -> Result<PathBuf> {
    std::env::current_exe().context("where is this program?")
}

#[test]
fn the_folder_has_the_program_the_script_and_the_first_samples() -> Result<()> {
    let from = made(20_000, 4)?;
    let out = from.path().join("out");
    let bytes = stage(&program()?, &from.path().join("data"), &out)?;
    let mut names: Vec<_> = fs::read_dir(&out)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    assert_eq!(names, ["data", "footlight-gpu", "run.sh"]);
    assert!(bytes < LIMIT && bytes == size(&out)?);
    let length = |name: &str| fs::metadata(out.join("data").join(name)).map(|data| data.len());
    assert_eq!(length("train-images-idx3-ubyte")?, 16 + u64::from(TRAIN) * 4);
    assert_eq!(length("t10k-labels-idx1-ubyte")?, 8 + u64::from(TEST));
    // Without its symbols, and a program still.
    assert!(fs::metadata(out.join(PROGRAM))?.len() < fs::metadata(program()?)?.len());
    assert!(
        Command::new(out.join(PROGRAM)).arg("--help").stdout(Stdio::null()).status()?.success()
    );
    // Made again over itself; nothing is left beside it.
    assert_eq!(free(&out)?, out);
    assert_eq!(stage(&program()?, &from.path().join("data"), &out)?, bytes);
    assert!(!from.path().join("out.part").exists());
    Ok(())
}

#[test]
fn a_folder_that_grows_too_large_is_refused_and_removed() -> Result<()> {
    let from = made(12_288, 4_800)?;
    let out = from.path().join("out");
    let error = stage(&program()?, &from.path().join("data"), &out).unwrap_err().to_string();
    assert!(error.contains("and should have less than 60 MB"), "{error}");
    assert!(!out.exists() && !from.path().join("out.part").exists());
    Ok(())
}

#[test]
fn files_of_somebody_else_are_left_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    assert!(free(folder.path()).is_ok() && free(&folder.path().join("new")).is_ok());
    fs::write(folder.path().join("letter"), "dear")?;
    let error = free(folder.path()).unwrap_err().to_string();
    assert!(error.contains("has other files in it"), "{error}");
    let error = free(&folder.path().join("letter")).unwrap_err().to_string();
    assert!(error.contains("is there and no folder"), "{error}");
    Ok(())
}

/// A staged script with a program that tells what it was started with, and a libtorch.
struct Staged(TempDir);

impl Staged {
    fn new(version: Option<(&str, &str)>, cuda: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = include_str!("../run.sh").replace("@VERSION@", libtorch::VERSION);
        fs::write(folder.path().join(SCRIPT), script)?;
        stand_in(folder.path(), PROGRAM, "echo \"$@\"; echo \"$LD_LIBRARY_PATH\"");
        fs::create_dir_all(folder.path().join("torch/lib"))?;
        fs::write(folder.path().join("torch/lib/libtorch_cpu.so"), "")?;
        if cuda {
            fs::write(folder.path().join("torch/lib/libtorch_cuda.so"), "")?;
        }
        if let Some((file, text)) = version {
            fs::write(folder.path().join("torch").join(file), text)?;
        }
        Ok(Self(folder))
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn run(&self, environment: &[(&str, PathBuf)], arguments: &[&str]) -> Result<(bool, String)> {
        let mut sh = Command::new("sh");
        sh.arg(self.path(SCRIPT)).args(arguments);
        sh.env_remove("LIBTORCH").env_remove("LD_LIBRARY_PATH");
        sh.envs(environment.iter().map(|(name, value)| (*name, value)));
        let Output { status, stdout, stderr } = sh.output()?;
        let said = if status.success() { stdout } else { stderr };
        Ok((status.success(), String::from_utf8(said)?))
    }
}

#[test]
fn the_script_starts_the_program_with_the_libtorch_that_libtorch_names() -> Result<()> {
    for version in [
        ("build-version", "2.11.0+cu130\n"),
        ("version.py", "x = 1\n__version__ = '2.11.0+cu130'\n"),
    ] {
        let staged = Staged::new(Some(version), true)?;
        let (done, said) =
            staged.run(&[("LIBTORCH", staged.path("torch"))], &["--only", "bits"])?;
        assert!(done, "{said}");
        let data = staged.path("data");
        assert!(said.starts_with(&format!("--data {} --only bits\n", data.display())), "{said}");
        assert!(said.contains(&staged.path("torch/lib").display().to_string()), "{said}");
    }
    Ok(())
}

#[test]
fn the_script_finds_the_libtorch_of_a_python_and_says_when_there_is_none() -> Result<()> {
    let staged = Staged::new(Some(("version.py", "__version__ = \"2.11.0\"\n")), true)?;
    let python =
        stand_in(staged.0.path(), "python", &format!("echo {}", staged.path("torch").display()));
    let (done, said) = staged.run(&[("PYTHON", python)], &[])?;
    assert!(done && said.contains("torch/lib"), "{said}");
    let python = stand_in(staged.0.path(), "bare", "exit 1");
    let (done, said) = staged.run(&[("PYTHON", python)], &[])?;
    assert!(!done && said.starts_with("error: there is no libtorch here: set LIBTORCH"), "{said}");
    Ok(())
}

#[test]
fn the_script_refuses_another_libtorch_and_one_without_cuda() -> Result<()> {
    let old = Staged::new(Some(("build-version", "2.10.0+cu128\n")), true)?;
    let (done, said) = old.run(&[("LIBTORCH", old.path("torch"))], &[])?;
    assert!(!done && said.contains("which is libtorch 2.10.0+cu128 and not 2.11.0"), "{said}");
    let (done, said) = old.run(&[("LIBTORCH", old.path("data"))], &[])?;
    assert!(!done && said.contains("which has no lib/libtorch_cpu.so"), "{said}");
    let unknown = Staged::new(None, true)?;
    let (done, said) = unknown.run(&[("LIBTORCH", unknown.path("torch"))], &[])?;
    assert!(!done && said.contains("which is libtorch unknown and not 2.11.0"), "{said}");
    let cpu = Staged::new(Some(("build-version", "2.11.0+cpu\n")), false)?;
    let (done, said) = cpu.run(&[("LIBTORCH", cpu.path("torch"))], &[])?;
    assert!(
        !done && said.contains("without CUDA; --device cpu checks the program itself"),
        "{said}"
    );
    for arguments in [&["--device", "cpu"][..], &["--device=cpu"], &["--help"]] {
        let (done, said) = cpu.run(&[("LIBTORCH", cpu.path("torch"))], arguments)?;
        assert!(done, "{said}");
    }
    Ok(())
}
