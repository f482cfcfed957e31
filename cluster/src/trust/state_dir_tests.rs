//! The state directory: who makes it, who may read it, where it is.

use std::{
    process::{Command, Stdio},
    sync::Barrier,
    thread,
};

use super::*;
use crate::trust::Role;

fn open(dir: &Path) -> Result<StateDir, TrustError> {
    StateDir::open(Some(dir), None, &DefaultTimeProvider)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn eight_threads_that_start_at_once_find_one_authority() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let barrier = Barrier::new(8);
    let opened: Vec<StateDir> = thread::scope(|scope| {
        let start = || {
            barrier.wait();
            open(&state).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let minted = opened.iter().filter(|state| !state.existed_before()).count();
    assert_eq!(minted, 1);
    let first = opened[0].anchor().unwrap().pem();
    assert!(opened.iter().all(|state| state.anchor().unwrap().pem() == first));
}

#[test]
fn four_processes_that_start_at_once_find_one_authority() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "--ignored", "--nocapture"])
                .arg(format!("{}::child_opens_the_state_directory", test_path()))
                .env("FOOTLIGHT_TEST_STATE", dir.path().join("state"))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let said: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            let said = String::from_utf8(output.stdout).unwrap();
            let line = said.lines().find_map(|line| line.split_once("authority: "));
            line.unwrap().1.to_owned()
        })
        .collect();
    assert_eq!(said.iter().filter(|said| said.starts_with("minted ")).count(), 1);
    let fingerprint = |said: &str| said.split(' ').nth(1).unwrap().to_owned();
    assert!(said.iter().all(|other| fingerprint(other) == fingerprint(&said[0])));
}

/// This module's path as the test harness names it.
fn test_path() -> &'static str {
    let path = module_path!();
    path.split_once("::").map_or(path, |(_, path)| path)
}

#[test]
#[ignore = "run by the test above in processes of its own"]
fn child_opens_the_state_directory() {
    let Some(path) = env::var_os("FOOTLIGHT_TEST_STATE") else {
        return;
    };
    let state = open(Path::new(&path)).unwrap();
    let how = if state.existed_before() { "found" } else { "minted" };
    let pem = state.anchor().unwrap().pem();
    println!("authority: {how} {}", pem.lines().collect::<String>().replace(' ', ""));
}

#[test]
fn the_directory_and_the_key_are_for_their_user_only() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir.path().join("a/b")).unwrap();
    assert_eq!(mode(state.path()), 0o700);
    assert_eq!(mode(&state.path().join(CA_KEY)), 0o600);
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    let key = open(dir.path()).unwrap().path().join(CA_KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, TrustError::Exposed { mode: 0o640, .. }), "{error}");
    assert!(error.to_string().contains("chmod go= "), "{error}");
}

#[test]
fn a_directory_that_anybody_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(open(dir.path()), Err(TrustError::Exposed { access: "write to", .. })));
}

#[test]
fn damaged_or_half_authorities_are_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path()).unwrap();
    let cert = state.path().join(CA_CERT);
    fs::write(&cert, "no certificate").unwrap();
    assert!(matches!(open(dir.path()), Err(TrustError::Damaged { .. })));
    fs::remove_file(&cert).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, TrustError::HalfAuthority { .. }), "{error}");
    assert!(state.path().join(CA_KEY).exists());
}

#[test]
fn a_key_of_another_authority_is_found_out() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(a.path()).unwrap();
    open(b.path()).unwrap();
    fs::copy(a.path().join(CA_CERT), b.path().join(CA_CERT)).unwrap();
    assert!(matches!(open(b.path()), Err(TrustError::Damaged { .. })));
}

