//! What the ledger keeps of a singleton.

use footlight_runtime::{ActorAddr, message::Fingerprint};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ClusterError, Needs, Placement};

/// Keys of what is to run.
pub(super) const KEYS: &str = "singleton/";
/// Keys of where it runs.
const AT_KEYS: &str = "singleton-at/";

pub(super) fn key(name: &str) -> String {
    format!("{KEYS}{name}")
}

pub(super) fn at_key(name: &str) -> String {
    format!("{AT_KEYS}{name}")
}

/// The lease of the one who runs it; its generation is the actor's fence.
pub(super) fn lease(name: &str) -> String {
    key(name)
}

/// What happens when a singleton ends by itself. When its node is lost, it is started elsewhere in
/// any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SingletonPolicy {
    /// It is started again, with a back-off from 100 ms that doubles to 10 s; after five starts in a
    /// row that failed, on another node if there is one.
    #[default]
    Always,
    /// It is over: it stopped, failed or panicked, or could not be started.
    UntilItEnds,
}

/// A singleton as [`Node::singletons`](crate::Node::singletons) tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SingletonInfo {
    /// Its name.
    pub name: String,
    /// The actor's type.
    pub actor: String,
    /// How it is.
    pub state: SingletonState,
}

/// How a singleton is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SingletonState {
    /// It runs, or its node was lost a moment ago.
    Running {
        /// Where.
        actor: ActorAddr,
        /// The generation of its lease.
        generation: u64,
    },
    /// It is wanted, and runs nowhere now.
    Waiting,
    /// It could not be started, and is no longer wanted.
    Failed(String),
    /// There is none of this name.
    Unknown,
}

/// What is to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) actor: String,
    pub(super) args_shape: Fingerprint,
    /// The arguments as the codec writes them.
    pub(super) args: Vec<u8>,
    pub(super) placement: Placement,
    /// What is reserved for it where it runs.
    pub(super) needs: Needs,
    pub(super) policy: SingletonPolicy,
    /// Tells two of one name apart that come after each other.
    pub(super) submission: u64,
}

impl Spec {
    /// Whether both ask for the same thing.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        Spec { submission: other.submission, ..self.clone() } == *other
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ClusterError> {
        decode(bytes)
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum At {
    Running {
        actor: ActorAddr,
        generation: u64,
    },
    /// It could not be started, and is not tried again.
    Failed {
        submission: u64,
        why: String,
    },
}

impl At {
    pub(super) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ClusterError> {
        decode(bytes)
    }
}

/// What the ledger takes at most.
const LIMIT: usize = 1 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain data: only a length over the limit could fail, and the ledger refuses that with its
    // own words.
    bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClusterError> {
    let unreadable = |why: String| ClusterError::Singleton { why };
    match bincode::serde::decode_from_slice(bytes, config()) {
        Ok((value, read)) if read == bytes.len() => Ok(value),
        Ok(_) => Err(unreadable("bytes are left over".to_owned())),
        Err(error) => Err(unreadable(error.to_string())),
    }
}
