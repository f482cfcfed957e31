use std::{env, fs, os::unix::fs::PermissionsExt, time::Duration};

use bytes::Bytes;
use footlight_runtime::NodeId;
use openraft::{
    EntryPayload, RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
    testing::{StoreBuilder, Suite, log_id},
};
use tempfile::TempDir;

use super::*;
use crate::{
    ledger::{
        command::{Command, Entry, Expect},
        machine::Machine,
        state::State,
    },
    processes::{ProcessSpec, Processes, exit_with_parent},
};

impl From<u64> for VoterId {
    fn from(number: u64) -> Self {
        VoterId { node: NodeId(number), birth: number }
    }
}

fn deed() -> Deed {
    Deed { ledger: LedgerId(7), founded: 100, me: VoterId::from(1), founder: true }
}

fn value(index: u64) -> Bytes {
    Bytes::from(vec![index as u8; 100 + (index as usize * 37) % 5_000])
}

fn entry(index: u64) -> LogEntry {
    let command = Command::Put {
        key: format!("key/{index}"),
        value: value(index),
        expect: Expect::Any,
        owner: None,
    };
    let mut entry = LogEntry::new_blank(log_id(1, VoterId::from(1), index));
    entry.payload = EntryPayload::Normal(Entry { id: None, command });
    entry
}

fn made(dir: &Path) -> (Store, Closed) {
    Store::create(Some(dir), deed()).unwrap()
}

fn open(dir: &Path) -> Store {
    Store::open(dir).unwrap().unwrap().0
}

async fn close((store, closed): (Store, Closed)) {
    drop(store);
    closed.await.unwrap();
}

/// On a disk or in memory: openraft's own tests of a store.
struct Stores {
    on_disk: bool,
}

impl StoreBuilder<Types, Store, Machine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, Store, Machine), super::super::types::StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let place = self.on_disk.then_some(path.as_path());
        let (store, _) = Store::create(place, deed()).unwrap();
        let (machine, _) = Machine::load(store.clone(), State::new(0)).await.unwrap();
        Ok((dir, store, machine))
    }
}

#[test]
fn the_store_is_what_openraft_expects_of_one() {
    Suite::test_all(Stores { on_disk: false }).unwrap();
    Suite::test_all(Stores { on_disk: true }).unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ledger");
    assert!(Store::open(&dir).unwrap().is_none());
    let (mut store, closed) = made(&dir);
    let vote = Vote::new(3, deed().me);
    RaftLogStorage::save_vote(&mut store, &vote).await.unwrap();
    store.blocking_append((0..200).map(entry)).await.unwrap();
    RaftLogStorage::truncate(&mut store, log_id(1, VoterId::from(1), 150)).await.unwrap();
    RaftLogStorage::purge(&mut store, log_id(1, VoterId::from(1), 99)).await.unwrap();
    let (mut machine, _) = Machine::load(store.clone(), State::new(0)).await.unwrap();
    machine.apply((0..100).map(entry)).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    drop(machine);
    close((store, closed)).await;

    let mut store = open(&dir);
    assert_eq!(store.deed(), deed());
    assert_eq!(store.vote().await.unwrap(), Some(vote));
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(1, VoterId::from(1), 99)));
    assert_eq!(state.last_log_id, Some(log_id(1, VoterId::from(1), 149)));
    let entries = store.entries(0..200, usize::MAX).await.unwrap();
    assert_eq!(entries, (100..150).map(entry).collect::<Vec<_>>());
    let (mut machine, view) = Machine::load(store, State::new(0)).await.unwrap();
    let (applied, _) = machine.applied_state().await.unwrap();
    assert_eq!(applied, Some(log_id(1, VoterId::from(1), 99)));
    assert_eq!(view.read(|state| state.get("key/99").unwrap().value.clone()), value(99));
}

#[tokio::test]
async fn le7_an_answer_to_a_reader_is_bounded_and_never_empty() {
    let (mut store, _) = Store::create(None, deed()).unwrap();
    store.blocking_append((0..100).map(entry)).await.unwrap();
    let some = store.entries(0..100, 20_000).await.unwrap();
    assert!(!some.is_empty() && some.len() < 100, "{}", some.len());
    assert_eq!(store.entries(7..100, 1).await.unwrap(), [entry(7)]);
}

