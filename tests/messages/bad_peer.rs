//! A member that breaks the protocol is told what it did and loses its connection, or its call; the
//! node that it did it to goes on, with the same actors and bounded memory, and so does everybody
//! else.
//!
//! The faults are made by a peer with a good certificate that speaks the protocol by itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use footlight::{
    cluster::trust::Role,
    prelude::*,
    runtime::{
        ActorAddr, ActorId, Failure, Incarnation, NodeId,
        codec::MAX_BODY,
        message::name_hash,
        remote::{WINDOW, WINDOW_BYTES},
        stream::STREAM_WINDOW,
    },
};
use futures::{
    FutureExt, StreamExt,
    future::{join, join_all},
};
use quinn::ConnectionError;

use crate::steady::Steady;
use crate::stranger::{Held, *};
use crate::support::{
    memory::{kept_for, most_kept_for},
    *,
};

/// The longest frame, as docs/guarantees.md says it.
const MAX_FRAME: u32 = (MAX_BODY + (1 << 20) + (60 << 10) + 2) as u32;
const MIB: usize = 1 << 20;

/// A node in a process of its own, to which the faults are done, and one here. They call each other
/// all the time.
struct Town {
    cluster: Cluster,
    here: Node,
    victim: NodeProcess,
    /// The actor of the victim's to which the faults are done.
    probe: ActorRef<Probe>,
    steady: Steady,
    view: View,
    bad: AtomicU64,
}

impl Town {
    async fn new() -> Self {
        let cluster = Cluster::new();
        let here = cluster.here(Options::default()).await;
        let victim = cluster.process("victim", Options::join(here.addr())).await;
        let view = one_view(&here, 2, LONG).await;
        let probe = soon(here.spawn::<Probe>(()).on(Placement::node(victim.id))).await.unwrap();
        let steady = Steady::begin(&here, &[victim.id, here.id()]).await;
        Town { cluster, here, victim, probe, steady, view, bad: AtomicU64::new(0xbad0) }
    }

    fn actor(&self) -> ActorId {
        self.probe.addr().actor
    }

    /// Another member, who has done nothing yet: not connected, and connected with a node.
    fn newcomer(&self) -> (Stranger, Shown, Hello) {
        let node = NodeId(self.bad.fetch_add(1, Relaxed));
        let shown = Forge::of_cluster(self.cluster.state()).certificate(&names(node, Role::Node));
        let stranger = Stranger::new(Ipv4Addr::new(127, 0, 0, 77), Some(&shown), MEMBERS);
        let mut hello = Hello::of(node, stranger.addr(), Purpose::Member);
        // It takes all messages that there are.
        hello.record.catalog = self.here.system().catalog().clone();
        (stranger, shown, hello)
    }

    async fn bad(&self) -> Bad {
        self.bad_at(self.victim.addr).await
    }

    async fn bad_at(&self, door: SocketAddr) -> Bad {
        let (stranger, _, hello) = self.newcomer();
        let (held, answer) = stranger.greet(door, &hello).await;
        Bad::new(stranger, hello, held, answer)
    }

    /// One who never reads what it gets.
    async fn deaf(&self, stranger: Stranger, hello: Hello) -> Bad {
        let (held, answer) = stranger.greet_deaf(self.victim.addr, &hello).await;
        Bad::new(stranger, hello, held, answer)
    }

    /// Everybody works on: the calls that are under way all the time, and the actor that the fault
    /// was for.
    async fn goes_on(&self) {
        let so_far = self.steady.answered();
        until("further calls are answered", async || self.steady.answered() > so_far + 2).await;
        let (node, process) = soon(self.probe.call(Where {})).await.unwrap();
        assert_eq!((node, process), (self.victim.id, self.victim.process.pid()));
    }

    /// Whatever happened, no call failed, and the members are the same, in the same lives.
    async fn ends_as_before(self) {
        self.goes_on().await;
        self.steady.end().await;
        assert_eq!(one_view(&self.here, 2, LONG).await, self.view);
    }
}

/// A member that speaks for itself, connected with a node.
struct Bad {
    stranger: Stranger,
    hello: Hello,
    held: Held,
    /// What the node says of itself.
    there: Record,
    calls: u64,
}

impl Bad {
    fn new(stranger: Stranger, hello: Hello, held: Held, answer: Answer) -> Self {
        let Answer::Welcome(there) = answer else { panic!("{answer:?}") };
        Bad { stranger, hello, held, there, calls: 0 }
    }