#[test]
fn only_a_named_directory_with_an_authority_may_face_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().as_os_str().to_owned();
    let loopback = ["127.0.0.1:7400", "[::1]:7400", "[::ffff:127.0.0.1]:0"];
    let outside = ["0.0.0.0:7400", "192.0.2.1:7400", "[::]:0"];
    let allowed = |state: &StateDir, addrs: [&str; 3]| {
        addrs.map(|addr| state.allows_bind(&addr.parse().unwrap()).is_ok())
    };

    let fresh = open(&dir.path().join("named")).unwrap();
    assert_eq!(allowed(&fresh, loopback), [true; 3]);
    assert_eq!(allowed(&fresh, outside), [false; 3]);
    let again = open(&dir.path().join("named")).unwrap();
    assert_eq!(allowed(&again, outside), [true; 3]);

    let env = |name: &str| (name == "HOME").then(|| home.clone());
    for _ in 0..2 {
        let default = StateDir::open_in(None, None, env, &DefaultTimeProvider).unwrap();
        assert_eq!(allowed(&default, loopback), [true; 3]);
        assert_eq!(allowed(&default, outside), [false; 3]);
    }
}

#[test]
fn a_token_makes_no_authority_and_is_not_taken_for_another_cluster_s() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let ours = open(&ours).unwrap();
    let token = Token::new(Role::Worker, ours.anchor().unwrap().hash()).unwrap();
    let open = |path: &Path, token| StateDir::open(Some(path), token, &DefaultTimeProvider);

    let joiner = dir.path().join("joiner");
    let mut fresh = open(&joiner, Some(&token)).unwrap();
    assert!(fresh.anchor().is_none() && fresh.authority().is_none());
    assert!(!joiner.join(CA_KEY).exists() && !joiner.join(CA_CERT).exists());
    // It may face the network: it will show what the cluster has given it, or nothing.
    fresh.allows_bind(&"192.0.2.1:7400".parse().unwrap()).unwrap();
    fresh.settle(ours.anchor().unwrap().clone()).unwrap();
    assert_eq!(open(&joiner, None).unwrap().anchor(), ours.anchor());

    open(&theirs, None).unwrap();
    let error = open(&theirs, Some(&token)).unwrap_err();
    assert!(matches!(error, TrustError::OtherCluster { .. }), "{error}");
    let mut other = open(&theirs, None).unwrap();
    assert!(other.settle(ours.anchor().unwrap().clone()).is_err());
}

#[test]
fn a_program_that_asks_shows_the_strongest_certificate_that_is_there_and_valid() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path()).unwrap();
    let now = DefaultTimeProvider.current_time().unwrap();
    assert!(state.strongest(now).unwrap().is_none());
    for (port, role, life) in [(1, Role::Worker, 60), (2, Role::Admin, 60), (3, Role::Admin, 30)] {
        let node = state.node_dir(&SocketAddr::from(([127, 0, 0, 1], port)));
        files::make_private_dir(&node).unwrap();
        let kept = Kept::in_dir(node);
        let request = kept.key_or_new().unwrap().request().unwrap();
        let request = crate::trust::node_key::SigningRequest::read(&request).unwrap();
        let life = Duration::from_secs(life);
        let authority = state.authority().unwrap();
        kept.keep(&authority.sign(&request, role, life, now).unwrap()).unwrap();
    }
    let (found, own) = state.strongest(now).unwrap().unwrap();
    // It is a node's, which sees to its renewal by itself.
    assert!(own.is_none());
    let found = found.identity();
    assert_eq!((found.role, found.expires), (Role::Admin, now.as_secs() as i64 + 60));
    let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + 61));
    assert!(state.strongest(later).unwrap().is_none());
}

#[test]
fn the_directory_is_looked_for_in_the_documented_order() {
    let env = |pairs: &'static [(&str, &str)]| {
        move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())
    };
    let all: &[_] = &[("FOOTLIGHT_STATE", "/f"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")];
    let at = |path: &str, named| (PathBuf::from(path), named);
    assert_eq!(locate(Some(Path::new("e")), env(all)).unwrap(), at("e", true));
    assert_eq!(locate(None, env(all)).unwrap(), at("/f", true));
    assert_eq!(locate(None, env(&all[1..])).unwrap(), at("/x/footlight", false));
    let relative: &[_] = &[("XDG_STATE_HOME", "x"), ("HOME", "/h")];
    assert_eq!(locate(None, env(relative)).unwrap(), at("/h/.local/state/footlight", false));
    assert!(matches!(locate(None, env(&[])), Err(TrustError::NoStateDir)));
}
