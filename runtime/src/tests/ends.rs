//! How actors end, and what those who watch or wait are told.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use super::*;
use crate::{ActorAddr, ActorId, Cause, Claim, error::Failure, remote::End};

#[tokio::test]
async fn a_panic_ends_the_actor_and_its_caller_knows_at_once() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watch = probe.watch();
    let error = soon(probe.call(Boom { text: "on purpose".into() })).await.unwrap_err();
    assert_eq!(error.failure, Failure::may_have_run(Cause::Stopped));
    assert_eq!(soon(watch).await, Down::Panicked("on purpose".into()));
}

#[tokio::test]
async fn a_text_that_is_too_long_to_travel_is_cut_between_two_characters() {
    let system = system().await;
    // No character ends at the bound.
    let long = "three bytes each: ".to_owned() + &"…".repeat(10_000);
    let cut = |text: &str| {
        assert!(long.starts_with(text.strip_suffix(" …").expect("it says that it was cut")));
        assert!((8190..=8196).contains(&text.len()), "{}", text.len());
    };
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watch = probe.watch();
    soon(probe.call(Boom { text: long.clone() })).await.unwrap_err();
    let Down::Panicked(text) = soon(watch).await else { panic!() };
    cut(&text);
    // It is kept so, for those who ask late.
    assert_eq!(soon(probe.watch()).await, Down::Panicked(text));
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watch = probe.watch();
    soon(probe.call(FailSoon { why: long.clone() })).await.unwrap();
    let Down::Failed(text) = soon(watch).await else { panic!() };
    cut(&text);
}

#[tokio::test]
async fn the_error_or_panic_of_a_task_fails_its_actor() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watch = probe.watch();
    soon(probe.call(FailSoon { why: "no data left".into() })).await.unwrap();
    assert_eq!(soon(watch).await, Down::Failed("no data left".into()));

    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watch = probe.watch();
    soon(probe.call(PanicSoon { why: "odd".into() })).await.unwrap();
    assert_eq!(soon(watch).await, Down::Failed("a task panicked: odd".into()));
}

#[tokio::test]
async fn an_actor_that_cannot_bear_the_end_of_another_fails() {
    let system = system().await;
    let [one, two] = [system.spawn::<Probe>(()).await, system.spawn(()).await].map(Result::unwrap);
    soon(one.call(WatchIt { other: two.clone() })).await.unwrap();
    let watch = one.watch();
    two.kill();
    assert_eq!(soon(watch).await, Down::Failed("what I watched killed".into()));
}

#[tokio::test]
async fn stopping_killing_and_ending_oneself_are_told_apart() {
    let system = system().await;
    let spawn = async || system.spawn::<Probe>(()).await.unwrap();
    let stopped = spawn().await;
    stopped.stop();
    assert_eq!(soon(stopped.watch()).await, Down::Stopped);
    let itself = spawn().await;
    let watch = itself.watch();
    soon(itself.call(StopSelf {})).await.unwrap();
    assert_eq!(soon(watch).await, Down::Stopped);

    // Only a kill gets through to a handler that does not return.
    let (gate, mut began, _let_go) = gate(&system).await;
    let watch = gate.watch();
    let call = tokio::spawn(async move { (gate.call(Pass { number: 1 }).await, gate) });
    assert_eq!(soon(began.recv()).await, Some(1));
    system.end(watch.actor(), crate::remote::End::Stop);
    system.end(watch.actor(), crate::remote::End::Kill);
    assert_eq!(soon(watch).await, Down::Killed);
    let (error, _) = soon(call).await.unwrap();
    assert_eq!(error.unwrap_err().failure, Failure::may_have_run(Cause::Stopped));
}

#[tokio::test]
async fn watching_an_actor_that_has_ended_tells_at_once_how() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watches = [probe.watch(), probe.watch()];
    probe.stop();
    for watch in watches {
        assert_eq!(soon(watch).await, Down::Stopped, "each watcher is told");
    }
    assert_eq!(soon(probe.watch()).await, Down::Stopped);
    let probe = system.spawn::<Probe>(()).await.unwrap();
    soon(probe.call(Boom { text: "on purpose".into() })).await.unwrap_err();
    assert_eq!(soon(probe.watch()).await, Down::Panicked("on purpose".into()));
    let nobody = ActorAddr { actor: ActorId(999), ..probe.addr() };
    assert_eq!(soon(system.watch(nobody)).await, Down::NoSuchActor);
}

