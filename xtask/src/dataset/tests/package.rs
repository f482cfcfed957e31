//! From the packages that carry the sets.

use super::super::known;
use super::*;
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

/// A tar archive, compressed.
fn archive(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_slice())?;
    }
    packed(&tar.into_inner()?)
}

/// A package of Debian: an `ar` archive with these three members.
fn debian_package(data: &[u8]) -> Result<Vec<u8>> {
    let control = archive(&[("./control".to_owned(), b"Package: test\n".to_vec())])?;
    let members: [(&str, &[u8]); 3] =
        [("debian-binary", b"2.0\n"), ("control.tar.gz", &control), ("data.tar.gz", data)];
    let mut package = b"!<arch>\n".to_vec();
    for (name, content) in members {
        let (length, fill) = (content.len(), content.len() % 2);
        writeln!(package, "{name:<16}{:<12}{:<6}{:<6}{:<8}{length:<10}`", 0, 0, 0, 100_644)?;
        package.extend_from_slice(content);
        package.resize(package.len() + fill, b'\n');
    }
    Ok(package)
}

/// The content of an IDX file of so many pictures.
fn idx(pictures: u32) -> Vec<u8> {
    let header = [0x0803, pictures, 28, 28].map(u32::to_be_bytes).concat();
    header.into_iter().chain((0..pictures * 28 * 28).map(|pixel| pixel as u8)).collect()
}

