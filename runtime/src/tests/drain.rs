//! What a node does before it leaves: it finishes what it has in hand and takes nothing new.

use super::*;
use crate::{Cause, codec::Opaque, error::Failure};

#[tokio::test]
async fn a_node_is_idle_when_every_message_is_handled_and_every_call_answered() {
    let system = system().await;
    let (gate, mut began, let_go) = gate(&system).await;
    soon(system.idle()).await;
    gate.try_cast(Pass { number: 0 }).unwrap();
    gate.try_cast(Pass { number: 1 }).unwrap();
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let mut held = Box::pin(probe.call(Hold {}));
    assert!(futures::poll!(&mut held).is_pending());
    soon(probe.call(Notes {})).await.unwrap();

    let mut idle = Box::pin(system.idle());
    for number in 0..2 {
        assert!(futures::poll!(&mut idle).is_pending() && !system.look_idle());
        assert_eq!(soon(began.recv()).await, Some(number));
        let_go.send(()).unwrap();
    }
    // The answer that the actor still owes counts, though no handler runs.
    let_go.send(()).unwrap();
    soon(gate.call(Pass { number: 2 })).await.unwrap();
    assert!(futures::poll!(&mut idle).is_pending() && !system.look_idle());
    soon(probe.call(DropHeld {})).await.unwrap();
    soon(held).await.unwrap_err();
    soon(idle).await;
    assert_eq!(system.in_hand(), 0);
}

#[tokio::test]
async fn what_an_actor_drops_when_it_ends_is_no_longer_in_hand() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let mut held = Box::pin(probe.call(Hold {}));
    assert!(futures::poll!(&mut held).is_pending());
    soon(probe.call(Notes {})).await.unwrap();
    assert!(system.in_hand() > 0);
    probe.stop();
    assert_eq!(soon(held).await.unwrap_err().failure, Failure::may_have_run(Cause::Stopped));
    soon(system.idle()).await;
}

/// Passes a message on to the other one, as often as it says.
struct Passer {
    passed: u32,
}
message!(Ball { to: ActorRef<Passer>, left: u32 } -> ());
message!(Passed {} -> u32);

impl Actor for Passer {
    type Args = ();
    const NAME: &'static str = "test.passer";

    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Passer { passed: 0 })
    }
}

impl Handler<Ball> for Passer {
    async fn handle(&mut self, ball: Ball, context: &Context<Self>) {
        self.passed += 1;
        if let Some(left) = ball.left.checked_sub(1) {
            ball.to.cast(Ball { to: context.me(), left }).await.unwrap();
        }
    }
}

impl Handler<Passed> for Passer {
    async fn handle(&mut self, _: Passed, _: &Context<Self>) -> u32 {
        self.passed
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_goes_from_actor_to_actor_is_in_hand_all_the_time() {
    const HOPS: u32 = 20_000;
    let system = system().await;
    let first = system.spawn::<Passer>(()).await.unwrap();
    let second = system.spawn::<Passer>(()).await.unwrap();
    first.cast(Ball { to: second.clone(), left: HOPS - 1 }).await.unwrap();
    // Without pauses, so that it is looked for at as many moments as possible.
    let looks = async {
        loop {
            if system.look_idle() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(looks).await;
    let passed = [first.call(Passed {}).await.unwrap(), second.call(Passed {}).await.unwrap()];
    assert_eq!(passed.iter().sum::<u32>(), HOPS, "{passed:?} before it came to rest");
}

#[tokio::test]
async fn a_node_that_drains_starts_nothing_for_others_and_goes_on_within() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    system.drain();
    let refused = system.spawn_by_name(Probe::NAME, Opaque::of(&()).unwrap()).await.unwrap_err();
    assert!(matches!(refused, Error::Leaving(NodeId(7))), "{refused}");
    assert_eq!(soon(probe.call(Echo { text: "here".into() })).await.unwrap(), "here");
    system.spawn::<Probe>(()).await.unwrap();
}

/// Does what it does in a task.
struct Works;

impl Actor for Works {
    type Args = ();
    const NAME: &'static str = "test.works";

    async fn start(_: (), context: &Context<Self>) -> Result<Self> {
        context.run(std::future::pending());
        Ok(Works)
    }
}

#[tokio::test]
async fn an_actor_that_is_done_stops_at_once_and_one_that_may_be_needed_here_does_not() {
    let system = system().await;
    let (gate, mut began, let_go) = gate(&system).await;
    let unneeded = system.spawn::<Probe>(()).await.unwrap();
    let needed = system.spawn::<Probe>(()).await.unwrap();
    soon(needed.call(Notes {})).await.unwrap();
    let working = system.spawn::<Works>(()).await.unwrap();
    let busy = tokio::spawn({
        let gate = gate.clone();
        async move { gate.call(Pass { number: 0 }).await }
    });
    assert_eq!(soon(began.recv()).await, Some(0));
    system.drain();
    let mut dismissing = Box::pin(system.dismiss_done());
    let left = Down::NodeLeft(NodeId(7));
    tokio::select! {
        () = &mut dismissing => panic!("something is in hand still"),
        down = soon(unneeded.watch()) => assert_eq!(down, left),
    }
    // What is in hand may need it.
    assert_eq!(soon(needed.call(Echo { text: "here".into() })).await.unwrap(), "here");
    assert_eq!(system.kind_of(working.addr().actor), Some(Works::NAME));
    let_go.send(()).unwrap();
    soon(dismissing).await;
    assert_eq!(soon(busy).await.unwrap().unwrap(), 0);
    // An actor that stops by itself meanwhile has not been stopped by its node.
    let watch = needed.watch();
    soon(needed.call(StopSelf {})).await.unwrap();
    assert_eq!(soon(watch).await, Down::Stopped);
}