/// What an actor has, and how often it was given back.
#[derive(Default)]
struct Seat {
    number: u32,
    given_back: AtomicU32,
}

impl Claim for Seat {
    fn give_back(&self) {
        self.given_back.fetch_add(1, SeqCst);
    }
}

message!(AskSeat {} -> Option<u32>);

struct Seated;
impl Actor for Seated {
    type Args = ();
    const NAME: &'static str = "test.seated";
    async fn start(_: (), context: &Context<Self>) -> Result<Self> {
        assert!(context.claim::<Seat>().is_some(), "it can be read from the start");
        Ok(Seated)
    }
}

impl Handler<AskSeat> for Seated {
    async fn handle(&mut self, _: AskSeat, context: &Context<Self>) -> Option<u32> {
        context.claim::<Seat>().map(|seat| seat.number)
    }
}

struct Never;
impl Actor for Never {
    type Args = ();
    const NAME: &'static str = "test.never";
    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_claim_is_readable_and_given_back_before_the_end_is_told() {
    let system = system().await;
    let seat = Arc::new(Seat { number: 7, ..Seat::default() });
    for how in [End::Stop, End::Kill] {
        let before = seat.given_back.load(SeqCst);
        let claim: Option<Arc<dyn Claim>> = Some(seat.clone());
        let actor = system.spawn_with_claim::<Seated>((), claim).await.unwrap();
        assert_eq!(soon(actor.call(AskSeat {})).await.unwrap(), Some(7));
        assert_eq!(seat.given_back.load(SeqCst), before);
        let watch = actor.watch();
        system.end(actor.addr(), how);
        soon(watch).await;
        assert_eq!(seat.given_back.load(SeqCst), before + 1, "{how:?}");
    }
}

#[tokio::test]
async fn a_claim_is_given_back_when_the_actor_does_not_start() {
    let system = system().await;
    for panics in [false, true] {
        let seat = Arc::new(Seat::default());
        let claim: Option<Arc<dyn Claim>> = Some(seat.clone());
        system.spawn_with_claim::<Failing>(panics, claim).await.unwrap_err();
        assert!(seat.given_back.load(SeqCst) > 0);
    }
    // Nor when it was asked for and called off.
    let seat = Arc::new(Seat::default());
    let claim: Option<Arc<dyn Claim>> = Some(seat.clone());
    let mut start = Box::pin(system.spawn_with_claim::<Never>((), claim));
    assert!(futures::poll!(&mut start).is_pending());
    assert_eq!(seat.given_back.load(SeqCst), 0);
    drop(start);
    assert!(seat.given_back.load(SeqCst) > 0);
    assert!(system.census().is_empty());
}

struct Failing;
impl Actor for Failing {
    type Args = bool;
    const NAME: &'static str = "test.failing";
    async fn start(panics: bool, _: &Context<Self>) -> Result<Self> {
        assert!(!panics, "start went wrong");
        Err(Error::other("there is no such file"))
    }
}

#[tokio::test]
async fn an_actor_whose_start_fails_or_panics_never_was() {
    let system = system().await;
    let error = soon(system.spawn::<Failing>(false)).await.unwrap_err();
    assert_eq!(error.to_string(), "test.failing could not start: there is no such file");
    let error = soon(system.spawn::<Failing>(true)).await.unwrap_err();
    assert_eq!(error.to_string(), "test.failing could not start: panicked: start went wrong");
    assert!(system.census().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_stops_all_and_tells_all_who_watch() {
    let system = system().await;
    let mut watches = Vec::new();
    for _ in 0..50 {
        watches.push(system.spawn::<Probe>(()).await.unwrap().watch());
    }
    soon(system.shutdown(LONG)).await;
    for watch in watches {
        assert_eq!(soon(watch).await, Down::NodeLeft(NodeId(7)));
    }
    assert!(system.census().is_empty());
}

#[tokio::test]
async fn a_new_life_of_the_node_ends_the_actors_of_the_one_before() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    let watch = probe.watch();
    system.renew(Incarnation(2));
    assert_eq!(soon(watch).await, Down::Killed);
    assert_eq!(soon(probe.watch()).await, Down::NodeLost(NodeId(7)));
    let old = soon(probe.call(Echo { text: String::new() })).await.unwrap_err();
    assert_eq!(old.fate(), crate::Fate::NotSent, "{old}");
    let fresh = system.spawn::<Probe>(()).await.unwrap();
    assert_eq!(fresh.addr().incarnation, Incarnation(2));
    soon(fresh.call(Echo { text: String::new() })).await.unwrap();
}