    fn message(&self, to: ActorId, name: &str, call: Option<u64>, payload: Payload) -> Header {
        let (incarnation, key) = (self.there.incarnation, name_hash(name));
        Header::Message { to, incarnation, key, fence: None, call, payload }
    }

    /// Calls an actor and hears what comes of it.
    async fn call(
        &mut self,
        to: ActorId,
        name: &str,
        payload: Payload,
        rest: &[u8],
    ) -> Result<(), Failure> {
        self.calls += 1;
        let number = self.calls;
        let message = self.message(to, name, Some(number), payload);
        self.held.say(&message, rest).await;
        self.answer_to(number).await
    }

    async fn answer_to(&mut self, number: u64) -> Result<(), Failure> {
        let of = move |header| match header {
            Header::Reply { call, .. } if call == number => Some(Ok(())),
            Header::Failed { call, failure } if call == number => Some(Err(failure)),
            _ => None,
        };
        self.held.hear(of).await
    }

    /// A good call, to show that nothing was held against it.
    async fn is_answered(&mut self, to: ActorId) {
        self.call(to, "test.Where", body(&[]), &[]).await.unwrap();
    }

    async fn casts(&mut self, to: ActorId, name: &str, rest: &[u8]) {
        let message = self.message(to, name, None, body(rest));
        self.held.say(&message, rest).await;
    }

    /// Says what is no frame; the node may have closed the connection before all of it was said.
    async fn says(&mut self, bytes: &[u8]) {
        let _ = soon(self.held.send.write_all(bytes)).await;
    }

    async fn bulk(&self) -> quinn::Connection {
        self.stranger.beside(self.there.bulk_addr, self.hello.session).await
    }

    /// Waits until the node ends the connection, and returns the reason that it gives.
    async fn is_thrown_out(&self) -> String {
        match soon(self.held.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                String::from_utf8_lossy(&close.reason).into_owned()
            }
            other => panic!("{other}"),
        }
    }

    async fn is_thrown_out_for(&self, fault: &str, says: &str) {
        let reason = self.is_thrown_out().await;
        assert!(reason.contains(says), "{fault}: {reason:?}, not {says:?}");
    }
}

/// A payload of bytes alone.
fn body(bytes: &[u8]) -> Payload {
    Payload { body: bytes.len() as u32, segments: Vec::new(), streams: Vec::new() }
}

/// What stands in a message for a tensor of `f32`: the first of the message's.
fn tensor(shape: &[u64]) -> Vec<u8> {
    const F32: u8 = 1;
    encoded(&(F32, shape, 0u32))
}

/// A tensor on a stream of its own, as far as it is sent.
async fn segment(
    bulk: &quinn::Connection,
    id: u64,
    length: u64,
    bytes: &[u8],
) -> quinn::SendStream {
    piece(bulk, &segment_head(id, length, (0, 1)), bytes).await
}

/// A tensor, or one piece of it, as far as it is sent.
async fn piece(bulk: &quinn::Connection, head: &[u8], bytes: &[u8]) -> quinn::SendStream {
    let mut stream = soon(bulk.open_uni()).await.unwrap();
    // The node may have closed the connection before all of it was sent.
    let _ = soon(stream.write_all(head)).await;
    let _ = soon(stream.write_all(bytes)).await;
    stream
}

