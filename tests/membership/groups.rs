//! Groups: who is in is known to all nodes, messages go to one member or to all, and who has gone
//! gets none.

use std::{collections::BTreeMap, time::Duration};

use footlight::{
    cluster::{GroupChange, GroupError},
    prelude::*,
    runtime::NodeId,
};

use crate::support::*;

/// A node in this process, others in processes of their own, and a probe on each of those, all in
/// one group.
struct Three {
    cluster: Cluster,
    seed: Node,
    processes: Vec<NodeProcess>,
    probes: Vec<ActorRef<Probe>>,
    group: Group<Probe>,
}

async fn three() -> Three {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let (mut processes, mut probes) = (Vec::new(), Vec::new());
    let group = seed.group::<Probe>("probes");
    for name in ["one", "two", "three"] {
        let process = cluster.process(name, Options::join(seed.addr())).await;
        sees_up(&seed, processes.len() + 2).await;
        let probe = seed.spawn::<Probe>(()).on(Placement::node(process.id));
        let probe = soon(probe).await.unwrap();
        soon(group.join(&probe)).await.unwrap();
        processes.push(process);
        probes.push(probe);
    }
    group.wait_for(3, LONG).await.unwrap();
    Three { cluster, seed, processes, probes, group }
}

fn actors(group: &Group<Probe>) -> Vec<ActorRef<Probe>> {
    group.members().into_iter().map(|member| member.actor).collect()
}

