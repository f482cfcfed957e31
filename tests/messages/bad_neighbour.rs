//! A member of the same host that says something false about its memory, or borrows and gives nothing back,
//! gains nothing by it: it is told so and loses its connection, or its tensors come over the network.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
};

use footlight::{
    cluster::trust::Role,
    prelude::*,
    runtime::{ActorId, NodeId, message::name_hash},
};
use quinn::ConnectionError;

use crate::stranger::{Held, *};
use crate::support::{
    memory::{kept_for, most_kept_for},
    *,
};

/// A tensor of f32 that does not travel within its frame.
const LEN: usize = 400_000;

/// A node in a process of its own, and an actor of it.
struct Street {
    cluster: Cluster,
    _here: Node,
    victim: NodeProcess,
    probe: ActorRef<Probe>,
    strangers: AtomicU64,
}

/// This process, as a member of the cluster that speaks for itself.
struct Neighbour {
    stranger: Stranger,
    held: Held,
    there: Record,
    session: u64,
    to: ActorId,
    /// Where the node says that it is.
    place: Place,
}

impl Street {
    async fn new() -> Self {
        let cluster = Cluster::new();
        let here = cluster.here(Options::default()).await;
        let victim = cluster.process("victim", Options::join(here.addr())).await;
        sees_up(&here, 2).await;
        let probe = soon(here.spawn::<Probe>(()).on(Placement::node(victim.id))).await.unwrap();
        Street { cluster, _here: here, victim, probe, strangers: AtomicU64::new(0xbad0) }
    }

    async fn neighbour(&self) -> Neighbour {
        let node = NodeId(self.strangers.fetch_add(1, Ordering::Relaxed));
        let shown = Forge::of_cluster(self.cluster.state()).certificate(&names(node, Role::Node));
        let stranger = Stranger::new(Ipv4Addr::new(127, 0, 0, 77), Some(&shown), MEMBERS);
        stranger.listen(&shown, MEMBERS);
        let mut hello = Hello::of(node, stranger.addr(), Purpose::Member);
        hello.record.catalog = self.probe.system().catalog().clone();
        let (mut held, answer) = stranger.greet(self.victim.addr, &hello).await;
        let Answer::Welcome(there) = answer else { panic!("{answer:?}") };
        let place = held
            .hear(|header| match header {
                Header::Lend(place) => Some(place),
                _ => None,
            })
            .await;
        let to = self.probe.addr().actor;
        Neighbour { stranger, held, there, session: hello.session, to, place }
    }

    async fn goes_on(&self) {
        let (node, process) = soon(self.probe.call(Where {})).await.unwrap();
        assert_eq!((node, process), (self.victim.id, self.victim.process.pid()));
    }
}

impl Neighbour {
    /// This process, with a proof at an address.
    fn own_place(&self, proof: u64) -> Place {
        Place { process: std::process::id() as i32, proof, ..self.place }
    }

    /// What a node is asked for that has said where it is.
    async fn challenge(&mut self) -> [u64; 4] {
        let prove = |header| match header {
            Header::Prove(challenge) => Some(challenge),
            _ => None,
        };
        self.held.hear(prove).await
    }

    async fn call(&mut self, call: u64, name: &str, body: &[u8], segments: Vec<Segment>) {
        let payload = Payload { body: body.len() as u32, segments, streams: Vec::new() };
        let (to, incarnation) = (self.to, self.there.incarnation);
        let key = name_hash(name);
        let message =
            Header::Message { to, incarnation, key, fence: None, call: Some(call), payload };
        self.held.say(&message, body).await;
    }

    /// A message with a tensor that is to come.
    async fn announces(&mut self, id: u64) {
        const F32: u8 = 1;
        let description = encoded(&(F32, &[LEN as u64 / 4][..], 0u32));
        let segments = vec![Segment::Stream { id, len: LEN as u64 }];
        self.call(id, "test.Mirror", &description, segments).await;
    }

    async fn lends(&mut self, id: u64, at: u64) {
        self.held.say(&Header::Lent { id, at, len: LEN as u64 }, &[]).await;
    }

    async fn is_fetched(&mut self, wanted: u64) -> bool {
        let fetched = move |header| match header {
            Header::Fetched { id, whole } if id == wanted => Some(whole),
            _ => None,
        };
        self.held.hear(fetched).await
    }

    async fn is_thrown_out_for(&self, says: &str) {
        match soon(self.held.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                assert!(reason.contains(says), "{reason:?}, not {says:?}");
            }
            other => panic!("{other}"),
        }
    }
}

