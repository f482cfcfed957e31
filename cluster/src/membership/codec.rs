//! SWIM's packets: fixed layouts in network byte order, read with a bound on everything.
//!
//! ```text
//! packet   := header [count: u16, member × count]
//! header   := source: id, source's counter: u16, destination: id, kind: u8 [, more]
//! more     := id, probe: u8 | probe: u8 | verdict              by kind
//! verdict  := members: u16, smallest: u64, version: u32, answers: u32
//! member   := id, counter: u16, state: u8
//! id       := node: u64, incarnation: u64, family: u8 (4 | 6), ip: 4 or 16 bytes, port: u16
//! ```
//!
//! The count and what follows it are foca's; the state `Left` is ours. foca knows a member that is
//! down, but not that it said goodbye: the codec writes and reads it beside foca, so the news of a
//! departure travels exactly as far and as often as foca's "down" does. The verdict is ours too: who
//! tells another that it was declared down says how many members say so.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};
use footlight_runtime::id::{Incarnation, NodeId};

use super::MemberId;

/// The largest packet, in bytes: fits into one QUIC datagram on every path, from the first packet.
pub const MAX_PACKET: usize = 1100;

/// Why bytes are no packet of SWIM's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum CodecError {
    /// The bytes end too early.
    #[error("it ends too early")]
    Short,
    /// The buffer has no room for another item. foca then sends what fits.
    #[error("no room left in the packet")]
    Full,
    /// A tag has no meaning.
    #[error("{what} {tag} is unknown")]
    Unknown {
        /// What the tag stands for.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
}

/// Members that are known to have left by themselves, as opposed to having been declared down.
#[derive(Clone, Default)]
pub(super) struct Departed(Arc<Mutex<BTreeSet<MemberId>>>);

impl Departed {
    fn set(&self) -> MutexGuard<'_, BTreeSet<MemberId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, member: MemberId) {
        self.set().insert(member);
    }

    pub(super) fn contains(&self, member: &MemberId) -> bool {
        self.set().contains(member)
    }

    /// Forgets all but some: called after every packet, so the set is never larger than the list
    /// of members that are down and what one packet can name.
    pub(super) fn retain(&self, keep: impl Fn(&MemberId) -> bool) {
        let mut set = self.set();
        if !set.is_empty() {
            set.retain(keep);
        }
    }
}

/// The members that a node sees up, itself included, as far as two such sets are compared: the one
/// with more members is the greater, of equal ones that with the smallest node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Side {
    pub(super) members: u16,
    pub(super) smallest: Reverse<NodeId>,
}

/// What a member says to one that it has declared down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Verdict {
    /// Those who say so; without members it is a question.
    pub(super) side: Side,
    /// Of the side: greater with each change, never 0.
    pub(super) version: u32,
    /// The version of the receiver's side that this answers; 0 if it answers nothing.
    pub(super) answers: u32,
}

impl Verdict {
    /// Asks one that has said so whether it still does.
    pub(super) fn question(self) -> Self {
        Verdict { side: Side { members: 0, ..self.side }, ..self }
    }

    pub(super) fn is_question(&self) -> bool {
        self.side.members == 0
    }
}

/// foca's codec, and the reader of our own packets.
#[derive(Clone)]
pub(super) struct PacketCodec {
    pub(super) departed: Departed,
    verdict: Arc<Mutex<Verdict>>,
}

const PING: u8 = 0;
const ACK: u8 = 1;
const PING_REQ: u8 = 2;
const INDIRECT_PING: u8 = 3;
const INDIRECT_ACK: u8 = 4;
const FORWARDED_ACK: u8 = 5;
const ANNOUNCE: u8 = 6;
const FEED: u8 = 7;
const GOSSIP: u8 = 8;
const BROADCAST: u8 = 9;
const TURN_UNDEAD: u8 = 10;

const ALIVE: u8 = 0;
const SUSPECT: u8 = 1;
const DOWN: u8 = 2;
const LEFT: u8 = 3;

/// The longest id: IPv6.
const MAX_ID: usize = 8 + 8 + 1 + 16 + 2;

