//! From one voter to another: messages to the ledger actor of the other one's node. openraft's network,
//! and what is asked before an election.

use std::{error::Error, fmt, sync::Weak, time::Duration};

use footlight_runtime::{Message, actor::Receives, codec::Opaque};
use openraft::{
    RaftNetwork, RaftNetworkFactory,
    error::{InstallSnapshotError, NetworkError, RPCError, RaftError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use super::{
    actor::LedgerActor,
    leases::LeaseTime,
    message::{Append, AskVote, NoVoter, Piece},
    types::{Keeps, Types, VoterId},
};
use crate::network::Network;

/// How long openraft leaves a voter alone that could not be reached: longer each time, up to
/// a second.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(500)];
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// The way from one voter to the others.
#[derive(Clone, Debug)]
pub(super) struct Wires {
    pub(super) network: Weak<Network>,
    /// How long a lease lasts.
    pub(super) lease: LeaseTime,
    /// Told of voters that are none any more: their nodes say that they don't know them.
    pub(super) unknown: mpsc::UnboundedSender<VoterId>,
}

impl Wires {
    pub(super) fn to(&self, target: VoterId) -> Wire {
        Wire { wires: self.clone(), target }
    }
}

impl RaftNetworkFactory<Types> for Wires {
    type Network = Wire;

    async fn new_client(&mut self, target: VoterId, _: &Keeps) -> Wire {
        self.to(target)
    }
}

/// The way from one voter to another.
#[derive(Debug)]
pub(super) struct Wire {
    wires: Wires,
    target: VoterId,
}

/// Why a voter could not be asked.
#[derive(Debug)]
pub(super) struct Failed {
    why: String,
    /// Nobody is there: asking again at once is no use.
    away: bool,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl Error for Failed {}

impl Wire {
    pub(super) async fn ask<M, How, Q, A>(
        &self,
        question: &Q,
        message: impl FnOnce(VoterId, LeaseTime, Opaque) -> M,
        patience: Duration,
    ) -> Result<A, Failed>
    where
        M: Message<Reply = Result<Opaque, NoVoter>>,
        LedgerActor: Receives<M, How>,
        How: 'static,
        Q: Serialize,
        A: DeserializeOwned,
    {
        let failed = |why: String, away| Failed { why, away };
        let ended = || failed("this node is ending".to_owned(), true);
        let network = self.wires.network.upgrade().ok_or_else(ended)?;
        let there = LedgerActor::of(self.target.node, &network);
        let there = there
            .ok_or_else(|| failed(format!("node {} is no member now", self.target.node), true))?;
        let rpc = Opaque::of(question).map_err(|error| failed(error.to_string(), false))?;
        let answer = there.call_within(message(self.target, self.wires.lease, rpc), patience).await;
        let answer = answer.map_err(|error| failed(error.to_string(), false))?;
        match answer {
            Ok(answer) => {
                let answer = answer.decode(&network.system);
                answer.map_err(|error| failed(error.to_string(), false))
            }
            Err(why) => {
                if why == NoVoter::Another {
                    let _ = self.wires.unknown.send(self.target);
                }
                Err(failed(format!("node {}: {why}", self.target.node), true))
            }
        }
    }
}

impl<E: Error> From<Failed> for RPCError<VoterId, Keeps, E> {
    fn from(failed: Failed) -> Self {
        match failed.away {
            true => RPCError::Unreachable(Unreachable::new(&failed)),
            false => RPCError::Network(NetworkError::new(&failed)),
        }
    }
}

impl RaftNetwork<Types> for Wire {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<VoterId>, RPCError<VoterId, Keeps, RaftError<VoterId>>> {
        Ok(self.ask(&rpc, |to, lease, rpc| Append { to, lease, rpc }, option.hard_ttl()).await?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<VoterId>,
        option: RPCOption,
    ) -> Result<VoteResponse<VoterId>, RPCError<VoterId, Keeps, RaftError<VoterId>>> {
        Ok(self.ask(&rpc, |to, lease, rpc| AskVote { to, lease, rpc }, option.hard_ttl()).await?)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<VoterId>,
        RPCError<VoterId, Keeps, RaftError<VoterId, InstallSnapshotError>>,
    > {
        // The one refusal that the sender can mend: it begins the snapshot again.
        let answer: Result<_, InstallSnapshotError> =
            self.ask(&rpc, |to, lease, rpc| Piece { to, lease, rpc }, option.hard_ttl()).await?;
        answer.map_err(|error| {
            let error = RaftError::APIError(error);
            RPCError::RemoteError(openraft::error::RemoteError::new(self.target, error))
        })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(BACKOFF.into_iter().chain(std::iter::repeat(LAST_BACKOFF)))
    }
}