/// bincode's way to write the greatest number.
const GREATEST: [u8; 9] = [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// Frames that are none, each with what its sender is told.
fn no_frames(bad: &Bad, to: ActorId) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    const PARTS: &str = "parts don't add up";
    const HEADER: &str = "header that can't be read";
    let message = |payload| bad.message(to, "test.Where", Some(1), payload);
    let segments = |segments| Payload { segments, ..body(&[]) };
    // A message ends with two empty lists.
    let upto_segments = |header: &Header| encoded(header)[..encoded(header).len() - 2].to_vec();
    let good = encoded(&message(body(&[])));
    let length = |length: usize| (length as u16).to_le_bytes().to_vec();
    let raw = |header_length: usize, rest: &[u8]| {
        let mut frame = ((2 + rest.len()) as u32).to_le_bytes().to_vec();
        frame.extend(length(header_length));
        frame.extend(rest);
        frame
    };
    vec![
        (
            "a frame one byte longer than the limit",
            (MAX_FRAME + 1).to_le_bytes().to_vec(),
            "a frame of 68218883 bytes, at most 68218882 are allowed",
        ),
        ("the greatest length", u32::MAX.to_le_bytes().to_vec(), "a frame of 4294967295 bytes"),
        ("a frame of nothing", 0u32.to_le_bytes().to_vec(), PARTS),
        ("a frame without a whole header length", vec![1, 0, 0, 0, 7], PARTS),
        ("a header longer than its frame", raw(good.len() + 1, &good), PARTS),
        ("the longest header in a short frame", raw(0xffff, &good), PARTS),
        ("a header with a byte too many", raw(good.len() + 1, &[&good[..], &[0]].concat()), PARTS),
        ("a header cut short", raw(good.len() - 1, &good), HEADER),
        ("no header", raw(0, &[]), HEADER),
        ("a body longer than its frame", frame(&message(body(&[0; 100])), &[0; 99]), PARTS),
        (
            "the longest body in a short frame",
            { frame(&message(Payload { body: u32::MAX, ..body(&[]) }), &[0; 99]) },
            PARTS,
        ),
        ("a body shorter than its frame", frame(&message(body(&[0; 100])), &[0; 101]), PARTS),
        (
            "an inline tensor longer than its frame",
            { frame(&message(segments(vec![Segment::Inline { len: 4 }; 2])), &[0; 7]) },
            PARTS,
        ),
        (
            "inline tensors shorter than their frame",
            { frame(&message(segments(vec![Segment::Inline { len: 4 }; 2])), &[0; 9]) },
            PARTS,
        ),
        (
            "a tensor longer than any may be",
            {
                let len = (4 << 30) + 1;
                frame(&message(segments(vec![Segment::Stream { id: 1, len }])), &[])
            },
            "a tensor of 4294967297 bytes",
        ),
        (
            "more tensors than a message may have",
            { frame(&message(segments(vec![Segment::Inline { len: 0 }; 2049])), &[]) },
            "more than 2048 tensors",
        ),
        (
            "more streams than a message may have",
            { frame(&message(Payload { streams: (0..2049).collect(), ..body(&[]) }), &[]) },
            "more than 2048 tensors or streams",
        ),
        (
            "a list of tensors without end",
            { frame_of(&[&upto_segments(&message(body(&[])))[..], &GREATEST].concat(), &[]) },
            HEADER,
        ),
        (
            "a list of streams without end",
            { frame_of(&[&upto_segments(&message(body(&[])))[..], &[0], &GREATEST].concat(), &[]) },
            HEADER,
        ),
        // A membership packet, which is the kind of the number 12: a list of bytes.
        ("bytes without end", frame_of(&[&[12][..], &GREATEST].concat(), &[]), HEADER),
        ("a frame of no kind that there is", frame_of(&[200, 0, 0], &[]), HEADER),
        ("noise", frame_of(&[0xff; 100], &[0xff; 100]), HEADER),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_too_long_or_lies_ends_the_connection_of_its_sender_with_the_reason() {
    let town = Town::new().await;
    let first = town.bad().await;
    let before = kept_for(town.victim.process.pid()).0;
    let faults = no_frames(&first, town.actor()).len();
    for number in 0..faults {
        for on_a_lane in [false, true] {
            let mut bad = town.bad().await;
            let (fault, bytes, says) = no_frames(&bad, town.actor()).swap_remove(number);
            bad.is_answered(town.actor()).await;
            if on_a_lane {
                let mut lane = soon(bad.held.messages().open_uni()).await.unwrap();
                let _ = soon(lane.write_all(&bytes)).await;
                bad.is_thrown_out_for(fault, says).await;
            } else {
                bad.says(&bytes).await;
                bad.is_thrown_out_for(fault, says).await;
            }
            soon(town.probe.call(Where {})).await.unwrap();
        }
    }
    // No memory was taken for what a length only says.
    let most = most_kept_for(town.victim.process.pid());
    println!("KiB resident: {before} before, {most} at most");
    assert!(most <= before + 32 * 1024, "KiB resident: {before}, then {most}");
    town.ends_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_cut_off_or_stopped_ends_the_connection_of_its_sender_with_the_reason() {
    const CUT: &str = "a lane was cut off";
    let town = Town::new().await;
    let whole = {
        let bad = town.bad().await;
        frame(&bad.message(town.actor(), "test.Where", Some(1), body(&[])), &[])
    };
    // In the middle of the length, before the header, in the header; and what is whole before that
    // counts.
    for upto in [2, 4, 5, whole.len() - 1, whole.len() + 3] {
        for reset in [false, true] {
            for on_a_lane in [false, true] {
                let mut bad = town.bad().await;
                bad.is_answered(town.actor()).await;
                let bytes = [&whole[..], &whole].concat();
                let mut lane = soon(bad.held.messages().open_uni()).await.unwrap();
                let stream = if on_a_lane { &mut lane } else { &mut bad.held.send };
                soon(stream.write_all(&bytes[..upto])).await.unwrap();
                match reset {
                    false => stream.finish().unwrap(),
                    true => stream.reset(7u32.into()).unwrap(),
                }
                bad.is_thrown_out_for(&format!("cut after {upto} bytes"), CUT).await;
                soon(town.probe.call(Where {})).await.unwrap();
            }
        }
    }
    // Between two frames a lane may end, but not be taken back.
    let mut bad = town.bad().await;
    let mut lane = soon(bad.held.messages().open_uni()).await.unwrap();
    soon(lane.write_all(&whole)).await.unwrap();
    bad.answer_to(1).await.unwrap();
    lane.reset(7u32.into()).unwrap();
    bad.is_thrown_out_for("reset between two frames", CUT).await;
    // There are four lanes.
    let bad = town.bad().await;
    let lanes = join_all((0..5).map(async |_| {
        let mut lane = bad.held.messages().open_uni().await.unwrap();
        let _ = lane.write_all(&whole).await;
        lane
    }));
    let _lanes = soon(lanes).await;
    bad.is_thrown_out_for("a fifth lane", "more lanes than there are").await;
    // The other way: one who stops what the node says to it.
    let (stranger, _, hello) = town.newcomer();
    let mut bad = town.deaf(stranger, hello).await;
    let call = bad.message(town.actor(), "test.Where", Some(1), body(&[]));
    let call = frame(&call, &[]);
    bad.says(&call).await;
    // Which lane brings the answers is the node's choice, and which it opens first: all are stopped.
    // A stop may overtake an answer or not: some call has its answer behind it.
    let mut stopped = Vec::new();
    until("the node has noticed", async || {
        while let Some(Ok(mut lane)) = bad.held.messages().accept_uni().now_or_never() {
            let _ = lane.stop(7u32.into());
            stopped.push(lane);
        }
        bad.held.send.write_all(&call).await.is_err()
            || bad.held.connection.close_reason().is_some()
    })
    .await;
    assert!(!stopped.is_empty());
    bad.is_thrown_out_for("lanes that are stopped", "stopped reading a lane").await;
    town.ends_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_nobody_knows_or_that_is_none_fails_its_own_call_and_nothing_else() {
    let town = Town::new().await;
    let mut bad = town.bad().await;
    let to = town.actor();
    let why = |failed: Result<(), Failure>| {
        let failure = failed.unwrap_err();
        assert_eq!(failure.fate, Fate::NotSent, "{failure}");
        failure.cause
    };
    let cause = why(bad.call(to, "test.no_such_message", body(&[1, 2, 3]), &[1, 2, 3]).await);
    assert!(
        matches!(&cause, Cause::Refused(why) if why.contains("takes no such message")),
        "{cause}"
    );
    let nobody = ActorId(0xffff_ffff);
    let cause = why(bad.call(nobody, "test.Where", body(&[]), &[]).await);
    assert_eq!(cause, Cause::NoSuchActor);
    // A past life of the node.
    let incarnation = std::mem::replace(&mut bad.there.incarnation, Incarnation(1));
    let cause = why(bad.call(to, "test.Where", body(&[]), &[]).await);
    assert_eq!(cause, Cause::NodeLost(town.victim.id));
    bad.there.incarnation = incarnation;

    // Bytes that are no such message: too few, too many, noise, and lengths that lie.
    for (what, name, bytes) in [
        ("a text cut short", "test.Echo", vec![3, b'a', b'b']),
        ("a text with more behind it", "test.Echo", vec![1, b'a', b'b']),
        ("a text that is none", "test.Echo", vec![2, 0xff, 0xfe]),
        ("a text without end", "test.Echo", GREATEST.to_vec()),
        ("nothing", "test.Echo", vec![]),
        ("something in place of nothing", "test.Where", vec![0]),
        ("a number too large for its field", "test.Shaped", GREATEST.to_vec()),
        ("a tensor that did not come", "test.Mirror", tensor(&[1])),
        ("a shape without end", "test.Mirror", [&[1][..], &GREATEST].concat()),
    ] {
        let failed = bad.call(to, name, body(&bytes), &bytes).await;
        assert!(failed.is_err(), "{what} was taken");
        let cause = why(failed);
        assert!(matches!(cause, Cause::CannotDecode(_)), "{what}: {cause}");
        // The same as a cast: nobody is told, and the log says it.
        bad.casts(to, name, &bytes).await;
    }
    bad.casts(to, "test.no_such_message", &[]).await;
    bad.casts(nobody, "test.Where", &[]).await;
    bad.is_answered(to).await;
    until("the node's log says it", async || {
        let log = town.victim.process.stderr().join("\n");
        log.contains("a cast was refused") && log.contains("a message could not be decoded")
    })
    .await;
    // Answers to what was never asked.
    let reply = Header::Reply { call: 12_345, payload: body(&[1, 2, 3]) };
    bad.held.say(&reply, &[1, 2, 3]).await;
    bad.held.say(&Header::StreamItem { stream: 9, payload: body(&[]) }, &[]).await;
    bad.is_answered(to).await;
    town.ends_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tensor_whose_shape_and_bytes_disagree_fails_its_own_call_and_nothing_else() {
    let town = Town::new().await;
    let mut bad = town.bad().await;
    let bulk = bad.bulk().await;
    let to = town.actor();
    const ROWS: u64 = 10_000;
    for (what, shape, says) in [
        ("too few elements", vec![ROWS - 1], "but there are"),
        ("too many", vec![ROWS, 2], "but there are"),
        ("more than memory can have", vec![u64::MAX, u64::MAX], "larger than the address space"),
        ("none", vec![0], "but there are"),
        ("too many axes", vec![1; 17], "at most 16 axes"),
    ] {
        let description = tensor(&shape);
        for on_a_stream in [false, true] {
            let (bytes, number) = (vec![0; 4 * ROWS as usize], bad.calls + 1);
            let len = bytes.len() as u32;
            let segment_is = match on_a_stream {
                true => Segment::Stream { id: number, len: len.into() },
                false => Segment::Inline { len },
            };
            let payload = Payload { segments: vec![segment_is], ..body(&description) };
            let mut rest = description.clone();
            if on_a_stream {
                let mut stream = segment(&bulk, number, len.into(), &bytes).await;
                stream.finish().unwrap();
            } else {
                rest.extend(&bytes);
            }
            let failure = bad.call(to, "test.Mirror", payload, &rest).await.unwrap_err();
            assert_eq!(failure.fate, Fate::NotSent, "{what}: {failure}");
            assert!(
                matches!(&failure.cause, Cause::CannotDecode(why) if why.contains(says)),
                "{what}, on a stream: {on_a_stream}: {failure}"
            );
        }
    }
    // One that is right comes back on the same connections.
    let description = tensor(&[ROWS]);
    let segments = vec![Segment::Stream { id: 1_000, len: 4 * ROWS }];
    let mut stream = segment(&bulk, 1_000, 4 * ROWS, &vec![0; 4 * ROWS as usize]).await;
    stream.finish().unwrap();
    let message = Payload { segments, ..body(&description) };
    bad.calls += 1;
    let note = bad.message(to, "test.Mirror", Some(bad.calls), message);
    bad.held.say(&note, &description).await;
    bad.answer_to(bad.calls).await.unwrap();
    town.ends_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tensor_that_is_cut_off_or_not_as_announced_ends_the_connection_with_the_reason() {
    #[derive(Clone, Copy)]
    enum End {
        Finish,
        Reset,
        Open,
    }
    const ID: u64 = 7;
    const LEN: u64 = 40_000;
    let town = Town::new().await;
    let before = kept_for(town.victim.process.pid()).0;
    // What its message says of a tensor's length, what its stream says, how much comes, how it ends.
    for (fault, announced, length, bytes, end, says) in [
        ("shorter than its message says", LEN, LEN - 4, LEN - 4, End::Finish, "announced 40000"),
        ("longer than its message says", LEN, LEN + 4, LEN + 4, End::Finish, "announced 40000"),
        ("finished early", LEN, LEN, LEN - 1, End::Finish, "ended after 39999 of 40000 bytes"),
        ("more than it says", LEN, LEN, LEN + 1, End::Open, "goes on after the 40000 bytes"),
        ("reset", LEN, LEN, LEN / 2, End::Reset, "a tensor was cut off"),
        ("longer than any may be", LEN, (4 << 30) + 1, 0, End::Open, "at most 4294967296"),
        // One this long gets no memory before it comes; a message may say the same.
        ("a large one, finished early", 4 << 30, 4 << 30, LEN, End::Finish, "ended after 40000 of"),
        ("a large one that no message announces", 0, 4 << 30, LEN, End::Reset, "cut off"),
        ("the same, finished early", 0, 4 << 30, LEN, End::Finish, "ended after 40000 of"),
    ] {
        let mut bad = town.bad().await;
        bad.is_answered(town.actor()).await;
        let bulk = bad.bulk().await;
        if announced > 0 {
            let description = tensor(&[announced / 4]);
            let segments = vec![Segment::Stream { id: ID, len: announced }];
            let payload = Payload { segments, ..body(&description) };
            let message = bad.message(town.actor(), "test.Mirror", Some(99), payload);
            bad.held.say(&message, &description).await;
            // It has been read once a later call to another actor is answered.
            let _ = bad.call(ActorId(0xffff_ffff), "test.Where", body(&[]), &[]).await;
        }
        let mut stream = segment(&bulk, ID, length, &vec![0; bytes as usize]).await;
        match end {
            End::Finish => drop(stream.finish()),
            End::Reset => drop(stream.reset(7u32.into())),
            End::Open => {}
        }
        bad.is_thrown_out_for(fault, says).await;
        soon(bulk.closed()).await;
        soon(town.probe.call(Where {})).await.unwrap();
    }
    // In the middle of what stands before the bytes; twice the same; and the whole connection.
    let bad = town.bad().await;
    let bulk = bad.bulk().await;
    let mut stream = soon(bulk.open_uni()).await.unwrap();
    soon(stream.write_all(&[1; 15])).await.unwrap();
    stream.finish().unwrap();
    bad.is_thrown_out_for("without a whole length", "a tensor was cut off").await;

    let bad = town.bad().await;
    let bulk = bad.bulk().await;
    for _ in 0..2 {
        let _ = segment(&bulk, ID, 4, &[0; 4]).await.finish();
    }
    bad.is_thrown_out_for("sent twice", "tensor 7 was sent twice").await;

    // In pieces: each comes once, all agree, none is longer or shorter than it should be.
    for (fault, pieces, says) in [
        ("a piece sent twice", [(LEN, (1, 2), 20_000), (LEN, (1, 2), 20_000)], "1 of tensor 7 was"),
        ("another length", [(LEN, (0, 2), 20_000), (LEN + 2, (1, 2), 20_001)], "don't agree"),
        ("another number", [(LEN, (0, 2), 20_000), (LEN, (1, 3), 13_334)], "don't agree"),
        ("too many", [(LEN, (0, 2), 20_000), (LEN, (1, 17), 10)], "more pieces than there can be"),
        ("a piece beyond the last", [(LEN, (0, 2), 20_000), (LEN, (2, 2), 10)], "more pieces than"),
        ("a long one", [(LEN, (0, 2), 20_000), (LEN, (1, 2), 20_001)], "goes on after the 20000"),
        (
            "a short one",
            [(LEN, (0, 2), 20_000), (LEN, (1, 2), 19_999)],
            "ended after 19999 of 20000",
        ),
    ] {
        let bad = town.bad().await;
        let bulk = bad.bulk().await;
        for (length, which, bytes) in pieces {
            let head = segment_head(ID, length, which);
            let _ = piece(&bulk, &head, &vec![0; bytes]).await.finish();
        }
        bad.is_thrown_out_for(fault, says).await;
    }
    // A piece of a large one that no message announces takes no memory, whatever comes of it.
    let bad = town.bad().await;
    let bulk = bad.bulk().await;
    let _large = piece(&bulk, &segment_head(ID, 4 << 30, (0, 2)), &[0; 1000]).await;

    let bad = town.bad().await;
    let mut connections = Vec::new();
    for _ in 0..16 {
        connections.push(bad.bulk().await);
    }
    let (stranger, door, session) = (bad.stranger.clone(), bad.there.bulk_addr, bad.hello.session);
    // It may be closed before it has heard that the session is known.
    let _one_more = tokio::spawn(async move { stranger.beside(door, session).await }).await;
    bad.is_thrown_out_for("connections without end", "more connections for tensors").await;

    let bad = town.bad().await;
    let bulk = bad.bulk().await;
    bulk.close(7u32.into(), b"");
    bad.is_thrown_out_for("a closed connection", "the bulk connection ended").await;

    let most = most_kept_for(town.victim.process.pid());
    println!("KiB resident: {before} before, {most} at most");
    assert!(most <= before + 32 * 1024, "KiB resident: {before}, then {most}");
    town.ends_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_past_its_window_is_thrown_out_and_the_windows_of_others_stay_open() {
    let town = Town::new().await;
    let slow = soon(town.here.spawn::<Probe>(()).on(Placement::node(town.victim.id))).await;
    let slow = slow.unwrap();
    let block = tokio::spawn({
        let slow = slow.clone();
        async move { slow.call(Block {}).await }
    });
    until("the actor is blocked", async || soon(town.probe.call(Blocked {})).await.unwrap()).await;
    let fault = &format!("more than {WINDOW} messages or {WINDOW_BYTES} bytes unread");
    // By messages.
    let note = encoded(&(0u64, None::<u8>));
    let mut bad = town.bad().await;
    for _ in 0..WINDOW {
        bad.casts(slow.addr().actor, "test.Note", &note).await;
    }
    // That was its right; another actor answers it.
    bad.is_answered(town.actor()).await;
    bad.casts(slow.addr().actor, "test.Note", &note).await;
    bad.is_thrown_out_for("a message too many", fault).await;
    // By bytes: of messages, and of tensors that are only announced.
    let mut bad = town.bad().await;
    for _ in 0..3 {
        let bytes = vec![0; 22 * MIB];
        let message = bad.message(slow.addr().actor, "test.Note", None, body(&bytes));
        bad.says(&frame(&message, &bytes)).await;
    }
    bad.is_thrown_out_for("bytes too many", fault).await;
    let mut bad = town.bad().await;
    for id in 0..2 {
        let segments = vec![Segment::Stream { id, len: 33 << 20 }];
        let payload = Payload { segments, ..body(&[]) };
        let message = bad.message(slow.addr().actor, "test.Note", None, payload);
        bad.says(&frame(&message, &[])).await;
    }
    bad.is_thrown_out_for("announced bytes too many", fault).await;
    // Others have windows of their own to the same actor, and all actors but the blocked one answer.
    slow.try_cast(Note { number: 1, tensor: None }).unwrap();
    town.goes_on().await;
    soon(town.probe.call(Unblock {})).await.unwrap();
    soon(block).await.unwrap().unwrap();
    // What came within the window counts, and what could not be decoded has done no harm.
    let notes = soon(slow.call(Notes {})).await.unwrap();
    assert_eq!(notes.iter().filter(|number| **number == 0).count(), WINDOW);
    assert_eq!(notes.iter().filter(|number| **number == 1).count(), 1);
    town.ends_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_fails_the_call_that_it_is_for_and_says_so() {
    let town = Town::new().await;
    let here = town.here.addr();
    /// The number of the next call that arrives.
    async fn asked(bad: &mut Bad) -> u64 {
        let call = |header| match header {
            Header::Message { call, .. } => call,
            _ => None,
        };
        bad.held.hear(call).await
    }
    let actor = |bad: &Bad| {
        let Record { node, incarnation, .. } = bad.hello.record;
        ActorRef::<Probe>::at(
            ActorAddr { node, incarnation, actor: ActorId(77) },
            town.here.system(),
        )
    };
    let mut bad = town.bad_at(here).await;
    let there = actor(&bad);
    // Noise, and then a tensor of another shape than its bytes.
    let answers = async {
        let reply = Header::Reply { call: asked(&mut bad).await, payload: body(&[0xff; 3]) };
        bad.held.say(&reply, &[0xff; 3]).await;
    };
    let error = soon(join(there.call(Where {}), answers)).await.0.unwrap_err();
    assert_eq!(error.fate(), Fate::MayHaveRun);
    assert!(matches!(error.cause(), Cause::CannotDecode(_)), "{error}");

    let description = tensor(&[3]);
    let answers = async {
        let payload = Payload { segments: vec![Segment::Inline { len: 8 }], ..body(&description) };
        let rest = [&description[..], &[0; 8]].concat();
        let call = asked(&mut bad).await;
        bad.held.say(&Header::Reply { call, payload }, &rest).await;
    };
    let error = soon(join(there.call(Ones { bytes: 8 }), answers)).await.0.unwrap_err();
    assert_eq!(error.fate(), Fate::MayHaveRun);
    assert!(error.to_string().contains("takes 12 bytes, but there are 8"), "{error}");

    // A stream of items that does not wait for its reader.
    let answers = async {
        let payload = Payload { streams: vec![5], ..body(&[0]) };
        let call = asked(&mut bad).await;
        bad.held.say(&Header::Reply { call, payload }, &[0]).await;
    };
    let numbers = soon(join(there.call(Count { to: 1_000 }), answers)).await.0;
    let mut numbers = numbers.unwrap();
    for _ in 0..STREAM_WINDOW + 2 {
        let item = Header::StreamItem { stream: 5, payload: body(&[1]) };
        bad.says(&frame(&item, &[1])).await;
    }
    bad.is_thrown_out_for("more items than the window", "ran ahead of its window").await;
    let last = soon(async {
        loop {
            match numbers.next().await {
                Some(Ok(1)) => {}
                other => return other,
            }
        }
    });
    assert!(matches!(last.await, Some(Err(_))), "a stream that was cut off ends with an error");

    // The connection ends in the middle of an answer.
    let mut bad = town.bad_at(here).await;
    let there = actor(&bad);
    let answers = async {
        let reply = Header::Reply { call: asked(&mut bad).await, payload: body(&[0; 100]) };
        bad.says(&frame(&reply, &[0; 100])[..50]).await;
        bad.held.send.finish().unwrap();
    };
    let error = soon(join(there.call(Where {}), answers)).await.0.unwrap_err();
    assert_eq!(error.fate(), Fate::MayHaveRun);
    assert!(
        matches!(error.cause(), Cause::Unreachable(why) if why.contains("in the middle of a frame")),
        "{error}"
    );
    town.ends_as_before().await;
}

/// What one call asks for, and how many calls: more than a node keeps for one who does not read.
const ANSWER: usize = 2 * MIB;
const ANSWERS: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_much_and_never_reads_is_thrown_out_and_what_is_kept_for_it_is_bounded() {
    let town = Town::new().await;
    let (stranger, _, hello) = town.newcomer();
    let mut bad = town.deaf(stranger, hello).await;
    let before = kept_for(town.victim.process.pid()).0;
    let ask = encoded(&ANSWER);
    for number in 0..ANSWERS {
        let message = bad.message(town.actor(), "test.Text", Some(number), body(&ask));
        bad.says(&frame(&message, &ask)).await;
    }
    bad.is_thrown_out_for("it never reads", "the peer does not read what it asked for").await;
    town.goes_on().await;
    let most = most_kept_for(town.victim.process.pid());
    println!("KiB resident: {before} before, {most} at most");
    // 256 MiB of answers, and what is in hand.
    assert!(most <= before + (256 + 64) * 1024, "KiB resident: {before}, then {most}");
    town.ends_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_its_tensors_is_thrown_out_and_they_go() {
    const TENSOR: usize = 4 * MIB;
    /// More than a node keeps for one who does not read.
    const TENSORS: u64 = 200;
    let town = Town::new().await;
    let pid = town.victim.process.pid();
    let before = kept_for(pid).0;
    let ask = encoded(&TENSOR);
    // One who does not even answer when its tensors are to be brought.
    let (stranger, _, hello) = town.newcomer();
    let mut bad = town.deaf(stranger, hello).await;
    let message = bad.message(town.actor(), "test.Ones", Some(1), body(&ask));
    bad.says(&frame(&message, &ask)).await;
    bad.is_thrown_out_for("nobody takes them", "the bulk connection failed").await;

    // Twice: nothing of the first is kept while the second comes.
    for _ in 0..2 {
        let (stranger, shown, hello) = town.newcomer();
        stranger.listen(&shown, MEMBERS);
        let mut bad = town.deaf(stranger, hello).await;
        for number in 0..TENSORS {
            let message = bad.message(town.actor(), "test.Ones", Some(number), body(&ask));
            bad.says(&frame(&message, &ask)).await;
        }
        let bulk = bad.stranger.take_bulk().await;
        bad.is_thrown_out_for("it never reads", "has read nothing of the tensors").await;
        soon(bulk.closed()).await;
        town.goes_on().await;
    }
    let (most, now) = (most_kept_for(pid), kept_for(pid).0);
    println!("KiB resident: {before} before, {most} at most, {now} now");
    // 256 MiB of answers, and what is in hand.
    assert!(most <= before + (256 + 64) * 1024, "KiB resident: {before}, then {most}");
    assert!(now <= before + 64 * 1024, "KiB resident: {before}, now {now}");
    town.ends_as_before().await;
}
