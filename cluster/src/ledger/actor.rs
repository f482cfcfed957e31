//! The actor that each node has for the ledger: it hands what arrives to the node's [`Seat`].
//!
//! It lives on the control thread, and so does all that it starts: raft's own tasks, too.

use std::{future::Future, sync::Arc};

use footlight_runtime::{
    Actor, ActorAddr, ActorId, ActorRef, Context, DeferredHandler, Error, Message, NodeId, ReplyTo,
    Result, codec::Opaque, registry::Types as ActorTypes,
};
use openraft::{
    error::{InstallSnapshotError, RaftError},
    raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    MAX_SNAPSHOT,
    leases::LeaseTime,
    message::{
        Append, Ask, AskPreVote, AskVote, Guarded, Invite, NoVoter, NotServed, Piece, Request,
        WatchGuarded, WatchKeys,
    },
    pre_vote::PreVote,
    seat::Seat,
    types::{Types, VoterId},
    voter::Voter,
    watch,
};
use crate::network::Network;

/// Every node's ledger actor has this number.
pub(super) const LEDGER_ACTOR: ActorId = ActorId(2);

/// Hands what arrives for the ledger to the node's seat.
pub(crate) struct LedgerActor(Arc<Seat>);

impl std::fmt::Debug for LedgerActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LedgerActor")
    }
}

impl LedgerActor {
    pub(crate) fn register(types: &mut ActorTypes) {
        types.register_own::<LedgerActor>(|ledger| {
            ledger
                .defers::<Append>()
                .defers::<AskPreVote>()
                .defers::<AskVote>()
                .defers::<Piece>()
                .defers::<Invite>()
                .defers::<Request>()
                .defers::<Guarded>()
                .defers::<WatchKeys>()
                .defers::<WatchGuarded>()
        });
    }

    /// The ledger actor of a node's present life, if the node is a member.
    pub(super) fn of(node: NodeId, network: &Network) -> Option<ActorRef<Self>> {
        let incarnation = match node == network.node() {
            true => network.system.incarnation(),
            false => network.view.life(node)?,
        };
        let addr = ActorAddr { node, incarnation, actor: LEDGER_ACTOR };
        Some(ActorRef::at(addr, &network.system))
    }

    /// Answers in a task of its own, if there is room for one more.
    fn serve<R, F>(&self, reply: ReplyTo<R>, busy: R, answer: impl FnOnce(Arc<Seat>) -> F)
    where
        R: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = R> + Send + 'static,
    {
        let Ok(permit) = self.0.gate.clone().try_acquire_owned() else { return reply.send(busy) };
        let answer = answer(self.0.clone());
        self.0.control.spawn(async move {
            reply.send(answer.await);
            drop(permit);
        });
    }

    /// Hands a message of another voter to this one.
    fn between<Q, A, F>(
        &self,
        (to, lease, rpc): (VoterId, LeaseTime, Opaque),
        reply: ReplyTo<Result<Opaque, NoVoter>>,
        context: &Context<Self>,
        ask: impl FnOnce(Arc<Voter>, Q) -> F + Send + 'static,
    ) where
        Q: DeserializeOwned + Send + 'static,
        A: Serialize + Send + 'static,
        F: Future<Output = Result<A, NoVoter>> + Send + 'static,
    {
        let system = context.system().clone();
        let busy = Err(NoVoter::Failed("this node has too much to do".to_owned()));
        self.serve(reply, busy, |seat| async move {
            if !seat.has_leases_of(lease) {
                return Err(NoVoter::OtherSettings);
            }
            let voter = seat.voter_called(to)?;
            let question = rpc.decode::<Q>(&system).map_err(told)?;
            let answer = ask(voter, question).await?;
            Opaque::of(&answer).map_err(told)
        });
    }

    /// `guarded` is who asks, if by a guarded message.
    fn ask(
        &self,
        request: Request,
        guarded: Option<NodeId>,
        reply: ReplyTo<<Request as Message>::Reply>,
    ) {
        if !request.ask.is_askable() || !(guarded.is_some() || request.ask.is_open()) {
            return reply.send(Err(NotServed::Forbidden));
        }
        self.serve(reply, Err(NotServed::Busy), |seat| async move {
            if request.ask.counts_time() && !seat.has_leases_of(request.lease) {
                return Err(NotServed::OtherSettings);
            }
            match request.ask {
                Ask::Retire(node) => seat.retire(request.ledger, node).await,
                ask => seat.voter_of(request.ledger)?.answer(ask, guarded).await,
            }
        });
    }

