//! From the public address, with the real curl where its own behaviour matters.

use super::*;

/// As `fetch` does when the package client has failed.
fn fetch_by_address(set: &DataSet, folder: &Path, programs: &Programs) -> Result<()> {
    let partial = folder.join("partial");
    fs::create_dir_all(&partial)?;
    let files = source::from_address(
        set,
        set.address.unwrap_or_default(),
        &missing(set, folder),
        &partial,
        programs,
    )?;
    store(set, &files, folder)
}

#[test]
fn a_truncated_file_is_fetched_again_and_no_other() -> Result<()> {
    if lacks("curl") {
        return Ok(());
    }
    let (public, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    assert_eq!(missing(&set, cache.path()).len(), 4);
    fetch_by_address(&set, cache.path(), &Programs::here())?;
    assert!(missing(&set, cache.path()).is_empty());

    fs::write(cache.path().join("b"), "ab")?;
    let names: Vec<_> = missing(&set, cache.path()).iter().map(|file| file.name).collect();
    assert_eq!(names, ["b"]);
    for other in ["a", "c", "d"] {
        fs::remove_file(public.path().join(format!("{other}.gz")))?;
    }
    fetch_by_address(&set, cache.path(), &Programs::here())?;
    assert_eq!(fs::read_to_string(cache.path().join("b"))?, "abc");
    Ok(())
}

#[test]
fn a_wrong_checksum_is_an_error_and_leaves_no_file() -> Result<()> {
    if lacks("curl") {
        return Ok(());
    }
    let (public, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abd")?;
    let error = fetch_by_address(&set, cache.path(), &Programs::here()).unwrap_err().to_string();
    assert!(error.starts_with("wrong checksum: SHA-256 of a is "), "{error}");
    assert!(!cache.path().join("a").exists());
    assert!(!cache.path().join("partial/a.gz").exists(), "nobody goes on from it");
    assert!(cache.path().join("partial/b.gz").exists());
    Ok(())
}

#[test]
fn what_is_not_there_is_an_error_with_its_reason() -> Result<()> {
    if lacks("curl") {
        return Ok(());
    }
    let (public, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    fs::remove_file(public.path().join("d.gz"))?;
    let error = fetch_by_address(&set, cache.path(), &Programs::here()).unwrap_err().to_string();
    assert!(error.contains("d.gz"), "{error}");
    assert_eq!(missing(&set, cache.path()).len(), 4);
    Ok(())
}

#[test]
fn curl_goes_on_where_an_earlier_run_was_interrupted() -> Result<()> {
    if lacks("curl") {
        return Ok(());
    }
    let (public, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    let partial = cache.path().join("partial");
    fs::create_dir(&partial)?;
    // The first half is marked, where gzip keeps a time that does not count.
    let whole = fs::read(public.path().join("a.gz"))?;
    let mut marked = whole.clone();
    marked[4..8].copy_from_slice(b"mark");
    fs::write(partial.join("a.gz"), &marked[..12])?;
    // This one is too long to be a part of it.
    fs::write(partial.join("b.gz"), [0; 24])?;
    fetch_by_address(&set, cache.path(), &Programs::here())?;
    assert_eq!(fs::read(partial.join("a.gz"))?, marked);
    assert_eq!(fs::read(partial.join("b.gz"))?, whole);
    assert_eq!(fs::read_to_string(cache.path().join("a"))?, "abc");
    Ok(())
}

#[test]
fn a_server_that_gives_whole_files_only_is_asked_for_the_whole() -> Result<()> {
    let (public, cache, programs) =
        (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    let whole_only = "[ ! -e \"$to\" ] || { echo 'curl: (33) no byte ranges' >&2; exit 33; }\ncp ";
    stand_in(programs.path(), "curl", &CURL.replace("cp ", whole_only));
    let partial = cache.path().join("partial");
    fs::create_dir(&partial)?;
    fs::write(partial.join("c.gz"), "part")?;
    fetch_by_address(&set, cache.path(), &Programs::below(programs.path()))?;
    assert!(missing(&set, cache.path()).is_empty());
    assert_eq!(asked(programs.path()), ["a.gz", "b.gz", "c.gz", "c.gz", "d.gz"]);
    Ok(())
}

#[test]
fn a_second_run_does_not_fetch_what_the_first_one_had() -> Result<()> {
    let (public, cache, programs) =
        (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    stand_in(programs.path(), "curl", CURL);
    let programs_there = Programs::below(programs.path());
    let third = fs::read(public.path().join("c.gz"))?;
    fs::remove_file(public.path().join("c.gz"))?;
    let error = ready(&set, cache.path(), &programs_there).unwrap_err().to_string();
    assert!(error.starts_with("cannot get test: apt-get is missing"), "{error}");
    assert!(error.contains("Could not open c.gz"), "{error}");
    assert_eq!(asked(programs.path()), ["a.gz", "b.gz", "c.gz"]);

    fs::write(public.path().join("c.gz"), third)?;
    let folder = ready(&set, cache.path(), &programs_there)?;
    assert_eq!(asked(programs.path()), ["a.gz", "b.gz", "c.gz", "c.gz", "d.gz"]);
    assert!(missing(&set, &folder).is_empty() && !folder.join("partial").exists());
    Ok(())
}

/// Tests that need curl would show nothing where it is missing.
#[test]
fn in_ci_a_missing_program_is_a_failure() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let run = |ci: &str| {
        std::process::Command::new(std::env::current_exe()?)
            .args([
                "--exact",
                "dataset::tests::address::what_is_not_there_is_an_error_with_its_reason",
            ])
            .env("PATH", empty.path())
            .env("CI", ci)
            .output()
    };
    let (in_ci, elsewhere) = (run("true")?, run("")?);
    assert!(!in_ci.status.success(), "{in_ci:?}");
    assert!(String::from_utf8_lossy(&in_ci.stdout).contains("this test needs curl"), "{in_ci:?}");
    assert!(elsewhere.status.success(), "{elsewhere:?}");
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("was SKIPPED"), "{elsewhere:?}");
    assert!(String::from_utf8_lossy(&elsewhere.stdout).contains("1 passed"), "{elsewhere:?}");
    Ok(())
}
