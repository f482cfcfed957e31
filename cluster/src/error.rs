//! What can go wrong with a node in a cluster.

use std::{net::SocketAddr, time::Duration};

use crate::{spawn::Refusal, trust::TrustError};

/// A node could not be started, or could not do what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// Keys, certificates or the state directory.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The socket could not be had.
    #[error("{0}")]
    Socket(String),
    /// No seed answered in time.
    #[error(
        "no seed answered within {waited:?}: {seeds}. Start the seed first, or check address, port \
         and firewall"
    )]
    NoSeed {
        /// How long it was tried.
        waited: Duration,
        /// Each seed with the last error.
        seeds: String,
    },
    /// A token without anybody to show it to.
    #[error(
        "a join token is of use only with a seed: name a node of the cluster, for example --seed \
         HOST:7400"
    )]
    NoSeedToJoin,
    /// The process is ending.
    #[error("the process is ending")]
    Ended,
    /// A node of the cluster refused to let this one in.
    #[error("{by} did not let this node in: {why}")]
    NotLetIn {
        /// Who refused.
        by: SocketAddr,
        /// Why, and what to do.
        why: String,
    },
    /// The cluster takes this node's certificate no more.
    #[error("{0}")]
    ThrownOut(String),
    /// The node that was to be observed did not answer in time.
    #[error("no node answered within {waited:?}: {node}. Check that one runs there, and the port")]
    NoAnswer {
        /// How long it was tried.
        waited: Duration,
        /// The node with the last error.
        node: String,
    },
    /// An address that is none.
    #[error("`{given}` is no address: {why}. Give HOST:PORT, for example 127.0.0.1:7400")]
    Address {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// No node takes an actor.
    #[error("no node for {actor}: asked for {asked}; {there}")]
    NoNode {
        /// The actor type.
        actor: String,
        /// The placement, and what is to be reserved.
        asked: String,
        /// Each node, with what speaks against it.
        there: String,
    },
    /// No node that is up can host a type.
    #[error(
        "no node that is up hosts `{actor}`: add `.register::<…>()` to the builder of the nodes \
         that are to; hosted are {hosted}"
    )]
    NotHosted {
        /// The actor type.
        actor: String,
        /// The types that are hosted by some node.
        hosted: String,
    },
    /// A node refuses to start an actor, and no other is asked.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The ledger holds something else than a singleton under a singleton's key.
    #[error(
        "what the ledger keeps of a singleton can't be read ({why}): run the same release on all \
         nodes"
    )]
    Singleton {
        /// What is wrong with it.
        why: String,
    },
    /// The node's control thread could not be started.
    #[error("the control thread could not be started: {0}")]
    ControlThread(std::io::Error),
}

impl From<ClusterError> for footlight_runtime::Error {
    fn from(error: ClusterError) -> Self {
        footlight_runtime::Error::other(error)
    }
}
