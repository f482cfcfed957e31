//! A node's identity: the id that outlives a restart, and the incarnation that does not.

use std::{fs::File, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use footlight_runtime::id::{Incarnation, NodeId};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{StateDir, TrustError, files};

const ADVICE: &str = "delete it, and the node starts under a new id";

/// A node that was just killed, or a child on its way from fork to exec, holds the lock for moments.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Who this process is: a node's id and which life of that node this is.
///
/// Holds the identity's lock: as long as it lives, no other process can be the same node.
#[derive(Debug)]
pub struct NodeIdentity {
    /// The node, the same after a restart on the same fixed port.
    pub id: NodeId,
    /// This life of the node, greater than every earlier one.
    pub incarnation: Incarnation,
    kept: Option<Kept>,
}

/// Where an identity is kept, and the lock that makes it this process's.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    _lock: File,
}

/// Most nodes without a fixed port that keep their keys in one state directory.
const MAX_FREE_PORTS: usize = 256;

/// A node's directory, held by this process.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    lock: File,
}

impl Place {
    fn take(dir: PathBuf, listen: SocketAddr) -> Result<Self, TrustError> {
        files::make_private_dir(&dir)?;
        match files::lock(&dir.join("lock"), LOCK_PATIENCE)? {
            Some(lock) => Ok(Place { dir, lock }),
            None => Err(TrustError::IdentityInUse { listen, dir }),
        }
    }

    /// The place of a node that joins by a token, or did once.
    ///
    /// With port 0 several nodes of one directory may have the same address: each takes the first
    /// place that no other holds, and so finds again what one of them kept.
    pub(crate) fn for_joiner(state: &StateDir, listen: SocketAddr) -> Result<Self, TrustError> {
        let first = state.node_dir(&listen);
        if listen.port() != 0 {
            return Place::take(first, listen);
        }
        for number in 1..=MAX_FREE_PORTS {
            let mut dir = first.clone().into_os_string();
            if number > 1 {
                dir.push(format!("-{number}"));
            }
            let dir = PathBuf::from(dir);
            files::make_private_dir(&dir)?;
            if let Some(lock) = files::lock(&dir.join("lock"), Duration::ZERO)? {
                return Ok(Place { dir, lock });
            }
        }
        Err(TrustError::IdentityInUse { listen, dir: first })
    }

    pub(crate) fn kept(&self) -> super::Kept {
        super::Kept::in_dir(&self.dir)
    }

    /// Begins a new life of the node that was here before, or else of `fresh`. A node whose key
    /// names it is that node, whatever was here.
    fn begin(
        self,
        fresh: NodeId,
        named_by_key: bool,
        wall_clock_micros: u64,
    ) -> Result<NodeIdentity, TrustError> {
        let path = self.dir.join("identity.json");
        let damaged = |why| TrustError::Damaged { path: path.clone(), why, advice: ADVICE };
        let (id, last) = match files::read(&path)? {
            None => (fresh, 0),
            Some(text) => parse(&text).map_err(damaged)?,
        };
        let id = if named_by_key { fresh } else { id };
        let next = last
            .checked_add(1)
            .ok_or_else(|| damaged("there is no incarnation after the last one".to_owned()))?;
        let incarnation = next.max(wall_clock_micros);
        let kept = Some(Kept { path, _lock: self.lock });
        let mut identity = NodeIdentity { id, incarnation: Incarnation(last), kept };
        identity.raise(Incarnation(incarnation))?;
        Ok(identity)
    }
}

/// What `identity.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    id: String,
    incarnation: u64,
}

impl NodeIdentity {
    /// Takes the identity that belongs to a listen address, for a new life.
    ///
    /// With a fixed port the id is kept in the state directory under the address, and the
    /// incarnation is the last one + 1 or the wall clock, in microseconds since 1970, whichever is
    /// greater: so it grows although the clock is set back, and also although the file was lost. It
    /// is on the disk before this returns. With port 0 nobody can be meant by the address, so the
    /// id is drawn from `rng` and nothing is kept.
    ///
    /// # Errors
    /// [`TrustError::IdentityInUse`] if a running node has it, [`TrustError::Damaged`] if its file
    /// can't be understood, [`TrustError::Io`].
    pub fn claim(
        state: &StateDir,
        listen: SocketAddr,
        wall_clock_micros: u64,
        rng: &mut impl Rng,
    ) -> Result<Self, TrustError> {
        if listen.port() == 0 {
            return Ok(Self::passing(wall_clock_micros, rng));
        }
        let fresh = NodeId(rng.next_u64().max(1));
        Place::take(state.node_dir(&listen), listen)?.begin(fresh, false, wall_clock_micros)
    }

    /// Takes the identity of a node that joined by a token, for a new life: its key names it.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    pub(crate) fn of_joiner(
        place: Place,
        node: NodeId,
        wall_clock_micros: u64,
    ) -> Result<Self, TrustError> {
        place.begin(node, true, wall_clock_micros)
    }

    /// The identity of a program that only asks: it is nobody that others could mean.
    pub(crate) fn passing(wall_clock_micros: u64, rng: &mut impl Rng) -> Self {
        // 0 is left free: a record of nothing must not look like a node.
        let id = NodeId(rng.next_u64().max(1));
        Self { id, incarnation: Incarnation(wall_clock_micros), kept: None }
    }

    /// Takes a later incarnation, as a node does that comes back after it was declared down.
    ///
    /// It is on the disk before this returns. One that is not later changes nothing.
    ///
    /// # Errors
    /// [`TrustError::Io`]; then nothing has changed.
    pub fn raise(&mut self, incarnation: Incarnation) -> Result<(), TrustError> {
        if incarnation <= self.incarnation {
            return Ok(());
        }
        if let Some(Kept { path, .. }) = &self.kept {
            let record = Record { id: self.id.to_string(), incarnation: incarnation.0 };
            let json = serde_json::to_vec(&record)
                .map_err(|error| TrustError::io("write", path)(error.into()))?;
            files::replace(path, &json, 0o600)?;
        }
        self.incarnation = incarnation;
        Ok(())
    }
}