async fn sees(group: &Group<Probe>, mut wanted: Vec<ActorRef<Probe>>) {
    wanted.sort_by_key(ActorRef::addr);
    until("the group is as expected", async || actors(group) == wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_and_who_leaves_is_seen_by_all_nodes() {
    let Three { cluster, seed, probes, group, .. } = &three().await;
    let other = cluster.here(Options::join(seed.addr())).await;
    let there = other.group::<Probe>("probes");
    let mut changes = there.changes();
    let joined = soon(async {
        let mut joined = Vec::new();
        while joined.len() < 3 {
            match changes.next().await {
                Some(GroupChange::Joined(probe)) => joined.push(probe.addr()),
                other => panic!("{other:?}"),
            }
        }
        joined.sort();
        joined
    });
    let mut all: Vec<_> = probes.iter().map(ActorRef::addr).collect();
    all.sort();
    assert_eq!(joined.await, all);

    // A node's own actor, and twice.
    let own = soon(other.spawn::<Probe>(())).await.unwrap();
    for _ in 0..2 {
        soon(there.join(&own)).await.unwrap();
    }
    assert!(actors(&there).contains(&own), "its own node knows at once");
    assert_eq!(soon(changes.next()).await, Some(GroupChange::Joined(own.clone())));
    let mut everybody = probes.clone();
    everybody.push(own.clone());
    sees(group, everybody).await;

    // Whoever asks; and who is not in can't leave.
    for _ in 0..2 {
        soon(group.leave(&own)).await.unwrap();
    }
    assert_eq!(soon(changes.next()).await, Some(GroupChange::Left(own.clone())));
    sees(group, probes.clone()).await;
    assert_eq!(soon(own.call(Echo { text: "still".into() })).await.unwrap(), "still");

    // It may come again.
    soon(group.join(&own)).await.unwrap();
    assert_eq!(soon(changes.next()).await, Some(GroupChange::Joined(own)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_is_in_no_group_any_more() {
    let Three { seed, probes, group, .. } = &three().await;
    let second = seed.group::<Probe>("another");
    soon(second.join(&probes[0])).await.unwrap();
    probes[0].stop();
    let _ = soon(probes[1].call(Boom { text: "on purpose".into() })).await;
    sees(group, vec![probes[2].clone()]).await;
    sees(&second, Vec::new()).await;
    let error = soon(group.join(&probes[0])).await.unwrap_err();
    let actor = probes[0].addr();
    assert_eq!(error, GroupError::Ended { group: "probes".to_owned(), actor });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_go_with_their_node_whether_it_is_killed_or_comes_back_as_new_or_drains() {
    let Three { seed, processes, probes, group, .. } = &three().await;
    processes[0].process.kill();
    sees(group, probes[1..].to_vec()).await;

    processes[1].process.freeze();
    sees_down(seed, 2).await;
    sees(group, probes[2..].to_vec()).await;
    processes[1].process.thaw();
    sees_up(seed, 3).await;
    // What the new life tells does not name actors of the old one.
    assert_eq!(actors(group), probes[2..]);
    let probe = seed.spawn::<Probe>(()).on(Placement::node(processes[1].id));
    let probe = soon(probe).await.unwrap();
    soon(group.join(&probe)).await.unwrap();
    sees(group, vec![probe.clone(), probes[2].clone()]).await;

    // It holds a call, so it stays for a while, and takes nothing new.
    let held = tokio::spawn({
        let probe = probes[2].clone();
        async move { probe.call(Hold {}).await }
    });
    until("it holds", async || probes[2].call(Held {}).await.is_ok_and(|held| held == 1)).await;
    soon(seed.drain_node(processes[2].id, Some(LONG))).await.unwrap();
    sees(group, vec![probe]).await;
    let is_leaving =
        |member: &Member| member.id == processes[2].id && member.state == MemberState::Leaving;
    assert!(seed.members().iter().any(is_leaving));
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_robin_is_even_and_clones_share_the_turn() {
    let Three { group, processes, .. } = &three().await;
    let mut counts = BTreeMap::<NodeId, u32>::new();
    for _ in 0..50 {
        for group in [group, &group.clone()] {
            for _ in 0..3 {
                let (node, _) = soon(group.call_one(Pick::RoundRobin, Where {})).await.unwrap();
                *counts.entry(node).or_default() += 1;
            }
        }
    }
    // One that is suspected for a moment is passed by; on a busy machine that happens.
    assert_eq!(counts.values().sum::<u32>(), 300);
    for process in processes {
        assert!((90..=110).contains(&counts[&process.id]), "{counts:?}");
    }

    for number in 0..30 {
        let note = Note { number, tensor: None };
        soon(group.cast_one(Pick::RoundRobin, note)).await.unwrap();
    }
    let mut notes = Vec::new();
    for (probe, answer) in soon(group.call_all(Notes {})).await.unwrap() {
        let answer = answer.unwrap();
        assert!((7..=13).contains(&answer.len()), "{probe:?}: {answer:?}");
        notes.extend(answer);
    }
    notes.sort();
    assert_eq!(notes, (0..30).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_loaded_passes_a_busy_member_by_whoever_keeps_it_busy() {
    let Three { cluster, seed, probes, group, .. } = &three().await;
    // Another node keeps one busy: this one learns it only from what the busy one's node tells.
    let other = cluster.here(Options::join(seed.addr())).await;
    let busy = other.group::<Probe>("probes");
    busy.wait_for(3, LONG).await.unwrap();
    let busy = actors(&busy).into_iter().find(|probe| *probe == probes[1]).unwrap();
    let held: Vec<_> = (0..20)
        .map(|_| {
            let busy = busy.clone();
            tokio::spawn(async move { busy.call_within(Hold {}, Duration::from_secs(600)).await })
        })
        .collect();
    until("it is known here how busy it is", async || {
        let members = group.members();
        members.iter().any(|one| one.actor == probes[1] && one.backlog.at_least() == 16)
    })
    .await;
    let mut counts = BTreeMap::<NodeId, u32>::new();
    for _ in 0..200 {
        let (node, _) = soon(group.call_one(Pick::LeastLoaded, Where {})).await.unwrap();
        *counts.entry(node).or_default() += 1;
    }
    assert_eq!(counts.get(&probes[1].addr().node), None, "{counts:?}");
    assert_eq!(counts.len(), 2, "{counts:?}");

    // The others get busy by what is sent from here, which is known at once. Each takes some.
    let more: Vec<_> = (0..12)
        .map(|_| {
            let group = group.clone();
            let patience = Duration::from_secs(600);
            tokio::spawn(async move {
                group.call_one_within(Pick::LeastLoaded, Hold {}, patience).await
            })
        })
        .collect();
    let held_by = async |probe: &ActorRef<Probe>| soon(probe.call(Held {})).await.unwrap();
    until("they are held", async || held_by(&probes[0]).await + held_by(&probes[2]).await == 12)
        .await;
    assert_eq!(held_by(&probes[1]).await, 20);
    for probe in [&probes[0], &probes[2]] {
        assert!(held_by(probe).await > 0, "the two share");
    }
    held.into_iter().for_each(|held| held.abort());
    more.into_iter().for_each(|more| more.abort());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_all_reaches_each_once() {
    let Three { group, probes, .. } = &three().await;
    for number in 0..5 {
        let sent = soon(group.cast_all(Note { number, tensor: None })).await.unwrap();
        assert!(sent.len() == 3 && sent.iter().all(|(_, sent)| sent.is_ok()), "{sent:?}");
    }
    for (probe, notes) in soon(group.call_all(Notes {})).await.unwrap() {
        assert_eq!(notes.unwrap(), [0, 1, 2, 3, 4], "{probe:?}");
    }
    // What is wrong with one is said of that one.
    let patience = Duration::from_millis(200);
    let blocked = tokio::spawn({
        let probe = probes[0].clone();
        async move { probe.call(Block {}).await }
    });
    until("it blocks", async || {
        let second = probes[0].call_within(Notes {}, patience).await;
        second.is_err_and(|error| matches!(error.cause(), Cause::TimedOut(_)))
    })
    .await;
    for (probe, told) in soon(group.call_all_within(Where {}, patience)).await.unwrap() {
        assert_eq!(told.is_err(), probe == probes[0], "{told:?}");
    }
    blocked.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_member_is_asked_only_if_the_first_certainly_was_not() {
    let Three { seed, processes, group, probes, .. } = &three().await;
    for _ in 0..10 {
        let fourth = seed.spawn::<Probe>(()).on(Placement::node(processes[0].id));
        let fourth = soon(fourth).await.unwrap();
        soon(group.join(&fourth)).await.unwrap();
        group.wait_for(4, LONG).await.unwrap();
        fourth.stop();
        soon(fourth.watch()).await;
        // The end is told at once, the group's change a moment later: the fourth is asked in vain.
        for _ in 0..4 {
            soon(group.call_one(Pick::RoundRobin, Where {})).await.unwrap();
        }
        sees(group, probes.clone()).await;
    }

    let boom = Boom { text: "once".to_owned() };
    let error = soon(group.call_one(Pick::LeastLoaded, boom)).await.unwrap_err();
    assert!(matches!(error, GroupError::Call { .. }), "{error}");
    assert_eq!(error.fate(), Fate::MayHaveRun);
    until("one is gone", async || group.members().len() == 2).await;
    let alive = soon(group.call_all(Where {})).await.unwrap();
    assert!(alive.len() == 2 && alive.iter().all(|(_, alive)| alive.is_ok()), "{alive:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_group_is_said() {
    let Three { seed, probes, .. } = &three().await;
    let nobody = seed.group::<Probe>("nobody");
    let empty = GroupError::Empty { group: "nobody".to_owned(), kind: Probe::NAME.to_owned() };
    let error = soon(nobody.call_one(Pick::RoundRobin, Where {})).await.unwrap_err();
    assert_eq!((&error, error.fate()), (&empty, Fate::NotSent));
    assert_eq!(soon(nobody.call_all(Where {})).await.unwrap_err(), empty);
    let patience = Duration::from_millis(200);
    let (group, wanted, there) = ("nobody".to_owned(), 2, 1);
    soon(nobody.join(&probes[0])).await.unwrap();
    nobody.wait_for(1, LONG).await.unwrap();
    let missing = GroupError::Missing { group, wanted, there, patience };
    assert_eq!(soon(nobody.wait_for(2, patience)).await.unwrap_err(), missing);

    // The group is one of probes, as other nodes have told.
    let solo = seed.spawn::<Solo>(SoloArgs { witness: None, broken: false, trace: None });
    let solo = soon(solo).await.unwrap();
    let error = soon(seed.group::<Solo>("probes").join(&solo)).await.unwrap_err();
    let (found, asked) = (Probe::NAME.to_owned(), Solo::NAME.to_owned());
    assert_eq!(error, GroupError::OtherType { group: "probes".to_owned(), found, asked });
    let error = soon(seed.group::<Solo>("probes").call_one(Pick::RoundRobin, Tell)).await;
    assert!(matches!(error.unwrap_err(), GroupError::Empty { .. }));
    // Nor can an actor pass as one of another type.
    let disguised = ActorRef::<Probe>::at(solo.addr(), seed.system());
    let error = soon(seed.group::<Probe>("others").join(&disguised)).await.unwrap_err();
    assert!(matches!(error, GroupError::OtherType { .. }), "{error}");

    for length in [0, 256] {
        let error = soon(seed.group::<Probe>("n".repeat(length)).join(&probes[0])).await;
        assert_eq!(error.unwrap_err(), GroupError::Length(length));
    }
    // What one node tells of its members has a bound.
    let mut joined = 0;
    let full = loop {
        let group = seed.group::<Probe>(format!("{joined:255}"));
        match soon(group.join(&probes[1])).await {
            Ok(()) => joined += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, GroupError::Full { .. }), "{full}");
    assert!((100..120).contains(&joined), "{joined}");
    // Another node still has room, and this one when somebody leaves.
    soon(seed.group::<Probe>("room").join(&probes[2])).await.unwrap();
    soon(seed.group::<Probe>(format!("{:255}", 0)).leave(&probes[1])).await.unwrap();
    soon(seed.group::<Probe>(format!("{joined:255}")).join(&probes[1])).await.unwrap();
}