fn address<T: ?Sized>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<u8>() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lends_what_was_not_announced_or_not_asked_for_is_thrown_out() {
    let street = Street::new().await;
    let memory = vec![7u8; LEN];

    let mut bad = street.neighbour().await;
    bad.lends(7, address(&memory[..])).await;
    bad.is_thrown_out_for("has lent tensor 7, which no message names").await;

    let mut bad = street.neighbour().await;
    bad.announces(7).await;
    bad.lends(7, address(&memory[..])).await;
    bad.is_thrown_out_for("was not asked for its proof").await;

    // Of another length than its message says.
    let mut bad = street.neighbour().await;
    bad.announces(7).await;
    bad.held.say(&Header::Lent { id: 7, at: address(&memory[..]), len: 4 << 30 }, &[]).await;
    bad.is_thrown_out_for("has lent tensor 7, which no message names").await;

    let mut bad = street.neighbour().await;
    let place = bad.own_place(address(&memory[..]));
    bad.held.say(&Header::Lend(place), &[]).await;
    bad.held.say(&Header::Lend(place), &[]).await;
    bad.is_thrown_out_for("says twice where its memory is").await;

    // The node itself is nobody's neighbour.
    let mut bad = street.neighbour().await;
    let itself = bad.place;
    bad.held.say(&Header::Lend(itself), &[]).await;
    bad.announces(7).await;
    bad.lends(7, itself.proof).await;
    bad.is_thrown_out_for("was not asked for its proof").await;
    street.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_not_proven_is_not_taken_and_the_tensor_may_come_over_the_network() {
    let street = Street::new().await;
    let memory = vec![0u8; LEN];
    let proof: Box<[AtomicU64; 4]> = Box::default();
    for (what, at, proven) in [
        ("without the challenge in the memory", address(&memory[..]), false),
        ("an address that is not there", 8, true),
        ("the last address that there can be", u64::MAX, true),
    ] {
        let mut bad = street.neighbour().await;
        let place = bad.own_place(address(&*proof));
        bad.held.say(&Header::Lend(place), &[]).await;
        let challenge = bad.challenge().await;
        for (word, value) in proof.iter().zip(challenge) {
            word.store(if proven { value } else { !value }, Ordering::SeqCst);
        }
        bad.announces(7).await;
        bad.lends(7, at).await;
        assert!(!bad.is_fetched(7).await, "{what}");
        let bulk = bad.stranger.beside(bad.there.bulk_addr, bad.session).await;
        let mut stream = soon(bulk.open_uni()).await.unwrap();
        let head = segment_head(7, LEN as u64, (0, 1));
        soon(stream.write_all(&head)).await.unwrap();
        soon(stream.write_all(&memory)).await.unwrap();
        stream.finish().unwrap();
        let answered = |header| matches!(header, Header::Reply { call: 7, .. }).then_some(());
        bad.held.hear(answered).await;
    }
    // One who shows what it was asked for, to show that nothing else was missing.
    let mut good = street.neighbour().await;
    let place = good.own_place(address(&*proof));
    good.held.say(&Header::Lend(place), &[]).await;
    let challenge = good.challenge().await;
    proof.iter().zip(challenge).for_each(|(word, value)| word.store(value, Ordering::SeqCst));
    good.announces(7).await;
    good.lends(7, address(&memory[..])).await;
    // On two lanes, so in either order.
    let (mut fetched, mut answered) = (false, false);
    while !(fetched && answered) {
        let next = |header| match header {
            Header::Fetched { id: 7, whole } => Some((Some(whole), false)),
            Header::Reply { call: 7, .. } => Some((None, true)),
            _ => None,
        };
        let (whole, reply) = good.held.hear(next).await;
        assert_ne!(whole, Some(false));
        fetched |= whole.is_some();
        answered |= reply;
    }
    street.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_borrows_and_never_fetches_is_thrown_out_and_the_memory_is_free() {
    const TENSOR: usize = 4 << 20;
    const TENSORS: u64 = 32;
    let street = Street::new().await;
    let pid = street.victim.process.pid();
    let before = kept_for(pid).0;
    // Twice: nothing of the first is kept while the second comes.
    for _ in 0..2 {
        let mut bad = street.neighbour().await;
        bad.held.say(&Header::Prove([1; 4]), &[]).await;
        for call in 0..TENSORS {
            bad.call(call, "test.Ones", &encoded(&TENSOR), Vec::new()).await;
        }
        bad.held.hear(|header| matches!(header, Header::Lent { .. }).then_some(())).await;
        bad.is_thrown_out_for("has fetched nothing of the tensors lent to it").await;
        street.goes_on().await;
    }
    let most = most_kept_for(pid);
    println!("KiB resident: {before} before, {most} at most");
    let asked = TENSORS * TENSOR as u64 / 1024;
    assert!(most <= before + asked + 64 * 1024, "KiB resident: {before}, then {most}");
}
