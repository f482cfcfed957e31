//! Programs that a test makes itself, to stand in for those of the machine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes a shell script in a folder, and returns its path.
pub(crate) fn stand_in(folder: &Path, name: &str, script: &str) -> PathBuf {
    let path = folder.join(name);
    // Written by a process of its own: while this one has a file open for writing, a program that another thread is
    // about to start may have it too, and what is open for writing can't be run ("text file busy").
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("there is a shell");
    let mut pipe = writer.stdin.take().expect("its input is a pipe");
    pipe.write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).expect("it reads");
    drop(pipe);
    assert!(writer.wait().expect("it ends").success(), "{} was not written", path.display());
    path
}
