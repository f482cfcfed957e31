//! Calls, casts, answers now and later.

use super::*;
use crate::{Cause, Fate, error::Failure};

#[tokio::test]
async fn a_call_is_answered_and_casts_arrive_in_order() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let answer = soon(probe.call(Echo { text: "hello".into() })).await.unwrap();
    assert_eq!(answer, "hello");
    // More than the mailbox holds: the sender waits for room and keeps its order.
    for number in 0..100 {
        soon(probe.cast(Note { number })).await.unwrap();
    }
    assert_eq!(soon(probe.call(Notes {})).await.unwrap(), (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_answer_may_come_later_as_at_a_barrier() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let calls = (0..3).map(|_| probe.call(ReleaseAt { callers: 3 }));
    let mut places: Vec<u32> =
        soon(futures::future::join_all(calls)).await.into_iter().map(Result::unwrap).collect();
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2]);
}

#[tokio::test]
async fn a_reply_dropped_unanswered_may_have_run() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let (held, dropped) =
        soon(async { tokio::join!(probe.call(Hold {}), probe.call(DropHeld {})) }).await;
    dropped.unwrap();
    assert_eq!(held.unwrap_err().failure, Failure::may_have_run(Cause::Stopped));
}

#[tokio::test]
async fn a_call_past_its_deadline_may_have_run() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let patience = Duration::from_millis(20);
    let error = soon(probe.call_within(Hold {}, patience)).await.unwrap_err();
    assert_eq!(error.failure, Failure::may_have_run(Cause::TimedOut(patience)));
}

#[tokio::test]
async fn a_call_waiting_in_the_queue_of_a_stopped_actor_was_not_sent() {
    let system = system().await;
    let (gate, mut began, let_go) = gate(&system).await;
    let first = tokio::spawn({
        let gate = gate.clone();
        async move { gate.call(Pass { number: 1 }).await }
    });
    assert_eq!(soon(began.recv()).await, Some(1));
    let second = gate.call(Pass { number: 2 });
    let (second, ()) = soon(async {
        tokio::join!(second, async {
            gate.stop();
            let_go.send(()).unwrap();
        })
    })
    .await;
    assert_eq!(soon(first).await.unwrap().unwrap(), 1, "the message in hand is finished");
    assert_eq!(second.unwrap_err().failure, Failure::not_sent(Cause::Stopped));
}

#[tokio::test]
async fn an_actor_that_has_ended_takes_nothing_more() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    probe.stop();
    assert_eq!(soon(probe.watch()).await, Down::Stopped);
    let call = soon(probe.call(Echo { text: String::new() })).await.unwrap_err();
    let cast = soon(probe.cast(Note { number: 1 })).await.unwrap_err();
    let tried = probe.try_cast(Note { number: 2 }).unwrap_err();
    for error in [call, cast, tried] {
        assert_eq!(error.failure, Failure::not_sent(Cause::NoSuchActor), "{error}");
    }
}

#[tokio::test]
async fn an_address_of_this_node_where_nobody_is_fails_at_once() {
    let system = system().await;
    let alive = system.spawn::<Probe>(()).await.unwrap();
    let ended = system.spawn::<Probe>(()).await.unwrap().addr();
    system.end(ended, crate::remote::End::Kill);
    soon(system.watch(ended)).await;
    let past = crate::ActorAddr { incarnation: Incarnation(0), ..alive.addr() };
    let (nobody, lost) = (Cause::NoSuchActor, Cause::NodeLost(NodeId(7)));
    for (addr, cause) in [(ended, nobody.clone()), (past, lost)] {
        let gone = ActorRef::<Probe>::at(addr, &system);
        let call = soon(gone.call(Echo { text: String::new() })).await.unwrap_err();
        let cast = soon(gone.cast(Note { number: 1 })).await.unwrap_err();
        let tried = gone.try_cast(Note { number: 1 }).unwrap_err();
        for error in [call, cast, tried] {
            assert_eq!(error.failure, Failure::not_sent(cause.clone()), "{error}");
        }
    }
    let of_another_type = ActorRef::<Gate>::at(alive.addr(), &system);
    let error = soon(of_another_type.call(Pass { number: 1 })).await.unwrap_err();
    assert_eq!(error.failure, Failure::not_sent(nobody));
}