    fn watch(
        &self,
        asked: WatchKeys,
        guarded: bool,
        reply: ReplyTo<<WatchKeys as Message>::Reply>,
    ) {
        self.serve(reply, Err(NotServed::Busy), |seat| async move {
            let voter = seat.voter_of(asked.ledger)?;
            let room = seat.watchers.clone().try_acquire_owned();
            let room = room.map_err(|_| NotServed::Busy)?;
            Ok(watch::serve(voter, asked.prefix, guarded, room))
        });
    }
}

/// An error of openraft's own, or of the codec, as a text for whoever asked.
fn told(error: impl std::fmt::Display) -> NoVoter {
    NoVoter::Failed(error.to_string())
}

impl Actor for LedgerActor {
    type Args = ();
    const NAME: &'static str = "cluster.ledger";

    async fn start((): (), context: &Context<Self>) -> Result<Self> {
        let seat = context.system().extension::<Seat>();
        seat.map(LedgerActor).ok_or_else(|| Error::other("this node takes no part in a ledger"))
    }
}

impl DeferredHandler<Append> for LedgerActor {
    async fn handle(
        &mut self,
        append: Append,
        reply: ReplyTo<<Append as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let rpc = (append.to, append.lease, append.rpc);
        self.between(rpc, reply, context, |voter, rpc: AppendEntriesRequest<Types>| async move {
            let answer = voter.raft.append_entries(rpc).await.map_err(told)?;
            if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                voter.hears();
            }
            Ok(answer)
        });
    }
}

impl DeferredHandler<AskPreVote> for LedgerActor {
    async fn handle(
        &mut self,
        vote: AskPreVote,
        reply: ReplyTo<<AskPreVote as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let rpc = (vote.to, vote.lease, vote.rpc);
        self.between(rpc, reply, context, |voter, rpc: PreVote| async move {
            Ok(voter.would_vote(&rpc))
        });
    }
}

impl DeferredHandler<AskVote> for LedgerActor {
    async fn handle(
        &mut self,
        vote: AskVote,
        reply: ReplyTo<<AskVote as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let rpc = (vote.to, vote.lease, vote.rpc);
        self.between(rpc, reply, context, |voter, rpc: VoteRequest<VoterId>| async move {
            let candidate = rpc.vote;
            let answer = voter.raft.vote(rpc).await.map_err(told)?;
            if answer.is_granted_to(&candidate) {
                voter.gives_its_vote();
            }
            Ok(answer)
        });
    }
}

impl DeferredHandler<Piece> for LedgerActor {
    async fn handle(
        &mut self,
        piece: Piece,
        reply: ReplyTo<<Piece as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let rpc = (piece.to, piece.lease, piece.rpc);
        self.between(rpc, reply, context, |voter, rpc: InstallSnapshotRequest<Types>| async move {
            // openraft makes room up to the offset that it is told.
            if rpc.offset.saturating_add(rpc.data.len() as u64) > MAX_SNAPSHOT as u64 {
                let why = format!("a snapshot has at most {MAX_SNAPSHOT} bytes");
                return Err(NoVoter::Failed(why));
            }
            match voter.raft.install_snapshot(rpc).await {
                Ok(answer) => Ok(Ok(answer)),
                Err(RaftError::APIError(error)) => Ok(Err::<_, InstallSnapshotError>(error)),
                Err(error) => Err(told(error)),
            }
        });
    }
}

impl DeferredHandler<Invite> for LedgerActor {
    async fn handle(
        &mut self,
        invite: Invite,
        reply: ReplyTo<<Invite as Message>::Reply>,
        _: &Context<Self>,
    ) {
        let busy = Err("this node has too much to do".to_owned());
        self.serve(reply, busy, |seat| async move { seat.invited(invite).await });
    }
}

impl DeferredHandler<Request> for LedgerActor {
    async fn handle(
        &mut self,
        request: Request,
        reply: ReplyTo<<Request as Message>::Reply>,
        _: &Context<Self>,
    ) {
        self.ask(request, None, reply);
    }
}

impl DeferredHandler<Guarded> for LedgerActor {
    async fn handle(
        &mut self,
        guarded: Guarded,
        reply: ReplyTo<<Guarded as Message>::Reply>,
        _: &Context<Self>,
    ) {
        self.ask(guarded.request, Some(guarded.from.node()), reply);
    }
}

impl DeferredHandler<WatchKeys> for LedgerActor {
    async fn handle(
        &mut self,
        asked: WatchKeys,
        reply: ReplyTo<<WatchKeys as Message>::Reply>,
        _: &Context<Self>,
    ) {
        self.watch(asked, false, reply);
    }
}

impl DeferredHandler<WatchGuarded> for LedgerActor {
    async fn handle(
        &mut self,
        asked: WatchGuarded,
        reply: ReplyTo<<WatchGuarded as Message>::Reply>,
        _: &Context<Self>,
    ) {
        self.watch(asked.0, true, reply);
    }
}