#[test]
fn fashion_mnist_comes_out_of_debians_package_uncompressed() -> Result<()> {
    if lacks("dpkg") {
        return Ok(());
    }
    let Package::Debian { name, folder, .. } = known::FASHION_MNIST.package else {
        anyhow::bail!("it has another package now");
    };
    // Its names and its place in the package; contents of our own, small ones.
    let contents = [3, 1, 2, 4].map(idx);
    let mut numbers = contents.iter();
    let files = known::FASHION_MNIST.files.iter().map(|file| {
        let content = numbers.next().map(Vec::as_slice).unwrap_or_default();
        let sum: String =
            Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = Expected { size: content.len() as u64, sha256: sum.leak() };
        DataFile { name: file.name, expected, compressed: file.compressed }
    });
    let files: Vec<_> = files.collect();
    let mut inside = Vec::new();
    for (file, content) in files.iter().zip(&contents) {
        inside.push((format!("./{folder}/{}.gz", file.name), packed(content)?));
    }
    let (cache, programs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let package = debian_package(&archive(&inside)?)?;
    fs::write(programs.path().join(format!("{name}.deb")), package)?;
    stand_in(programs.path(), "apt-get", "for last; do :; done\ncp \"${0%/*}/$last.deb\" .");
    if let Some(dpkg) = Programs::here().find("dpkg") {
        std::os::unix::fs::symlink(dpkg, programs.path().join("dpkg"))?;
    }
    let package = Package::Debian { name, size: 1, folder };
    let (files, address) = (files.leak(), Some("file:///nowhere"));
    let set = DataSet { name: "fashion-mnist", files, package, address };

    let folder = ready(&set, cache.path(), &Programs::below(programs.path()))?;
    for (file, content) in set.files.iter().zip(&contents) {
        assert!(fs::read(folder.join(file.name))? == *content, "{}", file.name);
    }
    Ok(())
}

/// An npm that gives the archive beside it, if it is there.
const NPM: &str = r#"
here="${0%/*}"
echo "$2" >> "$here/asked"
cp "$here/test-1.0.0.tgz" . 2>/dev/null || { echo "npm error code ECONNRESET" >&2; exit 1; }
"#;

fn of_npm(archive: &[u8]) -> DataSet {
    let size = archive.len() as u64;
    let package = Package::Npm { spec: "test@1.0.0", size, folder: "package/data" };
    let files = vec![abc("a"), abc("b"), abc("c"), abc("d")].leak();
    DataSet { name: "test", files, package, address: Some("file:///nowhere") }
}

fn npm_archive(contents: [&str; 4]) -> Result<Vec<u8>> {
    let names = ["a", "b", "c", "d"].into_iter();
    let files: Vec<_> = names
        .zip(contents)
        .map(|(name, content)| (format!("package/data/{name}"), content.as_bytes().to_vec()))
        .collect();
    archive(&files)
}

#[test]
fn an_archive_that_an_earlier_run_had_is_not_fetched_again() -> Result<()> {
    let (cache, programs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let whole = npm_archive(["abc"; 4])?;
    let set = of_npm(&whole);
    stand_in(programs.path(), "npm", NPM);
    let programs_there = Programs::below(programs.path());
    let package = cache.path().join("data/test/partial/package");
    fs::create_dir_all(package.join("npm"))?;
    fs::write(package.join("npm/kept"), "")?;

    // A part of it does not do.
    fs::write(package.join("test-1.0.0.tgz"), &whole[1..])?;
    let error = ready(&set, cache.path(), &programs_there).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot get test: `npm pack test@1.0.0` failed: npm error"),
        "{error}"
    );
    assert_eq!(asked(programs.path()), ["test@1.0.0"]);
    assert!(package.join("npm/kept").exists(), "npm's cache stays for the next run");

    fs::write(package.join("test-1.0.0.tgz"), &whole)?;
    let folder = ready(&set, cache.path(), &programs_there)?;
    assert_eq!(asked(programs.path()).len(), 1);
    assert!(missing(&set, &folder).is_empty() && !folder.join("partial").exists());
    Ok(())
}

#[test]
fn a_wrong_archive_is_not_taken_for_a_right_one_in_the_next_run() -> Result<()> {
    let (cache, programs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (right, wrong) = (npm_archive(["abc"; 4])?, npm_archive(["abc", "abc", "abd", "abc"])?);
    let set = of_npm(&wrong);
    stand_in(programs.path(), "npm", NPM);
    fs::write(programs.path().join("test-1.0.0.tgz"), wrong)?;
    let programs_there = Programs::below(programs.path());
    let error = ready(&set, cache.path(), &programs_there).unwrap_err().to_string();
    assert!(error.contains("wrong checksum: SHA-256 of c is "), "{error}");

    fs::write(programs.path().join("test-1.0.0.tgz"), right)?;
    let folder = ready(&set, cache.path(), &programs_there)?;
    assert!(missing(&set, &folder).is_empty());
    assert_eq!(asked(programs.path()).len(), 2);
    Ok(())
}

/// A pip that gives the archive beside it.
const PYTHON: &str = r#"
here="${0%/*}"
while [ $# -gt 0 ]; do
    case "$1" in
        --requirement) cat "$2" >> "$here/asked" ;;
        --dest) cp "$here/test-1.tar.gz" "$2" ;;
    esac
    shift
done
"#;

#[test]
fn texts_of_a_python_package_are_put_one_after_another_by_their_names() -> Result<()> {
    let (cache, programs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let inside = [("in/b.txt", "bc"), ("in/a.txt", "a"), ("in/a.md", "no"), ("out/c.txt", "no")];
    let inside = inside.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
    let archive = archive(&inside)?;
    let size = archive.len() as u64;
    fs::write(programs.path().join("test-1.tar.gz"), archive)?;
    stand_in(programs.path(), "python3", PYTHON);
    let (requirement, sha256) = ("test==1", "00");
    let package = Package::Python { requirement, sha256, size, folder: "in", ending: ".txt" };
    let files = vec![abc("all.txt")].leak();
    let set = DataSet { name: "test", files, package, address: None };
    let folder = ready(&set, cache.path(), &Programs::below(programs.path()))?;
    assert_eq!(fs::read_to_string(folder.join("all.txt"))?, "abc");
    assert_eq!(asked(programs.path()), ["test==1 --hash=sha256:00"]);

    let package = Package::Python { requirement, sha256, size, folder: "out", ending: ".txt" };
    let set = DataSet { name: "other", files, package, address: None };
    let error = ready(&set, cache.path(), &Programs::below(programs.path())).unwrap_err();
    let error = format!("{error:#}");
    let expected = "cannot get other; run it again: all.txt has 2 bytes where 3 were expected";
    assert_eq!(error, expected);
    Ok(())
}
