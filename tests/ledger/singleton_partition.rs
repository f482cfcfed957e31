//! A side of a cut without a majority of the voters has stopped its singletons before the other side
//! starts them.

use std::time::Duration;

use footlight::{prelude::*, runtime::NodeId};

use crate::support::{
    clock::monotonic,
    netns::{Host, Hosts},
    *,
};

/// When its node is cut off, the singleton runs elsewhere after this time at the latest.
const MOVED: Duration = Duration::from_secs(5);

/// Waits until the singleton answers from one of these nodes; says from which, in which generation.
async fn answers(node: &Node, from: &[NodeId]) -> (NodeId, u64) {
    let solo = node.singleton_ref::<Solo>("solo");
    soon(async {
        loop {
            match solo.call_within(Tell, Duration::from_secs(1)).await {
                Ok((node, generation)) if from.contains(&node) => return (node, generation),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lesser_side_has_stopped_before_the_greater_starts() {
    let Some(hosts) = Hosts::new(5) else { return };
    let cluster = Cluster::with_authority().await;
    let server = |host: &Host| Options { role: "server", ..Options::on(host) };
    let here = cluster.here(server(&hosts.all()[0])).await;
    let mut servers = Vec::new();
    for (number, host) in hosts.all().iter().enumerate().skip(1) {
        let options = Options { seeds: vec![here.addr()], ..server(host) };
        servers.push((cluster.process(&format!("server-{number}"), options).await, host.clone()));
    }
    sees_up(&here, 5).await;
    until("there are five voters", async || {
        let five = |m: &Member| m.ledger.as_ref().is_some_and(|l| l.voters.len() == 5);
        here.members().iter().any(five)
    })
    .await;
    let trace = cluster.state().join("trace");
    let args = SoloArgs { trace: Some(trace.clone()), ..SoloArgs::default() };
    let all: Vec<NodeId> = servers.iter().map(|(server, _)| server.id).collect();
    let placement = Placement::any_of(all.clone());
    soon(here.singleton::<Solo>("solo", args).on(placement).start()).await.unwrap();

    let (mut runs_on, mut generation) = answers(&here, &all).await;
    let mut cuts = Vec::new();
    for round in 1..=3 {
        // It is cut off together with another one; this process is on the other side.
        servers.sort_by_key(|(server, _)| server.id != runs_on);
        let (few, many) = servers.split_at(2);
        let greater: Vec<NodeId> = many.iter().map(|(server, _)| server.id).collect();
        let few: Vec<Host> = few.iter().map(|(_, host)| host.clone()).collect();
        let mut many: Vec<Host> = many.iter().map(|(_, host)| host.clone()).collect();
        many.push(hosts.all()[0].clone());
        hosts.cut(&few, &many);
        let cut_at = monotonic();
        let (moved_to, next) = answers(&here, &greater).await;
        assert!(next > generation, "round {round}");
        cuts.push((next, cut_at));
        hosts.heal();
        one_view(&here, 5, LONG).await;
        (runs_on, generation) = answers(&here, &all).await;
        assert_eq!((runs_on, generation), (moved_to, next), "round {round}");
    }

    let lives = lives(&trace);
    for (next, cut_at) in cuts {
        // When it began, and not when somebody had found it.
        let took = lives[&next].0.saturating_sub(cut_at);
        println!("generation {next} ran {took:?} after the cut");
        assert!(took <= MOVED, "generation {next} ran {took:?} after the cut");
    }
    let lives: Vec<_> = lives.into_iter().collect();
    assert!(lives.len() >= 4, "{lives:?}");
    for pair in lives.windows(2) {
        let [(before, (_, ended)), (next, (began, _))] = pair else { unreachable!() };
        assert!(
            ended < began,
            "generations {before} and {next} both ran for {:?}",
            *ended - *began
        );
        println!("it ran nowhere for {:?}", *began - *ended);
    }
}
