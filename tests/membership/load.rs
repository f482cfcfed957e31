//! How busy a node is reaches all others.

use std::time::Duration;

use footlight::{cluster::Load, prelude::*};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_know_how_many_actors_a_node_has_and_how_much_these_have_in_hand() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let process = cluster.process("busy", Options::join(seed.addr())).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    sees_up(&other, 3).await;
    let becomes = async |what: &str, is_so: fn(&Load) -> bool| {
        let there = |members: &[Member]| {
            members.iter().any(|member| member.id == process.id && is_so(&member.load))
        };
        let seen = other.wait_for_members(LONG, there).await;
        seen.unwrap_or_else(|error| panic!("{what}: {error}; {:?}", other.members()));
    };
    becomes("nothing runs there", |load| load.actors == 0 && load.in_hand == 0).await;
    let mut probes = Vec::new();
    for _ in 0..5 {
        let probe = seed.spawn::<Probe>(()).on(Placement::node(process.id));
        probes.push(soon(probe).await.unwrap());
    }
    becomes("five run there", |load| load.actors == 5).await;

    let held: Vec<_> = (0..20)
        .map(|number| {
            let probe: ActorRef<Probe> = probes[number % 5].clone();
            tokio::spawn(async move { probe.call_within(Hold {}, Duration::from_secs(600)).await })
        })
        .collect();
    becomes("they hold", |load| (16..=21).contains(&load.in_hand)).await;
    probes.iter().for_each(ActorRef::stop);
    becomes("nothing is left", |load| load.actors == 0 && load.in_hand == 0).await;
    for held in held {
        assert_eq!(held.await.unwrap().unwrap_err().fate(), Fate::MayHaveRun);
    }
}
