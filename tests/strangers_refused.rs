//! Whoever has no right to be heard is refused (TR-1, TR-6), and takes up nothing (TR-9): the members
//! go on calling each other meanwhile, nobody is declared down, and the node that is bothered keeps
//! its size.

#[path = "support/steady.rs"]
mod steady;
#[path = "support/stranger.rs"]
mod stranger;
mod support;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use footlight::{
    cluster::{
        membership::{MemberId, Settings, Swim, SwimAction},
        trust::Role,
    },
    prelude::*,
    runtime::{Incarnation, NodeId},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use steady::Steady;
use stranger::*;
use support::{memory::kept_for, *};
use tokio::{
    sync::{Mutex, MutexGuard, Semaphore},
    task::JoinSet,
    time::interval,
};

/// TLS's words (RFC 8446, 6.2).
const CERTIFICATE_EXPIRED: u8 = 45;
const UNKNOWN_CA: u8 = 48;
const DECRYPT_ERROR: u8 = 51;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Strangers come from other addresses than the members, as they would on a network.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}

/// One test at a time: what one of them does to its cluster must not be felt in another.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Three members in processes of their own, and one here that calls them.
struct Town {
    _alone: MutexGuard<'static, ()>,
    cluster: Cluster,
    here: Node,
    nodes: Vec<NodeProcess>,
    view: View,
}

impl Town {
    async fn new() -> Self {
        let _alone = ALONE.lock().await;
        let cluster = Cluster::new();
        let here = cluster.here(Options::default()).await;
        let mut nodes = Vec::new();
        for name in ["a", "b", "c"] {
            nodes.push(cluster.process(name, Options::join(here.addr())).await);
        }
        let view = one_view(&here, 4, LONG).await;
        Town { _alone, cluster, here, nodes, view }
    }

    async fn steady(&self) -> Steady {
        let nodes: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        Steady::begin(&self.here, &nodes).await
    }

    /// The addresses of the sockets of the node that is bothered, the one for control first; the
    /// others are for messages and for tensors.
    fn doors(&self) -> [SocketAddr; 3] {
        let ports = udp_ports(self.nodes[0].process.pid());
        let control = self.nodes[0].addr;
        let beside: Vec<u16> = ports.into_iter().filter(|port| *port != control.port()).collect();
        let [a, b] = beside[..] else { panic!("a node has three sockets, not 1 and {beside:?}") };
        [control, (Ipv4Addr::LOCALHOST, a).into(), (Ipv4Addr::LOCALHOST, b).into()]
    }

    fn log(&self) -> String {
        self.nodes[0].process.stderr().join("\n")
    }

