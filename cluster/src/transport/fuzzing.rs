//! What a fuzzer is let at: the bytes of a lane, on their way from the connection to an actor.
//!
//! `cargo xtask fuzz` runs it, from the corpus in `fuzz/corpus`, which is made here of frames as a
//! node makes them.

use bytes::{Buf, Bytes};
use footlight_runtime::{
    ActorAddr, HostTensor, Streamed, System,
    codec::{Opaque, Parcel},
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::{
    frame::{self, Frame, Segment},
    inbox::{Inbox, InboxError, Whole},
};
use crate::spawn::Spawn;

/// A large tensor of more bytes never arrives here.
const MOST: u64 = 4 << 10;

/// All that can stand in a message and is no plain value.
#[derive(Debug, Serialize, Deserialize)]
struct Anything {
    tensors: Vec<HostTensor>,
    text: Option<String>,
    actor: Option<ActorAddr>,
    opaque: Option<Opaque>,
    streams: Vec<Streamed<HostTensor>>,
}

/// Takes what came on a lane up to the first fault, as a session does, and decodes what would be
/// delivered. Returns how many frames there were.
///
/// # Panics
/// If anything does; and if a frame that was opened is another one when it is sent on.
pub fn lane(mut bytes: &[u8], system: &System) -> usize {
    let mut inbox = Inbox::default();
    let mut frames = 0;
    while bytes.len() >= 4 {
        let Ok(length) = frame::check_length(bytes.get_u32_le()) else { break };
        let Some((one, rest)) = bytes.split_at_checked(length) else { break };
        bytes = rest;
        let Ok(frame) = frame::open(Bytes::copy_from_slice(one)) else { break };
        same_again(&frame);
        frames += 1;
        if arrived(&mut inbox, frame, system).is_err() {
            break;
        }
    }
    frames
}

fn same_again(frame: &Frame) {
    let said = format!("{frame:?}");
    let again = frame::again(frame).expect("it can be sent on");
    let again = frame::open(again).expect("it can be opened again");
    assert_eq!(format!("{again:?}"), said);
}

/// The number of a large tensor says when it comes: before its frame, behind it, or never; and
/// whether it is one byte too long, or comes twice.
fn arrived(inbox: &mut Inbox, frame: Frame, system: &System) -> Result<(), InboxError> {
    let segments = frame.header.payload().map_or(&[][..], |payload| &payload.segments);
    let large = segments.iter().filter_map(|segment| match *segment {
        Segment::Stream { id, len } if len < MOST => Some((id, len as usize)),
        _ => None,
    });
    let large: Vec<(u64, usize)> = large.collect();
    let bring = |inbox: &mut Inbox, turn: u64| {
        for &(id, len) in large.iter().filter(|(id, _)| id % 4 == turn || id % 4 == 2) {
            let bytes = vec![1; len + usize::from(id % 16 > 12)];
            let mut ready = Vec::new();
            inbox.segment(id, bytes.into(), &mut ready)?;
            ready.into_iter().for_each(|whole| decode(whole, system));
        }
        Ok(())
    };
    bring(inbox, 0)?;
    let mut ready = Vec::new();
    inbox.frame(frame, &mut ready)?;
    ready.into_iter().for_each(|whole| decode(whole, system));
    bring(inbox, 1)
}

/// As the task of an actor would. What comes of it is no matter, as long as it comes.
fn decode(whole: Whole, system: &System) {
    let Whole { header, body, segments } = whole;
    let Some(payload) = header.payload() else { return };
    let parcel = || Parcel {
        body: body.clone(),
        segments: segments.clone(),
        streams: payload.streams.iter().map(|_| futures::stream::empty().boxed()).collect(),
        system: system.clone(),
        from: system.node(),
    };
    if let Ok(Anything { opaque: Some(opaque), .. }) = parcel().decode() {
        let _ = opaque.decode::<Anything>(system);
    }
    if let Ok(spawn) = parcel().decode::<Spawn>() {
        let _ = spawn.args.decode::<Anything>(system);
    }
    let _ = parcel().decode::<HostTensor>();
}

#[cfg(test)]
mod corpus {
    use std::{collections::BTreeMap, fs, path::PathBuf};

    use bytes::BytesMut;
    use footlight_runtime::{
        ActorId, Cause, Down, Failure, Fence, Incarnation, NodeId,
        codec::{Encoded, encode},
        env::Env,
        message::{Fingerprint, name_hash},
        registry::Types,
        remote::End,
    };

    use super::*;
    use crate::{
        gossip::Digest,
        record::{Load, Record},
        resources::Needs,
        spawn::{Owner, RequestId},
        transport::frame::{Header, Payload, Pieces},
    };

    fn folder() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/frame")
    }

    async fn a_node() -> System {
        let env = Env::system().unwrap();
        System::start(NodeId(1), Incarnation(1), Types::default(), env).await.unwrap()
    }

    /// The corpus is worth something only as long as it is what nodes say.
    #[tokio::test]
    async fn the_fuzzer_begins_with_frames_as_they_are_today() {
        let node = a_node().await;
        let made = frames();
        for (name, bytes) in &made {
            assert!(lane(bytes, &node) > 0, "{name} is no frame");
            let kept = fs::read(folder().join(name)).unwrap_or_default();
            assert!(
                kept == *bytes,
                "{name} is not as it would be made now: to make the corpus anew, run \
                 `cargo test -p footlight-cluster --lib fuzzing -- --ignored`"
            );
        }
        assert_eq!(fs::read_dir(folder()).unwrap().count(), made.len());
    }

    #[test]
    #[ignore = "makes the fuzzer's corpus anew"]
    fn make() {
        let folder = folder();
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in frames() {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }

    /// At least one frame of each kind but the certificate, which is two lists of bytes.
    fn frames() -> BTreeMap<&'static str, Vec<u8>> {
        let actor = ActorAddr { node: NodeId(7), incarnation: Incarnation(3), actor: ActorId(20) };
        let failure = Failure::may_have_run(Cause::CannotDecode("3 bytes are no text".into()));
        let one = |header: Header| said(&header);
        BTreeMap::from([
            ("call", message(&encode(&"How are you?").unwrap(), Some(5), None)),
            ("cast", message(&Encoded::default(), None, Some(Fence { lease: 1, generation: 2 }))),
            ("anything", message(&encode(&anything(&[4, 300])).unwrap(), None, None)),
            // Those whose numbers are 8, 9 and 10 arrive before, behind, and twice.
            ("large_tensors", large(8)),
            ("spawn", message(&encode(&spawn()).unwrap(), Some(6), None)),
            (
                "reply",
                value(&encode(&tensor(64)).unwrap(), |payload| Header::Reply { call: 5, payload }),
            ),
            ("failed", one(Header::Failed { call: 5, failure: failure.clone() })),
            (
                "stream",
                [
                    value(&encode(&tensor(16)).unwrap(), |payload| Header::StreamItem {
                        stream: 9,
                        payload,
                    }),
                    one(Header::StreamEnd { stream: 9, failure: Some(failure) }),
                    one(Header::StreamCredit { stream: 9, items: 16 }),
                    one(Header::StreamCancel { stream: 9 }),
                ]
                .concat(),
            ),
            (
                "control",
                [
                    one(Header::Credit { actor: ActorId(20), messages: 64, bytes: 1 << 20 }),
                    one(Header::Watch { id: 1, actor }),
                    one(Header::Unwatch { id: 1 }),
                    one(Header::Down { id: 1, down: Down::Panicked("no luck".into()) }),
                    one(Header::End { actor, how: End::Stop }),
                    one(Header::Packet(vec![1, 2, 3])),
                    one(Header::LastWord),
                    one(Header::Heard),
                    one(Header::Leaving),
                ]
                .concat(),
            ),
            (
                "records",
                [
                    one(Header::Record(Box::new(record()))),
                    one(Header::Digest(Digest {
                        first: NodeId(1),
                        last: NodeId(9),
                        known: vec![(NodeId(7), Incarnation(3), 12)],
                    })),
                    one(Header::Want(vec![NodeId(7), NodeId(8)])),
                    one(Header::Prove([1, 2, 3, 4])),
                    one(Header::Fetched { id: 8, whole: false }),
                ]
                .concat(),
            ),
        ])
    }

    fn said(header: &Header) -> Vec<u8> {
        let mut pieces = Pieces::default();
        pieces.frame(header, Bytes::new(), Vec::new()).unwrap();
        pieces.concat()
    }

    fn value(value: &Encoded, header: impl FnOnce(Payload) -> Header) -> Vec<u8> {
        let mut value = Encoded {
            body: value.body.clone(),
            segments: value.segments.clone(),
            streams: Vec::new(),
        };
        let laid = frame::lay_out(&mut value, || 0).unwrap();
        let mut pieces = Pieces::default();
        laid.seal(&mut pieces, header).unwrap();
        pieces.concat()
    }

    fn message(of: &Encoded, call: Option<u64>, fence: Option<Fence>) -> Vec<u8> {
        // The session numbers a value's streams.
        let streams = (0..of.streams.len() as u64).collect();
        value(of, |payload| Header::Message {
            to: ActorId(20),
            incarnation: Incarnation(3),
            key: name_hash("cluster.spawn"),
            fence,
            call,
            payload: Payload { streams, ..payload },
        })
    }

    /// Three messages to one actor, each with a tensor beside it: as if smaller ones were large.
    fn large(first: u64) -> Vec<u8> {
        let mut all = BytesMut::new();
        for id in first..first + 3 {
            let Encoded { body, .. } = encode(&tensor(25)).unwrap();
            let segments = vec![Segment::Stream { id, len: 100 }];
            let payload = Payload { body: body.len() as u32, segments, streams: Vec::new() };
            let header = Header::Message {
                to: ActorId(20),
                incarnation: Incarnation(3),
                key: 1,
                fence: None,
                call: None,
                payload,
            };
            let opened = Frame { header, body, inline: Vec::new() };
            let frame = frame::again(&opened).unwrap();
            all.extend_from_slice(&(frame.len() as u32).to_le_bytes());
            all.extend_from_slice(&frame);
        }
        all.to_vec()
    }

    fn tensor(elements: usize) -> HostTensor {
        HostTensor::from_vec(vec![1f32; elements], &[elements]).unwrap()
    }

    fn anything(elements: &[usize]) -> Anything {
        Anything {
            tensors: elements.iter().map(|&elements| tensor(elements)).collect(),
            text: Some("and a text".into()),
            actor: Some(ActorAddr {
                node: NodeId(7),
                incarnation: Incarnation(3),
                actor: ActorId(20),
            }),
            opaque: Some(Opaque::of(&tensor(2)).unwrap()),
            streams: vec![Streamed::from_stream(futures::stream::empty())],
        }
    }

    fn spawn() -> Spawn {
        let Anything { actor, .. } = anything(&[]);
        let plain = Anything { opaque: None, streams: Vec::new(), ..anything(&[3]) };
        Spawn {
            request: RequestId(17),
            actor: "test.probe".into(),
            args_shape: Fingerprint(18),
            args: Opaque::of(&plain).unwrap(),
            needs: Needs::default(),
            owner: actor.map(|actor| Owner {
                actor,
                unreachable: None,
                stop_within: std::time::Duration::from_secs(5),
            }),
        }
    }

    fn record() -> Record {
        Record {
            node: NodeId(7),
            incarnation: Incarnation(3),
            version: 12,
            addr: "127.0.0.1:1".parse().unwrap(),
            message_addr: "[::1]:4".parse().unwrap(),
            bulk_addr: "[::1]:2".parse().unwrap(),
            http: Some("127.0.0.1:3".parse().unwrap()),
            roles: vec!["worker".into()],
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            actors: vec!["test.probe".into()],
            resources: Default::default(),
            free: Default::default(),
            load: Load { cpu: 0.5, actors: 3, in_hand: 8 },
            leaving: false,
            unreachable: vec![NodeId(8)],
            groups: BTreeMap::new(),
            ledger: None,
        }
    }
}
