//! Links between actors of one node.

use super::*;
use crate::remote::End;

struct Bound;

impl Actor for Bound {
    type Args = ();
    const NAME: &'static str = "test.bound";
    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Bound)
    }
}

message!(Link { to: ActorRef<Bound> } -> ());
message!(Unlink { to: ActorRef<Bound> } -> ());
message!(Fall {} -> ());
message!(Outlive { other: ActorRef<Bound> } -> ());

impl Handler<Link> for Bound {
    async fn handle(&mut self, link: Link, context: &Context<Self>) {
        context.link(&link.to);
    }
}

impl Handler<Unlink> for Bound {
    async fn handle(&mut self, unlink: Unlink, context: &Context<Self>) {
        context.unlink(&unlink.to);
    }
}

impl Handler<Fall> for Bound {
    async fn handle(&mut self, _: Fall, _: &Context<Self>) {
        panic!("on purpose")
    }
}

impl Handler<Outlive> for Bound {
    /// Takes the link back after the other's end, which is in the mailbox by then.
    async fn handle(&mut self, outlive: Outlive, context: &Context<Self>) {
        outlive.other.kill();
        outlive.other.watch().await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        context.unlink(&outlive.other);
    }
}

async fn two(system: &System) -> [ActorRef<Bound>; 2] {
    [system.spawn::<Bound>(()).await.unwrap(), system.spawn::<Bound>(()).await.unwrap()]
}

#[tokio::test]
async fn the_failure_of_either_fails_the_other_and_names_it() {
    let system = system().await;
    for falls in [0, 1] {
        let pair = two(&system).await;
        soon(pair[0].call(Link { to: pair[1].clone() })).await.unwrap();
        soon(pair[0].call(Link { to: pair[1].clone() })).await.unwrap();
        let watch = pair[1 - falls].watch();
        soon(pair[falls].call(Fall {})).await.unwrap_err();
        let expected = format!("linked {} ended: panicked: on purpose", pair[falls].addr());
        assert_eq!(soon(watch).await, Down::Failed(expected));
    }
}

#[tokio::test]
async fn a_stop_is_no_failure() {
    let system = system().await;
    let [a, b] = two(&system).await;
    soon(a.call(Link { to: b.clone() })).await.unwrap();
    b.stop();
    assert_eq!(soon(b.watch()).await, Down::Stopped);
    // Nor is one that happened before the link.
    soon(a.call(Link { to: b.clone() })).await.unwrap();
    soon(a.call(Unlink { to: a.clone() })).await.unwrap();
    assert!(system.entry(a.addr().actor, |_| ()).is_some());
}

#[tokio::test]
async fn a_kill_and_an_end_long_ago_are_failures() {
    let system = system().await;
    let [a, b] = two(&system).await;
    soon(a.call(Link { to: b.clone() })).await.unwrap();
    let watch = a.watch();
    system.end(b.addr(), End::Kill);
    assert_eq!(soon(watch).await, Down::Failed(format!("linked {} ended: killed", b.addr())));

    let [a, b] = two(&system).await;
    let nobody = ActorRef::at(crate::ActorAddr { actor: crate::ActorId(999), ..b.addr() }, &system);
    soon(a.call(Link { to: nobody.clone() })).await.unwrap();
    let expected = format!("linked {} ended: no such actor", nobody.addr());
    assert_eq!(soon(a.watch()).await, Down::Failed(expected));
}

#[tokio::test]
async fn a_link_may_be_taken_back_by_either_side() {
    let system = system().await;
    for unlinks in [0, 1] {
        let pair = two(&system).await;
        soon(pair[0].call(Link { to: pair[1].clone() })).await.unwrap();
        let to = pair[1 - unlinks].clone();
        soon(pair[unlinks].call(Unlink { to })).await.unwrap();
        soon(pair[0].call(Fall {})).await.unwrap_err();
        soon(pair[1].call(Unlink { to: pair[0].clone() })).await.expect("it lives");
    }
    let [a, b] = two(&system).await;
    soon(a.call(Link { to: b.clone() })).await.unwrap();
    soon(a.call(Outlive { other: b.clone() })).await.unwrap();
    soon(a.call(Unlink { to: b })).await.expect("it lives");
}

#[tokio::test]
async fn failures_go_from_link_to_link() {
    let system = system().await;
    let mut chain = Vec::new();
    for _ in 0..5 {
        chain.push(system.spawn::<Bound>(()).await.unwrap());
    }
    for pair in chain.windows(2) {
        soon(pair[0].call(Link { to: pair[1].clone() })).await.unwrap();
    }
    let watches: Vec<_> = chain.iter().map(ActorRef::watch).collect();
    soon(chain[2].call(Fall {})).await.unwrap_err();
    for watch in watches {
        assert!(!soon(watch).await.is_normal());
    }
    assert!(system.census().is_empty());
}

/// What other nodes ask for is bounded: a node that asks for more learns it, and no link is lost.
#[tokio::test]
async fn an_actor_has_only_so_many_links_that_others_ask_for() {
    const MOST: usize = 4096;
    let system = system().await;
    let bound = system.spawn::<Bound>(()).await.unwrap();
    let me = bound.addr().actor;
    let mut others = Vec::new();
    for _ in 0..=MOST {
        others.push(system.spawn::<Bound>(()).await.unwrap());
    }
    let (last, first) = others.split_last().unwrap();
    for other in first {
        system.hold_half_link(me, other.addr()).unwrap();
    }
    let refused = system.hold_half_link(me, last.addr()).unwrap_err();
    assert_eq!(refused.to_string(), "the actor has 4096 links already");
    // One that is there may be asked for again, and makes room when it goes.
    system.hold_half_link(me, first[0].addr()).unwrap();
    assert!(system.drop_half_link(me, first[0].addr()));
    system.hold_half_link(me, last.addr()).unwrap();
    assert_eq!(system.links_of(me).len(), MOST);
    let watch = bound.watch();
    soon(last.call(Fall {})).await.unwrap_err();
    assert!(matches!(soon(watch).await, Down::Failed(why) if why.starts_with("linked ")));
}