    /// Whatever happened, the members are the same, in the same lives.
    async fn ends_as_before(self, steady: Steady) {
        steady.end().await;
        assert_eq!(one_view(&self.here, 4, LONG).await, self.view);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_certificate_that_counts_is_refused_within_tls_on_every_socket() {
    let town = Town::new().await;
    let steady = town.steady().await;
    let (ours, theirs) = (Forge::of_cluster(town.cluster.state()), Forge::another());
    let node = names(NodeId(0xbad), Role::Node);
    let good = ours.certificate(&node);
    let expired = ours.until(&node, 2025);
    let foreign = theirs.certificate(&node);
    let nameless = ours.certificate(&["localhost".to_owned()]);
    let two = ours.certificate(&[node.clone(), names(NodeId(0xbad2), Role::Node)].concat());
    let king = ours.certificate(&[node[0].clone(), "king.role.footlight".to_owned()]);
    let somebody = Stranger::new(ELSEWHERE, None, MEMBERS);
    for door in town.doors() {
        let refused = |shown, alpn| {
            let stranger = somebody.showing(shown, alpn);
            async move { stranger.is_refused(door).await }
        };
        assert_eq!(refused(None, MEMBERS).await, Refused::Alert(CERTIFICATE_REQUIRED));
        assert_eq!(refused(None, "h3").await, Refused::Alert(NO_APPLICATION_PROTOCOL));
        assert_eq!(refused(Some(&expired), MEMBERS).await, Refused::Alert(CERTIFICATE_EXPIRED));
        // The other authority calls itself as ours does: then it is its signature that is wrong.
        let foreign = refused(Some(&foreign), MEMBERS).await;
        assert!([UNKNOWN_CA, DECRYPT_ERROR].map(Refused::Alert).contains(&foreign), "{foreign:?}");
        for no_node in [&nameless, &two, &king] {
            let refused = refused(Some(no_node), MEMBERS).await;
            assert!(matches!(refused, Refused::Alert(_)), "{refused:?}");
        }
        // One that counts is taken by TLS, so what was refused above was refused for its certificate.
        let taken = somebody.showing(Some(&good), MEMBERS).connect(door).await.unwrap();
        taken.close(0u32.into(), b"");
    }
    // The node that was asked says in its log who came and why nobody was taken.
    until("it says so", async || {
        let log = town.log();
        log.contains("127.0.0.66") && log.contains("the certificate of one of the two has ended")
    })
    .await;
    town.ends_as_before(steady).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_another_node_neither_in_a_greeting_nor_in_membership() {
    let town = Town::new().await;
    let steady = town.steady().await;
    let forge = Forge::of_cluster(town.cluster.state());
    let (me, victim) = (NodeId(0xb0b), &town.nodes[1]);
    let shown = forge.certificate(&names(me, Role::Worker));
    let stranger = Stranger::new(ELSEWHERE, Some(&shown), MEMBERS);
    let door = town.nodes[0].addr;

    // Greets as a member that there is.
    let hello = Hello::of(victim.id, stranger.addr(), Purpose::Member);
    let (held, answer) = stranger.greet(door, &hello).await;
    let Answer::Refused(refusal) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal, Refusal::NotYou { certificate: me, greeting: victim.id });
    soon(held.connection.closed()).await;
    // And as the node that it asks.
    let own = forge.certificate(&names(town.nodes[0].id, Role::Worker));
    let hello = Hello::of(town.nodes[0].id, stranger.addr(), Purpose::Member);
    let (_, answer) = stranger.showing(Some(&own), MEMBERS).greet(door, &hello).await;
    assert!(matches!(answer, Answer::Refused(Refusal::Yourself)), "{answer:?}");

    // Greets as itself, and then says as the other one that a third is down.
    let hello = Hello::of(me, stranger.addr(), Purpose::Member);
    let (held, answer) = stranger.greet(door, &hello).await;
    assert!(matches!(answer, Answer::Welcome(_)), "{answer:?}");
    let member = |node: &NodeProcess| MemberId::new(node.id, node.incarnation, node.addr);
    let accused = member(&town.nodes[2]);
    for packet in [gossip_of_a_death(member(victim), member(&town.nodes[0]), accused)]
        .into_iter()
        .chain(announcements(member(victim), member(&town.nodes[0])))
    {
        held.connection.send_datagram(packet.into()).unwrap();
    }
    until("the packets are found out", async || {
        let log = town.log();
        log.matches("a membership packet was ignored").count() >= 2
    })
    .await;
    assert!(town.log().contains(&victim.id.to_string()), "{}", town.log());
    held.connection.close(0u32.into(), b"");
    town.ends_as_before(steady).await;
}

/// A packet by hand, as the membership's codec describes it: gossip from one member to another that
/// a third is down.
fn gossip_of_a_death(from: MemberId, to: MemberId, dead: MemberId) -> Vec<u8> {
    const GOSSIP: u8 = 8;
    const DOWN: u8 = 2;
    let id = |member: MemberId| {
        let SocketAddr::V4(addr) = member.addr else { panic!("{member}") };
        let mut bytes = member.node.0.to_be_bytes().to_vec();
        bytes.extend(member.incarnation.0.to_be_bytes());
        bytes.push(4);
        bytes.extend(addr.ip().octets());
        bytes.extend(addr.port().to_be_bytes());
        bytes
    };
    let counter = [0, 0];
    let mut packet = [id(from), counter.to_vec(), id(to), vec![GOSSIP]].concat();
    packet.extend([&[0, 1][..], &id(dead), &counter, &[DOWN]].concat());
    packet
}

/// What a member says that wants to join another one.
fn announcements(from: MemberId, to: MemberId) -> Vec<Vec<u8>> {
    let mut swim = Swim::new(from, Settings::lan(), &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
    swim.join(to);
    let actions = swim.take_actions().into_iter();
    let packets = actions.filter_map(|action| match action {
        SwimAction::Send { data, .. } => Some(data.to_vec()),
        _ => None,
    });
    let packets: Vec<_> = packets.collect();
    assert!(!packets.is_empty());
    packets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_s_certificate_makes_no_member() {
    let town = Town::new().await;
    let steady = town.steady().await;
    let (me, door) = (NodeId(0xeee), town.nodes[0].addr);
    let forge = Forge::of_cluster(town.cluster.state());
    let shown = forge.certificate(&names(me, Role::Observer));
    let stranger = Stranger::new(ELSEWHERE, Some(&shown), MEMBERS);
    let hello = Hello::of(me, stranger.addr(), Purpose::Member);
    let (held, answer) = stranger.greet(door, &hello).await;
    assert!(
        matches!(answer, Answer::Refused(Refusal::NoMember { role: Role::Observer })),
        "{answer:?}"
    );
    soon(held.connection.closed()).await;
    // As one who asks it is let in. Its packets of membership count for nothing: of datagrams no
    // notice is taken, so that what it asks behind them is answered; a frame ends the connection.
    let hello = Hello::of(me, stranger.addr(), Purpose::Observer);
    let (mut held, answer) = stranger.greet(door, &hello).await;
    let Answer::Welcome(there) = answer else { panic!("{answer:?}") };
    let accused = &town.nodes[2];
    let accused = MemberId::new(accused.id, accused.incarnation, accused.addr);
    let itself = MemberId::new(me, Incarnation(1), stranger.addr());
    let to = MemberId::new(town.nodes[0].id, town.nodes[0].incarnation, door);
    let lie = gossip_of_a_death(itself, to, accused);
    for _ in 0..10 {
        held.connection.send_datagram(lie.clone().into()).unwrap();
    }
    held.is_heard(there.incarnation).await;
    held.say(&Header::Packet(lie), &[]).await;
    let ended = soon(held.connection.closed()).await.to_string();
    assert!(ended.contains("`observer` has no right to be a member"), "{ended}");
    town.ends_as_before(steady).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_any_socket_is_dropped() {
    let town = Town::new().await;
    let steady = town.steady().await;
    let quiet = quiet(&town).await;
    let (doors, pid) = (town.doors(), town.nodes[0].process.pid());
    let socket = UdpSocket::bind((ELSEWHERE, 0)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let initials = first_packets(8).await;
    let mut send = |count: u32| {
        for number in 0..count {
            let mut bytes = vec![0; rng.next_u32() as usize % 2000];
            rng.fill_bytes(&mut bytes);
            match number % 4 {
                // Plain noise; noise that begins as a long header of QUIC, of any version; and first
                // packets with a few wrong bytes.
                0 => {}
                1 => bytes.splice(..0, [0xc0, 0, 0, 0, 1, 8]).for_each(drop),
                2 => bytes.splice(..0, [0x80 | number as u8]).for_each(drop),
                _ => {
                    bytes = initials[number as usize % initials.len()].clone();
                    for _ in 0..4 {
                        let at = rng.next_u32() as usize % bytes.len();
                        bytes[at] ^= rng.next_u32() as u8;
                    }
                }
            }
            for door in doors {
                // The system may have no room for it: that is as if it had been lost.
                let _ = socket.send_to(&bytes, door);
            }
        }
    };
    send(2_000);
    level(&town, quiet, "after 2,000 packets of noise to each socket").await;
    let before = kept_for(pid);
    send(10_000);
    level(&town, quiet, "after 12,000").await;
    stays_level(before, kept_for(pid), 4);
    town.ends_as_before(steady).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_nobody_finishes_keep_no_honest_node_out() {
    let town = Town::new().await;
    let (doors, pid) = (town.doors(), town.nodes[0].process.pid());
    // With as many members as there are when one has come late.
    let early = town.cluster.here(Options::join(town.nodes[0].addr)).await;
    sees_up(&early, 5).await;
    let steady = town.steady().await;
    let quiet = quiet(&town).await;
    steady.end().await;
    soon(early.leave()).await.unwrap();
    let steady = town.steady().await;
    // Each from a port of its own, and from several addresses.
    let packets = first_packets(600).await;
    let sockets: Vec<UdpSocket> = (0..600u16)
        .map(|number| {
            UdpSocket::bind((Ipv4Addr::new(127, 0, 1, (number % 8) as u8 + 1), 0)).unwrap()
        })
        .collect();
    for (packet, socket) in packets.iter().zip(&sockets) {
        for door in doors {
            socket.send_to(packet, door).unwrap();
        }
    }
    // While they are under way, whoever goes on with a handshake is served: a new member, and one who
    // only asks.
    let late = town.cluster.here(Options::join(town.nodes[0].addr)).await;
    sees_up(&late, 5).await;
    let (asker, observed) =
        town.cluster.builder(Options::default()).observe(&doors[0].to_string()).await.unwrap();
    let status = soon(observed.actor(&asker).call(footlight::cluster::AskStatus)).await.unwrap();
    assert_eq!(status.node, town.nodes[0].id);
    soon(asker.leave()).await.unwrap();
    // Those who are silent are forgotten; the same again takes up no more, once there were as many at
    // once as there are places for.
    let mut before = (0, 0);
    for round in 1..=4 {
        level(&town, quiet, &format!("after {round} times 600 handshakes that nobody finished"))
            .await;
        if round == 2 {
            before = kept_for(pid);
        }
        for (packet, socket) in packets.iter().zip(&sockets) {
            for door in doors {
                socket.send_to(packet, door).unwrap();
            }
        }
    }
    level(&town, quiet, "after 5 times").await;
    stays_level(before, kept_for(pid), 12);
    steady.end().await;
    soon(late.leave()).await.unwrap();
}

/// The tasks of the node that is bothered.
async fn tasks(town: &Town) -> u64 {
    soon(town.here.status_of(town.nodes[0].id)).await.unwrap().tasks
}

/// The most tasks that the node is seen with while no stranger bothers it and the members call each
/// other.
async fn quiet(town: &Town) -> u64 {
    let mut most = 0;
    for _ in 0..500 {
        most = most.max(tasks(town).await);
    }
    most
}

/// Waits until a node has nothing more to do with strangers: no more tasks than when it was `quiet`,
/// but for a few of the calls that are under way at this moment.
async fn level(town: &Town, quiet: u64, when: &str) {
    until(&format!("as few tasks as when it was quiet ({quiet})"), async || {
        tasks(town).await <= quiet + 16
    })
    .await;
    let (rss, files) = kept_for(town.nodes[0].process.pid());
    println!(
        "{when}: {rss} KiB resident, {files} files, {} tasks, {quiet} before",
        tasks(town).await
    );
}

/// A node takes at most so many MiB more than before, and no file.
fn stays_level(before: (u64, usize), after: (u64, usize), mib: u64) {
    assert!(after.0 <= before.0 + mib * 1024, "KiB, files: {before:?}, then {after:?}");
    assert!(after.1 <= before.1, "KiB, files: {before:?}, then {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_handshakes_change_nothing() {
    let town = Town::new().await;
    let steady = town.steady().await;
    let quiet = quiet(&town).await;
    let pid = town.nodes[0].process.pid();
    let mob = Arc::new(Mob::new(&town));
    let mut outcomes = BTreeMap::new();
    mob.attempt(2_000, &mut outcomes).await;
    level(&town, quiet, "after 2,000 handshakes").await;
    let (before, answered) = (kept_for(pid), steady.answered());
    mob.attempt(8_000, &mut outcomes).await;
    // Not only at the end: while it went on.
    assert!(steady.answered() > answered, "no call was answered meanwhile");
    level(&town, quiet, "after 10,000 handshakes").await;
    let after = kept_for(pid);
    println!("{outcomes:?}");
    stays_level(before, after, 16);
    assert_eq!(outcomes.values().sum::<u32>(), 10_000);
    // Many were begun and judged by what they showed, the others turned away at the door: both paths
    // were walked.
    let of = |what: Refused| outcomes.get(&what).copied().unwrap_or(0);
    assert!(of(Refused::Alert(CERTIFICATE_REQUIRED)) > 50, "{outcomes:?}");
    assert!(of(Refused::Alert(CERTIFICATE_EXPIRED)) > 50, "{outcomes:?}");
    assert!(of(Refused::Busy) > 100, "{outcomes:?}");
    // An honest node joins as soon as it is over.
    let late = town.cluster.here(Options::join(town.nodes[0].addr)).await;
    sees_up(&late, 5).await;
    steady.end().await;
    soon(late.leave()).await.unwrap();
}

/// Many who want in, and should not.
struct Mob {
    door: SocketAddr,
    kinds: Vec<Stranger>,
}

impl Mob {
    fn new(town: &Town) -> Self {
        let (ours, theirs) = (Forge::of_cluster(town.cluster.state()), Forge::another());
        let node = names(NodeId(0xbad), Role::Node);
        let (expired, foreign) = (ours.until(&node, 2025), theirs.certificate(&node));
        let shown = [None, Some(&expired), Some(&foreign)];
        // A few endpoints, each with its own address.
        let kinds = (1..=4u8).flat_map(|number| {
            let stranger = Stranger::new(Ipv4Addr::new(127, 0, 2, number), None, MEMBERS);
            shown.map(|shown| stranger.showing(shown, MEMBERS)).into_iter().chain([
                // Wants to join, and never asks.
                stranger.showing(None, JOINERS),
            ])
        });
        Mob { door: town.nodes[0].addr, kinds: kinds.collect() }
    }

    /// Tries so many times, 250 times a second, at most 128 at once. As fast as it can, it would take
    /// the members' processors, which no stranger elsewhere could.
    async fn attempt(self: &Arc<Self>, count: usize, outcomes: &mut BTreeMap<Refused, u32>) {
        let places = Arc::new(Semaphore::new(128));
        let mut attempts = JoinSet::new();
        let mut pace = interval(Duration::from_millis(16));
        for number in 0..count {
            if number.is_multiple_of(4) {
                pace.tick().await;
            }
            let place = places.clone().acquire_owned().await.unwrap();
            let (mob, kind) = (self.clone(), number % self.kinds.len());
            attempts.spawn(async move {
                let refused = mob.kinds[kind].is_refused(mob.door).await;
                drop(place);
                refused
            });
        }
        for refused in attempts.join_all().await {
            *outcomes.entry(refused).or_default() += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_used_is_of_no_use_to_who_overheard_it() {
    let town = Town::new().await;
    let steady = town.steady().await;
    let day = Duration::from_secs(86_400);
    let token = soon(town.here.create_token(Role::Worker, day)).await.unwrap();
    let (theirs, thief) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with_token = |dir: &tempfile::TempDir| Options {
        state: Some(dir.path().to_owned()),
        token: Some(token.to_string()),
        ..Options::join(town.nodes[0].addr)
    };
    let joined = town.cluster.process("joiner", with_token(&theirs)).await;
    let process = town.cluster.launch("thief", with_token(&thief)).await;
    let failed = process.wait_line("failed ", LONG).await.unwrap();
    assert!(failed.contains("used already") && failed.contains(&joined.id.to_string()), "{failed}");
    soon(process.wait(LONG)).await.unwrap();
    until("the members say so too", async || {
        let log = town.log();
        log.contains("was not let in") && log.contains("used already")
    })
    .await;
    steady.end().await;
}
