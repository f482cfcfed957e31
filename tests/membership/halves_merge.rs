//! Two halves that formed apart become one when a node knows seeds in both; nodes find their cluster
//! again through their seeds, and through each other when their seeds are gone.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use footlight::{
    cluster::transport::socket::{SocketError, Sockets, SystemSockets},
    prelude::*,
};
use futures::future::BoxFuture;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_halves_that_formed_apart_merge_when_a_node_knows_both() {
    let cluster = Cluster::new();
    // Each founded a cluster of its own, and has taken in a second node.
    let left = cluster.here(Options::default()).await;
    let right = cluster.process("right", Options::default()).await;
    let left_2 = cluster.process("left-2", Options::join(left.addr())).await;
    let right_2 = cluster.here(Options::join(right.addr)).await;
    sees_up(&left, 2).await;
    sees_up(&right_2, 2).await;

    let both = Options { seeds: vec![left.addr(), right.addr], ..Options::default() };
    let bridge = cluster.process("bridge", both).await;
    for node in [&left, &right_2] {
        sees_up(node, 5).await;
        assert!(node.members().iter().all(|member| member.is_up()), "{:?}", node.members());
    }
    // Those in processes of their own see the same, and what is asked of one half works in the other.
    for id in [left_2.id, right.id, right_2.id(), bridge.id] {
        until("all see all", async || {
            let status = soon(left.status_of(id)).await.unwrap();
            status.members.len() == 5 && status.members.iter().all(|member| member.is_up())
        })
        .await;
        let probe = soon(left.spawn::<Probe>(()).on(Placement::node(id))).await.unwrap();
        assert_eq!(soon(probe.call(Where {})).await.unwrap().0, id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeds_that_all_have_the_same_list_start_in_any_order() {
    let cluster = Cluster::new();
    let addrs = [free_addr(), free_addr(), free_addr()];
    let seed =
        |listen| Options { listen: Some(listen), seeds: addrs.to_vec(), ..Options::default() };
    // None of them waits for another one.
    let third = cluster.process("third", seed(addrs[2])).await;
    let first = cluster.here(seed(addrs[0])).await;
    assert!(first.is_seed());
    let second = cluster.process("second", seed(addrs[1])).await;
    sees_up(&first, 3).await;
    let ids: Vec<_> = first.members().iter().map(|member| member.id).collect();
    assert!(ids.contains(&second.id) && ids.contains(&third.id));
}

/// The system's sockets, and a resolver that knows one name.
#[derive(Debug)]
struct Names {
    sockets: SystemSockets,
    seeds: Mutex<Vec<SocketAddr>>,
}

impl Sockets for Names {
    fn bind(
        &self,
        addr: SocketAddr,
        runtime: &dyn quinn::Runtime,
    ) -> Result<Arc<dyn quinn::AsyncUdpSocket>, SocketError> {
        self.sockets.bind(addr, runtime)
    }

    fn look_up<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        assert_eq!(name, "seeds.example:7400");
        Box::pin(async { Ok(self.seeds.lock().unwrap().clone()) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_s_addresses_are_all_called_and_looked_up_again() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.here(Options::default()).await, free_addr());
    let names = Arc::new(Names {
        sockets: SystemSockets::new(),
        seeds: Mutex::new(vec![free_addr(), first.addr()]),
    });
    let args = NodeArgs {
        seeds: vec!["seeds.example:7400".to_owned()],
        state: Some(cluster.state().to_owned()),
        ..NodeArgs::default()
    };
    let node = Node::builder(args).with(register).sockets(names.clone());
    let node = soon(node.start()).await.unwrap();
    assert_eq!(node.seed(), first.id());
    // The name moves, and so does the cluster.
    soon(first.leave()).await.unwrap();
    sees_up(&node, 1).await;
    *names.seeds.lock().unwrap() = vec![second];
    let options = Options { listen: Some(second), ..Options::default() };
    let second = cluster.here(options).await;
    sees_up(&node, 2).await;
    sees_up(&second, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_with_several_addresses_is_a_seed_whichever_of_them_answers() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    // `localhost` is ::1 as well on most machines, where nobody answers.
    let name = format!("localhost:{}", seed.addr().port());
    let args = NodeArgs {
        seeds: vec!["nobody.invalid:7400".to_owned(), name],
        state: Some(cluster.state().to_owned()),
        ..NodeArgs::default()
    };
    let node = soon(Node::builder(args).with(register).start()).await.unwrap();
    assert_eq!(node.seed(), seed.id());
    sees_up(&seed, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_seeds_may_die_without_harm_and_who_lost_everybody_comes_back_when_one_is_there_again()
{
    let cluster = Cluster::new();
    let addr = free_addr();
    let listen = Options { listen: Some(addr), ..Options::default() };
    let seed = cluster.process("seed", listen.clone()).await;
    let one = cluster.here(Options::join(addr)).await;
    let other = cluster.process("other", Options::join(addr)).await;
    sees_up(&one, 3).await;
    seed.process.kill();
    // The two go on without it.
    let is = |members: &[Member], id, state| {
        members.iter().any(|member| member.id == id && member.state == state)
    };
    one.wait_for_members(LONG, |members| {
        is(members, seed.id, MemberState::Down) && is(members, other.id, MemberState::Up)
    })
    .await
    .unwrap();
    let probe = soon(one.spawn::<Probe>(()).on(Placement::node(other.id))).await.unwrap();
    assert_eq!(soon(probe.call(Where {})).await.unwrap().0, other.id);
    // Now alone; the seed comes back as a founder that knows nobody.
    other.process.kill();
    sees_up(&one, 1).await;
    let again = cluster.process("seed again", listen).await;
    assert_eq!(again.id, seed.id);
    sees_up(&one, 2).await;
}
