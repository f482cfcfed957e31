//! What a user sees of a job: while it runs, and what stays when it is over.
//!
//! - [`progress`] shows epoch, step, loss, speed and live nodes while the job runs.
//! - [`JobReport`] is the result in figures, a JSON file.
//! - [`plot`] draws loss and accuracy over the steps, a PNG file.
//! - [`comparison`] draws the accuracy of several jobs over time, a PNG file.
//! - [`digits`] shows images with their predictions in the terminal.

pub mod comparison;
pub mod digits;
pub mod plot;
pub mod progress;
mod raster;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A finished job in figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// Which job it was, such as `image_classification`.
    pub job: String,
    /// The accuracy was reached, and so was what the job was to show besides: a worker that was killed on
    /// purpose came back.
    pub ok: bool,
    /// The data set's name, such as `mnist`.
    pub dataset: String,
    /// The accuracy that was asked for: 0 to 1.
    pub target: f64,
    /// The share of the test samples that were classified rightly: 0 to 1.
    pub reached: f64,
    /// Number of epochs.
    pub epochs: u64,
    /// Time from the first step to the last, in seconds.
    pub seconds: f64,
    /// Training samples in all epochs divided by `seconds`.
    pub samples_per_second: f64,
    /// The operating system's process of each node, by the node's name.
    pub pids: BTreeMap<String, u32>,
    /// The process that was killed on purpose.
    pub killed_pid: Option<u32>,
    /// Milliseconds from the kill until the cluster knew of it.
    pub detected_ms: Option<u64>,
    /// Milliseconds from the kill until the lost worker was started again and a step was applied.
    pub recovered_ms: Option<u64>,
    /// UDP bytes that the nodes which are up at the end sent to one another: those of a killed
    /// process are not known.
    pub wire_bytes_sent: u64,
    /// UDP bytes that the nodes which are up at the end received from one another.
    pub wire_bytes_received: u64,
    /// Bytes of tensors that other processes of the host have read straight from the memory of these nodes.
    pub memory_bytes_sent: u64,
    /// Bytes of tensors that these nodes have read so.
    pub memory_bytes_received: u64,
    /// libtorch's version.
    pub libtorch: String,
    /// Where each worker computed (`cpu`, `cuda:0`, …), by the worker's name.
    pub devices: BTreeMap<String, String>,
}

/// Why a file of results could not be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// The system would not let it be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system would not let it be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason, or what is wrong with the content.
        source: io::Error,
    },
    /// The plot could not be drawn.
    #[error("cannot draw {}: {reason}", .path.display())]
    Draw {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

impl JobReport {
    /// Writes the report as JSON. Whoever reads the file sees the old content or the new one, never a part. Missing
    /// folders are made.
    ///
    /// # Errors
    /// [`ReportError::Write`] names the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), ReportError> {
        write_json(self, path)
    }

    /// Reads a report.
    ///
    /// # Errors
    /// [`ReportError::Read`] names the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ReportError> {
        let path = path.as_ref();
        let wrong = |source: io::Error| ReportError::Read { path: path.to_owned(), source };
        let text = fs::read(path).map_err(wrong)?;
        serde_json::from_slice(&text).map_err(|error| wrong(error.into()))
    }
}

/// Writes a report of one's own, as [`JobReport::write`] does.
///
/// # Errors
/// [`ReportError::Write`] names the file.
pub fn write_json(report: &impl Serialize, path: impl AsRef<Path>) -> Result<(), ReportError> {
    let path = path.as_ref();
    let wrong = |source: io::Error| ReportError::Write { path: path.to_owned(), source };
    let mut text = serde_json::to_vec_pretty(report).map_err(|error| wrong(error.into()))?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// Writes a file beside its place and then moves it there.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let wrong = |source| ReportError::Write { path: path.to_owned(), source };
    let name = path.file_name().ok_or_else(|| wrong(io::Error::other("it names no file")))?;
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(wrong)?;
    let draft = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&draft, path)).map_err(|source| {
        let _ = fs::remove_file(&draft); // it may not even be there
        wrong(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> JobReport {
        JobReport {
            job: "image_classification".into(),
            ok: true,
            dataset: "mnist".into(),
            target: 0.99,
            reached: 0.9912,
            epochs: 6,
            seconds: 41.5,
            samples_per_second: 8675.0,
            pids: BTreeMap::from([("seed".into(), 100), ("worker-0".into(), 101)]),
            killed_pid: Some(101),
            detected_ms: Some(740),
            recovered_ms: None,
            wire_bytes_sent: 1 << 40,
            wire_bytes_received: 1 << 40,
            memory_bytes_sent: 1 << 40,
            memory_bytes_received: 1 << 40,
            libtorch: "2.11.0".into(),
            devices: BTreeMap::from([("worker-0".into(), "cpu".into())]),
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_nothing_else_is_left_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo").join("report.json");
        report().write(&path).unwrap();
        report().write(&path).unwrap();
        assert_eq!(JobReport::read(&path).unwrap(), report());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("\"reached\": 0.9912") && text.contains("\"recovered_ms\": null"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_written_or_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "not a report").unwrap();
        let inside = file.join("report.json");
        let text = report().write(&inside).unwrap_err().to_string();
        assert!(text.starts_with(&format!("cannot write {}: ", inside.display())), "{text}");
        assert!(report().write(dir.path()).is_err());
        assert!(report().write("").is_err());
        let text = JobReport::read(&file).unwrap_err().to_string();
        assert!(text.starts_with(&format!("cannot read {}: expected", file.display())), "{text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
