//! What nodes say to each other about the ledger: messages to [`LEDGER_ACTOR`](super::LEDGER_ACTOR).

use footlight_runtime::{
    Message, NodeId, Streamed,
    codec::{Opaque, Sender},
};
use serde::{Deserialize, Serialize};

use super::{
    LedgerId,
    command::{Command, Outcome, RequestId, Versioned},
    leases::LeaseTime,
    types::VoterId,
};

/// Holds the authority's key: only voters read it, and only by its name.
const OF_THE_VOTERS: &str = "ca";
/// Keys that hold what opens the cluster: only [`Guarded`] messages read them.
const SECRET: [&str; 2] = [OF_THE_VOTERS, "token/"];
/// Keys that only [`Guarded`] messages write.
pub(super) const PROTECTED: [&str; 3] = [OF_THE_VOTERS, "token/", "revoked/"];

/// What those send who use the ledger.
pub(crate) const OF_CLIENTS: [&str; 2] = [Request::NAME, WatchKeys::NAME];
/// What only those may send who may be voters: it touches every key.
pub(crate) const OF_VOTERS: [&str; 7] = [
    Append::NAME,
    AskPreVote::NAME,
    AskVote::NAME,
    Piece::NAME,
    Invite::NAME,
    Guarded::NAME,
    WatchGuarded::NAME,
];

fn is_in(key: &str, places: &[&str]) -> bool {
    places.iter().any(|place| match place.strip_suffix('/') {
        Some(_) => key.starts_with(place),
        None => key == *place,
    })
}

/// Whether a key may be read only by guarded messages.
pub(super) fn is_secret(key: &str) -> bool {
    is_in(key, &SECRET)
}

/// Whether a key is told to nobody but the ledger's voters.
pub(super) fn is_for_voters(key: &str) -> bool {
    key == OF_THE_VOTERS
}

/// Whether a key is told to those who list or watch.
pub(super) fn is_listed(key: &str, guarded: bool) -> bool {
    !is_for_voters(key) && (guarded || !is_secret(key))
}

/// A message from one voter to another, and its answer: in openraft's own types, but for the pre-vote.
macro_rules! between_voters {
    ($(#[$doc:meta])* $name:ident = $wire:literal) => {
        $(#[$doc])*
        #[derive(Debug, Serialize, Deserialize)]
        pub(super) struct $name {
            /// The voter that is meant: a node that has lost its store is another one.
            pub to: VoterId,
            /// How long a lease lasts, as the sender was told.
            pub lease: LeaseTime,
            /// The question.
            pub rpc: Opaque,
        }

        impl Message for $name {
            type Reply = Result<Opaque, NoVoter>;
            const NAME: &'static str = $wire;
        }
    };
}

between_voters!(
    /// Entries for the log, or none: a heartbeat.
    Append = "ledger.append"
);
between_voters!(
    /// Asks whether it would get a vote: [`PreVote`](super::pre_vote::PreVote), answered by a `bool`.
    AskPreVote = "ledger.pre-vote"
);
between_voters!(
    /// Asks for a vote.
    AskVote = "ledger.vote"
);
between_voters!(
    /// A piece of a snapshot.
    Piece = "ledger.snapshot"
);

/// Why a voter does not answer another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum NoVoter {
    /// That voter is not here and never will be again.
    #[error("this node is not that voter")]
    Another,
    /// It may be here soon.
    #[error("this node has not opened its ledger yet")]
    NotYet,
    /// Leases last longer or shorter for it than for the other one.
    #[error("this node was started with other settings for the ledger: see `--network`")]
    OtherSettings,
    /// It is here and can't.
    #[error("{0}")]
    Failed(String),
}

/// Become a voter of a ledger: the leader asks this of a node that it has chosen. The node begins
/// as one that only listens, and votes when the log says so.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Invite {
    /// The ledger.
    pub ledger: LedgerId,
    /// When it was founded, in microseconds since 1970.
    pub founded: u64,
    /// How long a lease lasts there.
    pub lease: LeaseTime,
}

impl Message for Invite {
    /// The voter that it is from now on and whether it keeps a disk, or why not.
    type Reply = Result<(VoterId, bool), String>;
    const NAME: &'static str = "ledger.invite";
}

/// A question to the leader.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The ledger that is meant.
    pub ledger: LedgerId,
    /// How long a lease lasts, as the sender was told.
    pub lease: LeaseTime,
    /// The question.
    pub ask: Ask,
}

impl Message for Request {
    type Reply = Result<Answer, NotServed>;
    const NAME: &'static str = "ledger.request";
}

