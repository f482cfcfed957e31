//! What [`super::Swim`] hands out: things to do, timers, members, refusals.

use std::time::Duration;

use bytes::Bytes;
use foca::Timer;
use footlight_runtime::id::NodeId;

use super::MemberId;

/// A cluster is made for some hundred members; this bounds what a mad one can make others keep.
pub(super) const MAX_MEMBERS: usize = 4096;

/// What the owner of a [`super::Swim`] has to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SwimAction {
    /// Send a packet of at most [`super::MAX_PACKET`] bytes to a member. It may be lost.
    Send {
        /// To whom. May be a member that is down: it is told so, or asked to come back.
        to: MemberId,
        /// The packet, for the other side's [`super::Swim::handle_data`].
        data: Bytes,
        /// Better sent over a reliable stream, if there is a connection: a request to join and its
        /// answer, a departure, the news to a member that it is suspected or down.
        must_arrive: bool,
    },
    /// Hand `timer` back to [`super::Swim::handle_timer`] after a while. Timers that are due together (the
    /// process stood still) are handed back in the order of their deadlines.
    SetTimer {
        /// How long from now.
        after: Duration,
        /// What to hand back.
        timer: SwimTimer,
    },
    /// A member is there.
    Up(MemberId),
    /// A member that is up does not answer. It is declared down soon, or cleared.
    Suspect(MemberId),
    /// A suspect has answered.
    Cleared(MemberId),
    /// A member was declared down: this life of the node is over, whatever it may still send.
    Down(MemberId),
    /// A member has left by itself.
    Left(MemberId),
    /// A newer life of a node (or a newer node at its address) took the place of one that was up,
    /// before that one was declared down. Means: `old` is down, `new` is up.
    Renamed {
        /// The member that is no more.
        old: MemberId,
        /// The one in its place.
        new: MemberId,
    },
    /// This node itself had been declared down, and is back as another member: what others did with
    /// its earlier life has ended there.
    Rejoined(MemberId),
}

/// A timer to hand back; what it means is nobody's business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwimTimer(pub(super) Kind);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Foca { life: u32, timer: Timer<MemberId> },
    Join { member: MemberId, attempts: u8 },
    CallBack,
    Prove { life: u32, looks: u8 },
}

/// How a member is seen from here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemberState {
    /// It answers.
    Up,
    /// It does not, and has a last chance to.
    Suspect,
    /// It was declared down.
    Down,
    /// It has left.
    Left,
}

/// Another member and how it is seen from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub id: MemberId,
    /// How it is.
    pub state: MemberState,
}

/// Why a packet was not heeded. Nothing has changed by it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwimError {
    /// The bytes are no packet.
    #[error("node {from} sent a membership packet that can't be read: {why}")]
    Malformed {
        /// Whose connection it came by.
        from: NodeId,
        /// What is wrong.
        why: String,
    },
    /// The sender speaks in another's name.
    #[error("node {from} sent a membership packet in the name of {claimed}: it is ignored")]
    Impostor {
        /// Whose connection it came by.
        from: NodeId,
        /// Whom the packet names.
        claimed: MemberId,
    },
    /// It names more members than a cluster can have.
    #[error("node {from} named members beyond the {MAX_MEMBERS} that a cluster can have")]
    TooMany {
        /// Whose connection it came by.
        from: NodeId,
    },
}