const DIR: &str = "FOOTLIGHT_TEST_STORE";

/// The child's test, as the harness names it.
fn child_test() -> String {
    let path = module_path!();
    format!("{}::plays_the_writer", path.split_once("::").map_or(path, |(_, path)| path))
}

#[tokio::test]
#[ignore = "run by another test in a process of its own"]
async fn plays_the_writer() {
    let Ok(dir) = env::var(DIR) else { return };
    assert!(exit_with_parent().unwrap());
    let dir = PathBuf::from(dir);
    let mut store = match Store::open(&dir).unwrap() {
        Some((store, _)) => store,
        None => made(&dir).0,
    };
    let next = store.get_log_state().await.unwrap().last_log_id.map_or(0, |last| last.index + 1);
    println!();
    for index in next.. {
        store.blocking_append([entry(index)]).await.unwrap();
        // Only now it is promised.
        println!("written {index}");
    }
}

#[tokio::test]
async fn le3_a_writer_that_is_killed_has_all_on_disk_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let processes = Processes::new();
    let mut promised = 0;
    for round in 0..5 {
        let spec = ProcessSpec::this_binary("writer")
            .args(["--exact", "--ignored", "--nocapture"])
            .args([child_test()])
            .env(DIR, &path)
            .forward_output();
        let writer = processes.start(spec).await.unwrap();
        let wanted = promised + 40 + round * 7;
        let line = format!("written {wanted}");
        writer.wait_line(&line, Duration::from_secs(30)).await.unwrap();
        writer.kill();
        writer.wait(Duration::from_secs(30)).await.unwrap();
        let (mut store, closed) = Store::open(&path).unwrap().unwrap();
        let last = store.get_log_state().await.unwrap().last_log_id.unwrap().index;
        assert!(last >= wanted, "{wanted} was promised, {last} is the last one there");
        let entries = store.entries(0..=last, usize::MAX).await.unwrap();
        assert_eq!(entries, (0..=last).map(entry).collect::<Vec<_>>());
        promised = last;
        close((store, closed)).await;
    }
}

#[tokio::test]
async fn whatever_is_changed_in_the_file_is_found_or_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ledger");
    let (mut store, closed) = made(&dir);
    store.blocking_append((0..50).map(entry)).await.unwrap();
    close((store, closed)).await;
    let file = dir.join(FILE);
    let whole = fs::read(&file).unwrap();
    let mut refused = 0;
    for round in 0..60usize {
        let mut damaged = whole.clone();
        let at = (round * 7_919) % damaged.len();
        match round % 3 {
            0 => damaged.truncate(at),
            1 => damaged[at] ^= 0xff,
            _ => {
                let end = (at + 4096).min(damaged.len());
                damaged[at..end].fill(0x5a);
            }
        }
        fs::write(&file, damaged).unwrap();
        match Store::open(&dir) {
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("voter.redb"), "{error}");
            }
            Ok(None) => refused += 1,
            Ok(Some((store, closed))) => {
                let entries = store.entries(0..50, usize::MAX).await;
                if let Ok(entries) = entries {
                    assert_eq!(entries, (0..50).map(entry).collect::<Vec<_>>(), "round {round}");
                }
                close((store, closed)).await;
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

#[tokio::test]
async fn a_store_that_others_may_read_or_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ledger");
    close(made(&dir)).await;
    let mode = fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
    let error = Store::open(&dir).unwrap_err().to_string();
    assert!(error.contains("mode 750") && error.contains("chmod go= "), "{error}");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    {
        let database = builder().open(dir.join(FILE)).unwrap();
        write(&database, |transaction| {
            let mut meta = transaction.open_table(META).map_err(failed)?;
            meta.insert("format", encode(&99u32)?.as_slice()).map_err(failed)?;
            Ok(())
        })
        .unwrap();
    }
    let error = Store::open(&dir).unwrap_err().to_string();
    assert!(error.contains("has format 99, this program knows 1"), "{error}");
}
