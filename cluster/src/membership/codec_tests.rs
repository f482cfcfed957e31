//! The packets' layout, there and back.

use proptest::prelude::*;

use super::*;

fn id() -> impl Strategy<Value = MemberId> {
    (any::<u64>(), any::<u64>(), any::<IpAddr>(), any::<u16>()).prop_map(
        |(node, incarnation, ip, port)| {
            MemberId::new(NodeId(node), Incarnation(incarnation), SocketAddr::new(ip, port))
        },
    )
}

fn codec() -> PacketCodec {
    PacketCodec::new(MemberId::new(NodeId(1), Incarnation(1), ([10, 0, 0, 1], 7400).into()))
}

fn message() -> impl Strategy<Value = Message<MemberId>> {
    (0..11u8, id(), any::<u8>()).prop_map(|(kind, id, probe_number)| match kind {
        PING => Message::Ping(probe_number),
        ACK => Message::Ack(probe_number),
        PING_REQ => Message::PingReq { target: id, probe_number },
        INDIRECT_PING => Message::IndirectPing { origin: id, probe_number },
        INDIRECT_ACK => Message::IndirectAck { target: id, probe_number },
        FORWARDED_ACK => Message::ForwardedAck { origin: id, probe_number },
        ANNOUNCE => Message::Announce,
        FEED => Message::Feed,
        GOSSIP => Message::Gossip,
        BROADCAST => Message::Broadcast,
        _ => Message::TurnUndead,
    })
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(
        src in id(), dst in id(), src_incarnation: u16, message in message()
    ) {
        let header = Header { src, src_incarnation, dst, message };
        let mut bytes = Vec::new();
        codec().encode_header(&header, &mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        prop_assert_eq!(codec().decode_header(&mut rest).unwrap(), header);
        prop_assert!(rest.is_empty());
        for length in 0..bytes.len() {
            prop_assert_eq!(
                codec().decode_header(&bytes[..length]),
                Err(CodecError::Short)
            );
        }
    }

    #[test]
    fn a_departure_is_read_as_a_departure(id in id(), counter: u16, state in 0..4u8) {
        let mut writer = codec();
        let known = match state { ALIVE => State::Alive, SUSPECT => State::Suspect, _ => State::Down };
        if state == LEFT {
            writer.departed.insert(id);
        }
        let member = Member::new(id, counter, known);
        let mut bytes = Vec::new();
        writer.encode_member(&member, &mut bytes).unwrap();
        let mut reader = codec();
        prop_assert_eq!(reader.decode_member(bytes.as_slice()).unwrap(), member);
        prop_assert_eq!(reader.departed.contains(&id), state == LEFT);
    }

    #[test]
    fn a_buffer_that_is_too_small_stays_clean(id in id(), size in 0..MAX_ID + 3) {
        let mut bytes = Vec::new();
        let member = Member::alive(id);
        let result = codec().encode_member(&member, (&mut bytes).limit(size));
        prop_assert_eq!(result, Err(CodecError::Full));
        prop_assert!(bytes.is_empty());
    }
}