impl Codec<MemberId> for PacketCodec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<MemberId>,
        buf: impl BufMut,
    ) -> Result<(), CodecError> {
        encode_header(header, self.verdict(), buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<MemberId>, CodecError> {
        decode_header(buf).map(|(header, _)| header)
    }

    fn encode_member(
        &mut self,
        member: &Member<MemberId>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        room(&buf, MAX_ID + 2 + 1)?;
        put_id(&mut buf, member.id());
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => ALIVE,
            State::Suspect => SUSPECT,
            State::Down if self.departed.contains(member.id()) => LEFT,
            State::Down => DOWN,
        });
        Ok(())
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<MemberId>, CodecError> {
        let (member, left) = decode_member(buf)?;
        if left {
            self.departed.insert(*member.id());
        }
        Ok(member)
    }
}

impl PacketCodec {
    pub(super) fn new(me: MemberId) -> Self {
        let side = Side { members: 1, smallest: Reverse(me.node) };
        let verdict = Verdict { side, version: 1, answers: 0 };
        PacketCodec { departed: Departed::default(), verdict: Arc::new(Mutex::new(verdict)) }
    }

    /// What this node says now to one that it has declared down.
    pub(super) fn verdict(&self) -> Verdict {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of whom this node sees up.
    pub(super) fn set_side(&self, side: Side) {
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if verdict.side != side {
            verdict.side = side;
            verdict.version = verdict.version.checked_add(1).unwrap_or(1);
        }
    }
}

/// A packet as it is read outside foca: to judge it, or for the decision how to send it.
pub(super) struct Packet {
    pub(super) header: Header<MemberId>,
    pub(super) members: Vec<Member<MemberId>>,
}

impl Packet {
    pub(super) fn read(mut packet: &[u8]) -> Result<Self, CodecError> {
        let (header, _) = decode_header(&mut packet)?;
        let count = if packet.is_empty() { 0 } else { packet.try_get_u16().map_err(short)? };
        let members = (0..count)
            .map(|_| decode_member(&mut packet).map(|(member, _)| member))
            .collect::<Result<_, _>>()?;
        Ok(Packet { header, members })
    }
}

/// Writes a header; the verdict counts only in one that tells its receiver that it is down.
pub(super) fn encode_header(
    header: &Header<MemberId>,
    verdict: Verdict,
    mut buf: impl BufMut,
) -> Result<(), CodecError> {
    room(&buf, 3 * MAX_ID + 2 + 1 + 1)?;
    put_id(&mut buf, &header.src);
    buf.put_u16(header.src_incarnation);
    put_id(&mut buf, &header.dst);
    let mut relayed = |kind, id, probe| {
        buf.put_u8(kind);
        put_id(&mut buf, id);
        buf.put_u8(probe);
    };
    match &header.message {
        Message::PingReq { target, probe_number } => relayed(PING_REQ, target, *probe_number),
        Message::IndirectPing { origin, probe_number } => {
            relayed(INDIRECT_PING, origin, *probe_number);
        }
        Message::IndirectAck { target, probe_number } => {
            relayed(INDIRECT_ACK, target, *probe_number);
        }
        Message::ForwardedAck { origin, probe_number } => {
            relayed(FORWARDED_ACK, origin, *probe_number);
        }
        Message::Ping(probe) => buf.put_slice(&[PING, *probe]),
        Message::Ack(probe) => buf.put_slice(&[ACK, *probe]),
        Message::Announce => buf.put_u8(ANNOUNCE),
        Message::Feed => buf.put_u8(FEED),
        Message::Gossip => buf.put_u8(GOSSIP),
        Message::Broadcast => buf.put_u8(BROADCAST),
        Message::TurnUndead => {
            buf.put_u8(TURN_UNDEAD);
            buf.put_u16(verdict.side.members);
            buf.put_u64(verdict.side.smallest.0.0);
            buf.put_u32(verdict.version);
            buf.put_u32(verdict.answers);
        }
    }
    Ok(())
}

/// The header, and of one that tells its receiver that it was declared down: who says so.
pub(super) fn decode_header(
    mut buf: impl Buf,
) -> Result<(Header<MemberId>, Option<Verdict>), CodecError> {
    let src = get_id(&mut buf)?;
    let src_incarnation = buf.try_get_u16().map_err(short)?;
    let dst = get_id(&mut buf)?;
    let kind = buf.try_get_u8().map_err(short)?;
    let relayed = |buf: &mut dyn Buf| Ok((get_id(buf)?, buf.try_get_u8().map_err(short)?));
    let mut verdict = None;
    let message = match kind {
        PING => Message::Ping(buf.try_get_u8().map_err(short)?),
        ACK => Message::Ack(buf.try_get_u8().map_err(short)?),
        PING_REQ => {
            let (target, probe_number) = relayed(&mut buf)?;
            Message::PingReq { target, probe_number }
        }
        INDIRECT_PING => {
            let (origin, probe_number) = relayed(&mut buf)?;
            Message::IndirectPing { origin, probe_number }
        }
        INDIRECT_ACK => {
            let (target, probe_number) = relayed(&mut buf)?;
            Message::IndirectAck { target, probe_number }
        }
        FORWARDED_ACK => {
            let (origin, probe_number) = relayed(&mut buf)?;
            Message::ForwardedAck { origin, probe_number }
        }
        ANNOUNCE => Message::Announce,
        FEED => Message::Feed,
        GOSSIP => Message::Gossip,
        BROADCAST => Message::Broadcast,
        TURN_UNDEAD => {
            let members = buf.try_get_u16().map_err(short)?;
            let smallest = Reverse(NodeId(buf.try_get_u64().map_err(short)?));
            let version = buf.try_get_u32().map_err(short)?;
            let answers = buf.try_get_u32().map_err(short)?;
            verdict = Some(Verdict { side: Side { members, smallest }, version, answers });
            Message::TurnUndead
        }
        tag => {
            return Err(CodecError::Unknown { what: "packet kind", tag });
        }
    };
    Ok((Header { src, src_incarnation, dst, message }, verdict))
}

/// A member, and whether it has left by itself.
fn decode_member(mut buf: impl Buf) -> Result<(Member<MemberId>, bool), CodecError> {
    let id = get_id(&mut buf)?;
    let counter = buf.try_get_u16().map_err(short)?;
    let tag = buf.try_get_u8().map_err(short)?;
    let state = match tag {
        ALIVE => State::Alive,
        SUSPECT => State::Suspect,
        DOWN | LEFT => State::Down,
        tag => {
            return Err(CodecError::Unknown { what: "member state", tag });
        }
    };
    Ok((Member::new(id, counter, state), tag == LEFT))
}

fn room(buf: &impl BufMut, needed: usize) -> Result<(), CodecError> {
    if buf.remaining_mut() < needed { Err(CodecError::Full) } else { Ok(()) }
}

fn short(_: bytes::TryGetError) -> CodecError {
    CodecError::Short
}

/// The caller has checked that there is room.
fn put_id(buf: &mut impl BufMut, id: &MemberId) {
    buf.put_u64(id.node.0);
    buf.put_u64(id.incarnation.0);
    match id.addr.ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6);
            buf.put_slice(&ip.octets());
        }
    }
    buf.put_u16(id.addr.port());
}

fn get_id(buf: &mut (impl Buf + ?Sized)) -> Result<MemberId, CodecError> {
    let node = NodeId(buf.try_get_u64().map_err(short)?);
    let incarnation = Incarnation(buf.try_get_u64().map_err(short)?);
    let ip = match buf.try_get_u8().map_err(short)? {
        4 => {
            let mut octets = [0; 4];
            buf.try_copy_to_slice(&mut octets).map_err(short)?;
            IpAddr::from(octets)
        }
        6 => {
            let mut octets = [0; 16];
            buf.try_copy_to_slice(&mut octets).map_err(short)?;
            IpAddr::from(octets)
        }
        tag => {
            return Err(CodecError::Unknown { what: "address family", tag });
        }
    };
    let port = buf.try_get_u16().map_err(short)?;
    Ok(MemberId::new(node, incarnation, SocketAddr::new(ip, port)))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
