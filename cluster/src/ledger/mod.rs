//! What must be exactly one in the cluster: leases, names, used tokens, the authority's key.
//!
//! Gossip gives no agreement, so these stand in a log that a majority of a few nodes, the voters,
//! agrees on (Raft, by openraft). It is small and boring: acquire, renew, release, get, put, delete,
//! watch. Keys have at most 256 bytes, values 64 KiB, all together 16 MiB.
//!
//! # How it works
//!
//! A node that is started without seeds **founds** a ledger, if its state directory holds none: it
//! is the only voter at first, and decides alone. The leader then chooses further voters among the
//! members of role `server`, up to five (`voters`); each keeps log, vote and snapshots on
//! its disk. Each voter tells the ledger's view in its node's record, so that all nodes know whom
//! to ask. A node asks the leader; whoever is asked and does not lead names the leader.
//!
//! A **write** is an entry of the log. It is acknowledged when a majority of the voters has it on
//! disk and the leader has applied it. It carries the number that its client gave it: a client that
//! gets no answer asks the next leader for the same write, and it is done once. A **read** is
//! answered from the leader's memory after a majority has confirmed, since the question came, that
//! it still leads. **Leases** are granted and ended by entries; renewals are only confirmed, not
//! written (`leases`). Every grant has a generation greater than all before, in any lease.
//!
//! # Promises
//!
//! * **LE-1** At any time at most one holder believes in a lease, whoever is cut off.
//! * **LE-2** Generations only grow: a grant that has ended is never granted again.
//! * **LE-3** What was acknowledged is not lost while a majority of the voters' disks is there:
//!   processes may be killed, all at once too.
//! * **LE-4** A write that is sent twice is done once, and one that was given up is not done after
//!   its client's next write.
//! * **LE-5** A read gives what was last acknowledged before it was asked, or something later.
//! * **LE-6** Who watches is told what is there, then the changes in their order; never anything
//!   older than what was told before.
//! * **LE-7** Nothing grows without bound: keys, leases, what is remembered of clients, what is
//!   being answered, what waits for a slow watcher.
//! * **LE-8** Voters are replaced one decision at a time, by nodes that have caught up, and never so
//!   that no majority of them is there.
//! * **LE-9** A key with an owner is gone soon after that life of the owner's node is over.
//! * **LE-10** Of two ledgers that meet, the one founded first stays. What it grants after that has
//!   a greater generation than what the other granted.
//! * **LE-11** The authority's key is told to those who vote now, and to no other node.
//!
//! Not promised: that a lease's holder and the next one never overlap on a machine whose clock
//! stands still while it sleeps. Receivers that check the generation refuse the older one even then.

mod actor;
mod client;
mod command;
mod directory;
mod error;
mod held;
mod known;
mod leader;
mod leases;
mod machine;
mod merge;
mod message;
mod mismatch;
mod pre_vote;
mod raft_log;
mod seat;
mod state;
mod store;
mod transport;
mod types;
mod view;
mod voter;
mod voters;
mod watch;

use std::{ops::Range, time::Duration};

pub use client::{Lease, Ledger};
pub use command::{
    Bound, Expect, Holder, Life, MAX_BYTES, MAX_KEY, MAX_KEYS, MAX_LEASES, MAX_NAME, MAX_VALUE,
    Versioned,
};
pub use directory::LedgerStatus;
pub use error::LedgerError;
pub use held::HeldLease;
pub use view::{LedgerId, LedgerView};
pub use watch::LedgerWatch;

pub(crate) use actor::LedgerActor;
pub(crate) use client::Client;
pub(crate) use directory::Told;
pub(crate) use message::{OF_CLIENTS, OF_VOTERS};
pub(crate) use seat::Seat;

/// Nodes of this role become voters.
pub const VOTER_ROLE: &str = "server";

/// The longest snapshot that is accepted, in bytes: the bounds of what it holds, and some.
const MAX_SNAPSHOT: usize = 64 * 1024 * 1024;

/// How the ledger works; the same on all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerSettings {
    /// The leader speaks up so often. It is also the time that a voter has for an answer: more than
    /// the longest round trip. Default: 100 ms.
    pub heartbeat: Duration,
    /// A voter that does not hear from the leader waits for twice a time from this range, drawn anew
    /// for each try, before it stands for election. Default: 350 ms to 500 ms, so that the next leader
    /// stands 0.7 s to 1.2 s after one was lost.
    pub election: Range<Duration>,
    /// A voter that membership has declared down is replaced after this time: it may only be
    /// restarting. Default: 10 s.
    pub replace_after: Duration,
    /// A lease that is not renewed ends after this time. Its holder renews it four times as often,
    /// and stops a tenth of it earlier. Longer than it takes to elect a leader and to ask it, or
    /// every election ends all leases. Default: 2 s.
    pub lease: Duration,
    /// Most voters. Default: 5, of which two may be lost.
    pub voters: usize,
}

impl LedgerSettings {
    /// For one data centre, and for one machine.
    pub fn lan() -> Self {
        LedgerSettings {
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(350)..Duration::from_millis(500),
            replace_after: Duration::from_secs(10),
            lease: Duration::from_secs(2),
            voters: 5,
        }
    }

    /// For round trips of up to 300 ms: the next leader stands 2.5 s to 4 s after one was lost, and
    /// a lease that is not renewed ends after 8 s.
    pub fn wan() -> Self {
        LedgerSettings {
            heartbeat: Duration::from_millis(500),
            election: Duration::from_millis(1_250)..Duration::from_millis(1_650),
            lease: Duration::from_secs(8),
            ..LedgerSettings::lan()
        }
    }
}

impl Default for LedgerSettings {
    fn default() -> Self {
        LedgerSettings::lan()
    }
}