fn parse(text: &str) -> Result<(NodeId, u64), String> {
    let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match NodeId::from_str(&record.id) {
        Ok(id) if id != NodeId(0) => Ok((id, record.incarnation)),
        _ => Err(format!("{:?} is no node id", record.id)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rustls::time_provider::DefaultTimeProvider;

    use super::*;

    const LISTEN: &str = "127.0.0.1:7400";

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(dir.path()), None, &DefaultTimeProvider).unwrap();
        (dir, state)
    }

    fn claim(state: &StateDir, listen: &str, now: u64, seed: u64) -> Result<(NodeId, u64), String> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        NodeIdentity::claim(state, listen.parse().unwrap(), now, &mut rng)
            .map(|identity| (identity.id, identity.incarnation.0))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_restart_keeps_the_id_and_raises_the_incarnation_whatever_the_clock_does() {
        let (_dir, state) = state();
        let (id, first) = claim(&state, LISTEN, 1_000, 1).unwrap();
        assert_eq!(first, 1_000);
        assert_eq!(claim(&state, LISTEN, 5_000, 2).unwrap(), (id, 5_000));
        assert_eq!(claim(&state, LISTEN, 3_000, 3).unwrap(), (id, 5_001));
        assert_eq!(claim(&state, LISTEN, 5_001, 4).unwrap(), (id, 5_002));
    }

    #[test]
    fn an_incarnation_that_was_raised_while_running_is_never_used_again() {
        let (_dir, state) = state();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let listen = LISTEN.parse().unwrap();
        let mut identity = NodeIdentity::claim(&state, listen, 10, &mut rng).unwrap();
        identity.raise(Incarnation(12)).unwrap();
        identity.raise(Incarnation(11)).unwrap();
        assert_eq!(identity.incarnation, Incarnation(12));
        let id = identity.id;
        drop(identity);
        assert_eq!(claim(&state, LISTEN, 10, 2).unwrap(), (id, 13));
    }

    #[test]
    fn other_addresses_and_free_ports_are_other_nodes() {
        let (_dir, state) = state();
        let (id, _) = claim(&state, LISTEN, 1_000, 1).unwrap();
        assert_ne!(claim(&state, "127.0.0.1:7401", 1_000, 2).unwrap().0, id);
        assert_ne!(claim(&state, "[::1]:7400", 1_000, 3).unwrap().0, id);
        let (free, incarnation) = claim(&state, "127.0.0.1:0", 7, 4).unwrap();
        assert_eq!(incarnation, 7);
        assert_ne!(claim(&state, "127.0.0.1:0", 7, 5).unwrap().0, free);
    }

    #[test]
    fn two_running_nodes_never_share_an_identity() {
        let (_dir, state) = state();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let first = NodeIdentity::claim(&state, LISTEN.parse().unwrap(), 1, &mut rng).unwrap();
        let refused = claim(&state, LISTEN, 2, 2).unwrap_err();
        assert!(refused.contains("another running node"), "{refused}");
        let id = first.id;
        drop(first);
        assert_eq!(claim(&state, LISTEN, 2, 3).unwrap().0, id);
    }

    #[test]
    fn a_joiner_finds_its_key_again_and_two_of_them_never_share_one() {
        let (_dir, state) = state();
        for listen in ["127.0.0.1:0", LISTEN] {
            let listen = listen.parse().unwrap();
            let place = Place::for_joiner(&state, listen).unwrap();
            let node = place.kept().key_or_new().unwrap().node();
            let first = NodeIdentity::of_joiner(place, node, 1_000).unwrap();
            assert_eq!((first.id, first.incarnation), (node, Incarnation(1_000)));
            // A second process while the first one runs: another node, or none.
            match Place::for_joiner(&state, listen) {
                Ok(other) => assert_ne!(other.kept().key_or_new().unwrap().node(), node),
                Err(error) => assert!(matches!(error, TrustError::IdentityInUse { .. })),
            }
            drop(first);
            let place = Place::for_joiner(&state, listen).unwrap();
            assert_eq!(place.kept().key_or_new().unwrap().node(), node);
            let again = NodeIdentity::of_joiner(place, node, 1_000).unwrap();
            assert_eq!((again.id, again.incarnation), (node, Incarnation(1_001)));
        }
    }

    #[test]
    fn a_damaged_identity_is_named_with_what_to_do() {
        let (_dir, state) = state();
        claim(&state, LISTEN, 1, 1).unwrap();
        let path = state.node_dir(&LISTEN.parse().unwrap()).join("identity.json");
        let zero = r#"{"id":"0000000000000000","incarnation":1}"#;
        let last = r#"{"id":"0000000000000001","incarnation":18446744073709551615}"#;
        for text in ["", "{", "\u{0}\u{1}", r#"{"id":"zz","incarnation":1}"#, zero, last] {
            fs::write(&path, text).unwrap();
            let error = claim(&state, LISTEN, 1, 1).unwrap_err();
            assert!(error.contains("identity.json is damaged"), "{error}");
            assert!(error.contains("delete it"), "{error}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(claim(&state, LISTEN, 1, 1).unwrap_err().contains("identity.json"));
    }
}
