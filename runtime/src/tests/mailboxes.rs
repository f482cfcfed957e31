//! Mailboxes have a bound, and what must pass it does.

use super::*;
use crate::{Cause, error::Failure};

#[tokio::test]
async fn a_full_mailbox_makes_a_cast_wait_and_a_try_fail() {
    let system = system().await;
    let (gate, mut began, let_go) = gate(&system).await;
    gate.try_cast(Pass { number: 0 }).unwrap();
    assert_eq!(soon(began.recv()).await, Some(0));
    // One is in hand; the mailbox holds 4 more.
    for number in 1..=4 {
        gate.try_cast(Pass { number }).unwrap();
    }
    let full = gate.try_cast(Pass { number: 99 }).unwrap_err();
    assert_eq!(full.failure, Failure::not_sent(Cause::Overloaded));
    let late = gate.call_within(Pass { number: 99 }, Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(late.failure, Failure::not_sent(Cause::Overloaded));

    let mut waiting = Box::pin(gate.cast(Pass { number: 5 }));
    assert!(futures::poll!(&mut waiting).is_pending());
    let_go.send(()).unwrap();
    soon(waiting).await.unwrap();
    for number in 1..=5 {
        assert_eq!(soon(began.recv()).await, Some(number));
        let_go.send(()).unwrap();
    }
}

#[tokio::test]
async fn a_stop_passes_a_full_mailbox() {
    let system = system().await;
    let (gate, mut began, let_go) = gate(&system).await;
    gate.try_cast(Pass { number: 0 }).unwrap();
    assert_eq!(soon(began.recv()).await, Some(0));
    for number in 1..=4 {
        gate.try_cast(Pass { number }).unwrap();
    }
    let watch = gate.watch();
    gate.stop();
    let_go.send(()).unwrap();
    assert_eq!(soon(watch).await, Down::Stopped);
    assert_eq!(began.recv().await, None, "what waited was dropped");
}

#[tokio::test]
async fn news_of_an_end_passes_a_full_mailbox() {
    struct Watcher(mpsc::UnboundedSender<Down>);
    struct Ends(mpsc::UnboundedSender<Down>);
    message!(Watch { other: ActorRef<Probe> } -> ());
    message!(Nap {} -> ());
    impl Actor for Watcher {
        type Args = ();
        const NAME: &'static str = "test.watcher";
        const MAILBOX: usize = 1;
        async fn start(_: (), context: &Context<Self>) -> Result<Self> {
            let ends = context.system().extension::<Ends>();
            ends.map(|ends| Watcher(ends.0.clone())).ok_or_else(|| Error::other("no ends"))
        }
        async fn down(&mut self, _: crate::ActorAddr, down: Down, _: &Context<Self>) -> Result<()> {
            self.0.send(down).ok();
            Ok(())
        }
    }
    impl Handler<Watch> for Watcher {
        async fn handle(&mut self, watch: Watch, context: &Context<Self>) {
            context.watch(&watch.other);
        }
    }
    impl Handler<Nap> for Watcher {
        async fn handle(&mut self, _: Nap, _: &Context<Self>) {}
    }

    let system = system().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    system.extend(std::sync::Arc::new(Ends(tell)));
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watcher = system.spawn::<Watcher>(()).await.unwrap();
    soon(watcher.call(Watch { other: probe.clone() })).await.unwrap();
    // Kept full from here on.
    let flood = tokio::spawn({
        let watcher = watcher.clone();
        async move { while watcher.cast(Nap {}).await.is_ok() {} }
    });
    probe.kill();
    assert_eq!(soon(told.recv()).await, Some(Down::Killed));
    watcher.kill();
    soon(flood).await.unwrap();
}

#[tokio::test]
async fn a_sender_that_waits_for_room_is_told_when_the_actor_ends() {
    let system = system().await;
    let (gate, mut began, _let_go) = gate(&system).await;
    gate.try_cast(Pass { number: 0 }).unwrap();
    assert_eq!(soon(began.recv()).await, Some(0));
    for number in 1..=4 {
        gate.try_cast(Pass { number }).unwrap();
    }
    let mut call = Box::pin(gate.call(Pass { number: 5 }));
    assert!(futures::poll!(&mut call).is_pending());
    gate.kill();
    let error = soon(call).await.unwrap_err();
    assert_eq!(error.fate(), crate::Fate::NotSent, "{error}");
}
