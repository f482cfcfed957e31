//! A small pip of our own fetches two small wheels.

use super::super::wheels::Wheel;
use super::fetch;
use crate::checksum::Expected;
use crate::testing::stand_in::stand_in;
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};

const ABC: Expected = Expected {
    size: 3,
    sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
};

const WHEELS: [Wheel; 3] = [
    Wheel::of_both("one==1", "one.whl", ABC),
    Wheel::of_both("two==2", "two.whl", ABC),
    Wheel::of_both("three==3", "three.whl", ABC),
];

/// Writes down what it is asked for, and gives what lies under that name in the folder `index`. Without such a file its
/// connection breaks in the middle.
const PIP: &str = r#"
here="${0%/*}"
echo "$4" >> "$here/asked"
echo "$PIP_RESUME_RETRIES $*" >> "$here/lines"
name="${4%%==*}"
while [ "$1" != --dest ]; do shift; done
if [ -f "$here/index/$name" ]; then
    read -r content < "$here/index/$name"
    printf %s "$content" > "$2/$name.whl"
else
    printf a > "$2/$name.whl"
    echo "ERROR: the connection broke" >&2
    exit 1
fi
"#;

struct Pip(tempfile::TempDir);

impl Pip {
    fn new(index: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("index"))?;
        stand_in(folder.path(), "python3", PIP);
        let pip = Self(folder);
        for (name, content) in index {
            pip.has(name, content)?;
        }
        Ok(pip)
    }

    /// From now on this can be had from it.
    fn has(&self, name: &str, content: &str) -> Result<()> {
        Ok(fs::write(self.0.path().join("index").join(name), format!("{content}\n"))?)
    }

    fn fetch(&self, partial: &Path) -> Result<Vec<PathBuf>> {
        let wheels: Vec<&Wheel> = WHEELS.iter().collect();
        fetch(&wheels, partial, &self.0.path().join("python3"))
    }

    /// What it was asked for so far.
    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.0.path().join("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_second_run_goes_on_with_the_file_at_which_the_first_broke_off() -> Result<()> {
    let partial = tempfile::tempdir()?;
    let pip = Pip::new(&[("one", "abc"), ("three", "abc")])?;
    let error = format!("{:#}", pip.fetch(partial.path()).unwrap_err());
    assert_eq!(
        error,
        "cannot download libtorch (run it again: 1 of 3 files will be kept): \
         `pip download two==2` failed: ERROR: the connection broke"
    );
    assert_eq!(pip.asked(), ["one==1", "two==2"]);
    assert!(!partial.path().join("wheels/two.whl").exists());

    pip.has("two", "abc")?;
    let files = pip.fetch(partial.path())?;
    assert_eq!(pip.asked(), ["one==1", "two==2", "two==2", "three==3"]);
    for file in files {
        assert_eq!(fs::read_to_string(file)?, "abc");
    }
    pip.fetch(partial.path())?;
    assert_eq!(pip.asked().len(), 4, "all is there");
    let left: Vec<_> = fs::read_dir(partial.path())?.flatten().map(|left| left.path()).collect();
    assert_eq!(left.iter().filter(|path| path.is_dir()).count(), 1, "only the wheels: {left:?}");
    Ok(())
}

#[test]
fn pip_may_use_its_cache_and_goes_on_when_a_connection_breaks() -> Result<()> {
    let partial = tempfile::tempdir()?;
    let pip = Pip::new(&[("one", "abc"), ("two", "abc"), ("three", "abc")])?;
    pip.fetch(partial.path())?;
    for line in fs::read_to_string(pip.0.path().join("lines"))?.lines() {
        let (resumes, arguments) = line.split_once(' ').unwrap_or_default();
        assert!(resumes.parse::<u32>().is_ok_and(|times| times > 0), "{line}");
        assert!(!arguments.contains("--no-cache-dir"), "{line}");
    }
    Ok(())
}

#[test]
fn a_wheel_that_was_damaged_since_or_is_another_one_is_not_taken() -> Result<()> {
    let partial = tempfile::tempdir()?;
    let pip = Pip::new(&[("one", "abc"), ("two", "abc"), ("three", "abd")])?;
    let error = format!("{:#}", pip.fetch(partial.path()).unwrap_err());
    assert!(
        error.contains("2 of 3 files will be kept): wrong checksum: SHA-256 of three.whl"),
        "{error}"
    );

    fs::write(partial.path().join("wheels/one.whl"), "abX")?;
    pip.has("three", "abc")?;
    pip.fetch(partial.path())?;
    assert_eq!(pip.asked(), ["one==1", "two==2", "three==3", "one==1", "three==3"]);
    Ok(())
}