/// A [`Request`] that may touch every key: what opens the cluster, too. What only voters may read is
/// told only if the sender is one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Guarded {
    /// The question.
    pub request: Request,
    /// Who asks.
    pub from: Sender,
}

impl Message for Guarded {
    type Reply = Result<Answer, NotServed>;
    const NAME: &'static str = "ledger.guarded";
}

/// What the leader can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// To change something.
    Write {
        /// Which write this is.
        id: RequestId,
        /// What to change.
        command: Command,
    },
    /// A key.
    Get {
        /// Which.
        key: String,
    },
    /// The keys that begin so, in order.
    List {
        /// How they begin.
        prefix: String,
        /// Only those after this one.
        after: Option<String>,
    },
    /// To renew leases.
    Renew {
        /// Lease and generation of each.
        grants: Vec<(String, u64)>,
    },
    /// Whether a voter is still one, or about to become one.
    IsVoter(VoterId),
    /// Whether another ledger has gone up in this one.
    HasAbsorbed(LedgerId),
    /// To take a node out of the voters: it is about to leave.
    Retire(NodeId),
}

/// The leader's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// What came of a write.
    Outcome(Outcome),
    /// The key, if it is there.
    Value(Option<Versioned>),
    /// Some keys, and whether there are more.
    Listed(Vec<(String, Versioned)>, bool),
    /// For each lease, whether it is still held under that generation.
    Renewed(Vec<bool>),
    /// Yes or no.
    Is(bool),
}

/// Why a node does not answer a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum NotServed {
    /// It is not the leader; this one may be.
    #[error("it is not the leader")]
    NotLeader(Option<NodeId>),
    /// It is no voter of that ledger.
    #[error("it is no voter of this ledger")]
    NoVoter,
    /// It believes to be the leader, and a majority of voters did not confirm that in time.
    #[error("it can't reach a majority of the voters")]
    Unconfirmed,
    /// It has too much to do.
    #[error("it has too many questions to answer")]
    Busy,
    /// Leases last longer or shorter for it than for who asked.
    #[error("it was started with other settings for the ledger: see `--network`")]
    OtherSettings,
    /// Such a question must not be asked by this message.
    #[error("only nodes that may touch the keys `ca`, `token/…` and `revoked/…` may ask that")]
    Forbidden,
    /// Whoever asks for the authority's key is no voter.
    #[error("only its voters read the key `{OF_THE_VOTERS}`")]
    ForVoters,
}

/// Tell of keys that begin so: first those that are there, then each change.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WatchKeys {
    /// The ledger that is meant.
    pub ledger: LedgerId,
    /// How the keys begin. Secret ones are left out.
    pub prefix: String,
}

impl Message for WatchKeys {
    type Reply = Result<Streamed<Watched>, NotServed>;
    const NAME: &'static str = "ledger.watch";
}

/// As [`WatchKeys`], of secret keys too.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WatchGuarded(pub WatchKeys);

impl Message for WatchGuarded {
    type Reply = Result<Streamed<Watched>, NotServed>;
    const NAME: &'static str = "ledger.watch_guarded";
}

/// What those who watch are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Watched {
    /// All that is there is told from the start, as of this revision.
    Begin(u64),
    /// A key that is there.
    There(String, Versioned),
    /// That was all.
    All,
    /// A key has changed; the state has this revision now.
    Changed(u64, String, Option<Versioned>),
}

impl Ask {
    /// Whether it may be asked by a message that is not guarded.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Ask::Write { command, .. } => match command {
                Command::Put { key, .. } | Command::Delete { key, .. } => !is_in(key, &PROTECTED),
                Command::Acquire { .. } | Command::Release { .. } => true,
                _ => false,
            },
            Ask::Get { key } => !is_secret(key),
            // A list of more than secret keys leaves them out.
            Ask::List { prefix, .. } => !is_secret(prefix),
            Ask::Renew { .. } | Ask::IsVoter(_) | Ask::HasAbsorbed(_) => true,
            Ask::Retire(_) => false,
        }
    }

    /// Whether it is about having a lease for some time.
    pub(super) fn counts_time(&self) -> bool {
        let acquires = |command: &Command| matches!(command, Command::Acquire { .. });
        match self {
            Ask::Write { command, .. } => acquires(command),
            ask => matches!(ask, Ask::Renew { .. }),
        }
    }

    /// Whether it may be asked at all: the rest of the commands are the leader's own.
    pub(super) fn is_askable(&self) -> bool {
        match self {
            Ask::Write { command, .. } => matches!(
                command,
                Command::Put { .. }
                    | Command::Delete { .. }
                    | Command::Acquire { .. }
                    | Command::Release { .. }
                    | Command::Absorb { .. }
            ),
            _ => true,
        }
    }
}
