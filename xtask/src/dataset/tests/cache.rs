//! What lies in the cache is checked when it is used.

use super::*;

#[test]
fn a_damaged_file_of_the_right_size_is_fetched_again_and_no_other() -> Result<()> {
    let (public, cache, programs) =
        (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    stand_in(programs.path(), "curl", CURL);
    let programs_there = Programs::below(programs.path());
    let folder = ready(&set, cache.path(), &programs_there)?;
    assert_eq!(asked(programs.path()).len(), 4);
    ready(&set, cache.path(), &programs_there)?;
    assert_eq!(asked(programs.path()).len(), 4, "all is there");

    fs::write(folder.join("b"), "abd")?;
    ready(&set, cache.path(), &programs_there)?;
    assert_eq!(asked(programs.path())[4..], ["b.gz"]);
    assert_eq!(fs::read_to_string(folder.join("b"))?, "abc");
    Ok(())
}

#[test]
fn a_damaged_file_that_cannot_be_fetched_again_is_not_used() -> Result<()> {
    let (public, cache, programs) =
        (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    let curl = stand_in(programs.path(), "curl", CURL);
    let programs_there = Programs::below(programs.path());
    let folder = ready(&set, cache.path(), &programs_there)?;
    fs::write(folder.join("d"), "abd")?;
    fs::remove_file(curl)?;
    let error = ready(&set, cache.path(), &programs_there).unwrap_err().to_string();
    assert!(error.starts_with("cannot get test: ") && error.contains("curl is missing"), "{error}");
    Ok(())
}
