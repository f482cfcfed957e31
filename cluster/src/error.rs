//! What can go wrong with a node in a cluster.

use std::time::Duration;

use crate::trust::TrustError;

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
    /// No node fits a placement.
    #[error("no node for {actor}: asked for {asked}, there are {there}")]
    NoNode {
        /// The actor type.
        actor: String,
        /// The placement.
        asked: String,
        /// The members, with what counts.
        there: String,
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