#[tokio::test]
async fn a_call_may_wait_for_ever() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let echo = probe.call_within(Echo { text: "x".into() }, Duration::MAX);
    assert_eq!(soon(echo).await.unwrap(), "x");
}

#[tokio::test]
async fn what_an_older_holder_of_a_lease_sends_is_refused() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let (old, new) = (probe.clone().fenced("shard-0", 1), probe.clone().fenced("shard-0", 2));
    let other = probe.clone().fenced("shard-1", 1);
    let echo = || Echo { text: "x".into() };
    soon(old.call(echo())).await.unwrap();
    soon(new.call(echo())).await.unwrap();
    let error = soon(old.call(echo())).await.unwrap_err();
    assert_eq!(error.fate(), Fate::NotSent);
    assert!(
        matches!(error.cause(), Cause::Refused(why) if why.contains("generation 1")),
        "{error}"
    );
    soon(new.call(echo())).await.unwrap();
    soon(other.call(echo())).await.unwrap();
    soon(probe.call(echo())).await.unwrap();
}

#[tokio::test]
async fn two_systems_in_one_process_know_nothing_of_each_other() {
    let (one, two) = (system().await, system().await);
    let probe = one.spawn::<Probe>(()).await.unwrap();
    let other = two.spawn::<Probe>(()).await.unwrap();
    assert_eq!(probe.addr().actor, other.addr().actor, "each counts for itself");
    probe.kill();
    assert_eq!(soon(probe.watch()).await, Down::Killed);
    soon(other.call(Echo { text: "here".into() })).await.unwrap();
    assert!(one.census().is_empty());
    assert_eq!(two.census(), [("test.probe", 1)]);
}

/// Sends notes: from its handlers, and from a task of its own.
struct Sender(ActorRef<Probe>);

message!(SendNote { number: u64, in_a_task: bool } -> std::result::Result<(), String>);

impl Actor for Sender {
    type Args = ActorRef<Probe>;
    const NAME: &'static str = "test.sender";

    async fn start(probe: ActorRef<Probe>, _: &Context<Self>) -> Result<Self> {
        Ok(Sender(probe))
    }
}

impl DeferredHandler<SendNote> for Sender {
    async fn handle(
        &mut self,
        send: SendNote,
        reply: ReplyTo<std::result::Result<(), String>>,
        context: &Context<Self>,
    ) {
        let probe = self.0.clone();
        let sent = async move {
            let sent = probe.call(Note { number: send.number }).await;
            reply.send(sent.map_err(|error| error.to_string()));
        };
        match send.in_a_task {
            true => context.run(async move {
                sent.await;
                Ok(())
            }),
            false => sent.await,
        }
    }
}

#[tokio::test]
async fn all_that_an_actor_under_a_lease_sends_carries_its_generation() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let sender = async |generation| {
        let fence = Some(crate::Fence { lease: 9, generation });
        crate::fence::under(fence, system.spawn::<Sender>(probe.clone())).await.unwrap()
    };
    let (old, new) = (sender(1).await, sender(2).await);
    for in_a_task in [false, true] {
        soon(old.call(SendNote { number: 1, in_a_task })).await.unwrap().unwrap();
    }
    soon(new.call(SendNote { number: 2, in_a_task: false })).await.unwrap().unwrap();
    for in_a_task in [false, true] {
        let refused = soon(old.call(SendNote { number: 3, in_a_task })).await.unwrap().unwrap_err();
        assert!(refused.contains("generation 1") && refused.contains("generation 2"), "{refused}");
        soon(new.call(SendNote { number: 4, in_a_task })).await.unwrap().unwrap();
    }
    // Whoever acts under no lease is not concerned.
    soon(probe.call(Note { number: 5 })).await.unwrap();
    assert_eq!(soon(probe.call(Notes {})).await.unwrap(), [1, 1, 2, 4, 4, 5]);
}
