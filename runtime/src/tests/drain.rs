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
        assert!(futures::poll!(&mut idle).is_pending());
        assert_eq!(soon(began.recv()).await, Some(number));
        let_go.send(()).unwrap();
    }
    // The answer that the actor still owes counts, though no handler runs.
    let_go.send(()).unwrap();
    soon(gate.call(Pass { number: 2 })).await.unwrap();
    assert!(futures::poll!(&mut idle).is_pending());
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
