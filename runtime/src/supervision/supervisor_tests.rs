use super::*;
use crate::{
    Actor, ActorRef, Context, Error, Handler, Message, NodeId,
    env::Env,
    id::Incarnation,
    registry::Types,
    remote::End,
    supervision::{Backoff, OneForAll, OneForOne, RestForOne, Restart},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

const LONG: Duration = Duration::from_secs(20);

/// Panics when told to.
struct Child;

#[derive(Serialize, Deserialize)]
struct Panic;
impl Message for Panic {
    type Reply = ();
    const NAME: &'static str = "test.panic";
}

impl Actor for Child {
    type Args = bool;
    const NAME: &'static str = "test.child";
    async fn start(fails: bool, _: &Context<Self>) -> Result<Self> {
        if fails { Err(Error::other("there is no data")) } else { Ok(Child) }
    }
}

impl Handler<Panic> for Child {
    async fn handle(&mut self, _: Panic, _: &Context<Self>) {
        panic!("on purpose")
    }
}

async fn system() -> System {
    let env = Env::system().unwrap();
    System::start(NodeId(7), Incarnation(1), Types::default(), env).await.unwrap()
}

fn child(system: &System, name: &str, restart: Restart) -> ChildSpec {
    let system = system.clone();
    ChildSpec::new(name, restart, move |_| {
        let system = system.clone();
        async move { Ok(system.spawn::<Child>(false).await?.addr()) }
    })
}

type Events = mpsc::UnboundedReceiver<ChildEvent>;

async fn start(
    system: &System,
    supervision: Supervision,
    children: &[&str],
) -> (Supervisor, Events) {
    let (tell, mut events) = mpsc::unbounded_channel();
    let count = children.len();
    let children = children.iter().map(|name| child(system, name, Restart::Permanent)).collect();
    let supervisor = Supervisor::start(system, quick(supervision), children, tell).await.unwrap();
    for _ in 0..count {
        assert!(next(&mut events).await.starts_with("started"));
    }
    (supervisor, events)
}

/// With a back-off that a test can wait for.
fn quick(supervision: Supervision) -> Supervision {
    let first = Duration::from_millis(1);
    supervision.backoff(Backoff { first, max: Duration::from_millis(10), ..Backoff::default() })
}

/// The next event in short.
async fn next(events: &mut Events) -> String {
    let event = tokio::time::timeout(LONG, events.recv()).await.expect("no event in time");
    match event.expect("the supervisor has ended") {
        ChildEvent::Started { child, starts, .. } => format!("started {child} {starts}"),
        ChildEvent::Down { child, down, .. } => format!("down {child} {down}"),
        ChildEvent::StartFailed { child, why } => format!("failed {child} {why}"),
        ChildEvent::Abandoned { child, why, .. } => format!("abandoned {child} {why}"),
        ChildEvent::GaveUp { why } => why,
        ChildEvent::Missed(_) => unreachable!("the supervisor itself waits for nobody"),
    }
}

async fn some<const N: usize>(events: &mut Events) -> [String; N] {
    let mut all = Vec::new();
    for _ in 0..N {
        all.push(next(events).await);
    }
    all.try_into().unwrap()
}

async fn make_panic(system: &System, supervisor: &Supervisor, child: &str) {
    let addr = supervisor.place(child).expect("it is up");
    let _ = ActorRef::<Child>::at(addr, system).call(Panic).await;
}

#[tokio::test]
async fn a_child_that_panics_is_started_again_alone() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, OneForOne::new(), &["a", "b"]).await;
    let (a, b) = (supervisor.place("a"), supervisor.place("b"));
    make_panic(&system, &supervisor, "a").await;
    assert_eq!(some(&mut events).await, ["down a panicked: on purpose", "started a 1"]);
    assert_ne!(supervisor.place("a"), a);
    assert_eq!(supervisor.place("b"), b);
    supervisor.stop().await;
}

#[tokio::test]
async fn with_rest_for_one_those_behind_go_down_last_first_and_come_back_in_order() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, RestForOne::new(), &["a", "b", "c"]).await;
    let a = supervisor.place("a");
    make_panic(&system, &supervisor, "b").await;
    assert_eq!(
        some(&mut events).await,
        ["down b panicked: on purpose", "down c stopped", "started b 1", "started c 1"]
    );
    assert_eq!(supervisor.place("a"), a);
    supervisor.stop().await;
}

#[tokio::test]
async fn with_one_for_all_everybody_is_started_again() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, OneForAll::new(), &["a", "b"]).await;
    make_panic(&system, &supervisor, "b").await;
    assert_eq!(
        some(&mut events).await,
        ["down b panicked: on purpose", "down a stopped", "started a 1", "started b 1"]
    );
    supervisor.stop().await;
}

#[tokio::test]
async fn past_the_limit_all_are_stopped_and_the_supervisor_ends() {
    let system = system().await;
    let limits = OneForOne::new().at_most(1, LONG);
    let (supervisor, mut events) = start(&system, limits, &["a", "b"]).await;
    make_panic(&system, &supervisor, "a").await;
    assert_eq!(some(&mut events).await, ["down a panicked: on purpose", "started a 1"]);
    make_panic(&system, &supervisor, "a").await;
    assert_eq!(next(&mut events).await, "down a panicked: on purpose");
    let gave_up = next(&mut events).await;
    assert_eq!(gave_up, "gave up on `a` (at most 1 restarts in 20s): panicked: on purpose");
    assert_eq!(next(&mut events).await, "down b stopped");
    let outcome = tokio::time::timeout(LONG, supervisor.ended()).await.unwrap();
    assert_eq!(outcome.unwrap_err().to_string(), gave_up);
    assert!(events.recv().await.is_none());
    assert!(system.census().is_empty());
}

#[tokio::test]
async fn stopping_stops_all_in_reverse_order() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, OneForOne::new(), &["a", "b", "c"]).await;
    tokio::time::timeout(LONG, supervisor.stop()).await.unwrap();
    assert_eq!(some(&mut events).await, ["down c stopped", "down b stopped", "down a stopped"]);
    assert!(system.census().is_empty());
}

#[tokio::test]
async fn a_transient_child_that_ends_by_itself_stays_down_and_the_supervisor_ends() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let children = vec![child(&system, "a", Restart::Transient)];
    let supervisor =
        Supervisor::start(&system, quick(OneForOne::new()), children, tell).await.unwrap();
    make_panic(&system, &supervisor, "a").await;
    assert_eq!(
        some(&mut events).await,
        ["started a 0", "down a panicked: on purpose", "started a 1"]
    );
    system.end(supervisor.place("a").unwrap(), End::Stop);
    assert_eq!(next(&mut events).await, "down a stopped");
    tokio::time::timeout(LONG, supervisor.ended()).await.unwrap().unwrap();
    assert_eq!(supervisor.place("a"), None);
}

#[tokio::test]
async fn children_that_cannot_be_started_are_an_error_of_the_start_that_says_why() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let spawner = system.clone();
    let broken = ChildSpec::new("broken", Restart::Permanent, move |_| {
        let system = spawner.clone();
        async move { Ok(system.spawn::<Child>(true).await?.addr()) }
    });
    let limits = quick(OneForOne::new().at_most(2, LONG));
    let children = vec![child(&system, "a", Restart::Permanent), broken];
    let error = Supervisor::start(&system, limits, children, tell).await.unwrap_err();
    assert!(error.to_string().starts_with("gave up on `broken` "), "{error}");
    assert!(error.to_string().ends_with(": there is no data"), "{error}");
    while tokio::time::timeout(LONG, events.recv()).await.unwrap().is_some() {}
    assert!(system.census().is_empty(), "those that were up have been stopped");
}

#[tokio::test]
async fn a_temporary_child_that_cannot_be_started_holds_nobody_up() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let broken = ChildSpec::new("broken", Restart::Temporary, |_| async {
        Err(Error::other("there is no data"))
    });
    let children = vec![child(&system, "a", Restart::Permanent), broken];
    let started = Supervisor::start(&system, quick(OneForOne::new()), children, tell);
    let supervisor = tokio::time::timeout(LONG, started).await.unwrap().unwrap();
    let mut first: [String; 2] = some(&mut events).await;
    first.sort();
    assert_eq!(first, ["failed broken there is no data", "started a 0"]);
    supervisor.stop().await;
}

#[tokio::test]
async fn a_dropped_supervisor_stops_its_children() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, OneForOne::new(), &["a"]).await;
    drop(supervisor);
    assert_eq!(next(&mut events).await, "down a stopped");
    assert!(tokio::time::timeout(LONG, events.recv()).await.unwrap().is_none());
}

/// Never returns, so that a stop does not get through to it.
#[derive(Serialize, Deserialize)]
struct Hang;
impl Message for Hang {
    type Reply = ();
    const NAME: &'static str = "test.hang";
}

impl Handler<Hang> for Child {
    async fn handle(&mut self, _: Hang, _: &Context<Self>) {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_stop_is_killed_and_does_not_hold_its_group_up() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, OneForAll::new(), &["a", "b"]).await;
    let stuck = ActorRef::<Child>::at(supervisor.place("b").unwrap(), &system);
    stuck.cast(Hang).await.unwrap();
    make_panic(&system, &supervisor, "a").await;
    assert_eq!(
        some(&mut events).await,
        ["down a panicked: on purpose", "down b killed", "started a 1", "started b 1"]
    );
    supervisor.stop().await;
}

/// A child that fails at its first `failures` attempts; tells the number of each attempt.
fn shaky(system: &System, failures: u32) -> (ChildSpec, mpsc::UnboundedReceiver<u32>) {
    let (tell, attempts) = mpsc::unbounded_channel();
    let system = system.clone();
    let spec = ChildSpec::new("shaky", Restart::Permanent, move |attempt| {
        let starts = attempt.number;
        tell.send(starts).ok();
        let system = system.clone();
        async move { Ok(system.spawn::<Child>(starts < failures).await?.addr()) }
    });
    (spec, attempts)
}

#[tokio::test(start_paused = true)]
async fn no_two_attempts_to_start_a_child_have_the_same_number() {
    let system = system().await;
    let (tell, _events) = mpsc::unbounded_channel();
    let (spec, mut attempts) = shaky(&system, 2);
    let supervision = quick(OneForOne::new());
    let supervisor = Supervisor::start(&system, supervision, vec![spec], tell).await.unwrap();
    make_panic(&system, &supervisor, "shaky").await;
    for number in 0..4 {
        assert_eq!(tokio::time::timeout(LONG, attempts.recv()).await.unwrap(), Some(number));
    }
    supervisor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_is_described_when_its_back_off_is_over_and_not_before() {
    let system = system().await;
    let (tell, _events) = mpsc::unbounded_channel();
    let (spec, mut attempts) = shaky(&system, 1);
    let wait = Duration::from_secs(7);
    let backoff = Backoff { first: wait, max: wait, jitter: 0.0, ..Backoff::default() };
    let supervision = OneForOne::new().backoff(backoff);
    let begun = Instant::now();
    let first = async {
        attempts.recv().await;
        attempts.recv().await;
        begun.elapsed()
    };
    let started = Supervisor::start(&system, supervision, vec![spec], tell);
    let (supervisor, second_attempt) = tokio::join!(started, first);
    assert!(second_attempt >= wait, "{second_attempt:?}");
    supervisor.unwrap().stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_its_back_off_is_not_started_to_be_stopped() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let (spec, mut attempts) = shaky(&system, 0);
    let wait = Duration::from_secs(2);
    let backoff = Backoff { first: wait, max: wait, jitter: 0.0, ..Backoff::default() };
    let supervision = OneForOne::new().backoff(backoff);
    let supervisor = Supervisor::start(&system, supervision, vec![spec], tell).await.unwrap();
    assert_eq!(attempts.recv().await, Some(0));
    make_panic(&system, &supervisor, "shaky").await;
    assert_eq!(some(&mut events).await, ["started shaky 0", "down shaky panicked: on purpose"]);
    let asked = Instant::now();
    supervisor.stop().await;
    assert!(asked.elapsed() < wait, "nobody waits for the back-off: {:?}", asked.elapsed());
    assert_eq!(attempts.recv().await, None, "it was started once");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_waits_is_called_off_when_its_group_begins_anew() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let wait = Duration::from_secs(5);
    let backoff = Backoff { first: wait, max: wait, jitter: 0.0, ..Backoff::default() };
    let children = ["a", "b"].map(|name| child(&system, name, Restart::Permanent));
    let supervision = RestForOne::new().backoff(backoff);
    let supervisor = Supervisor::start(&system, supervision, children.into(), tell).await.unwrap();
    assert_eq!(some(&mut events).await, ["started a 0", "started b 0"]);
    make_panic(&system, &supervisor, "b").await;
    assert_eq!(next(&mut events).await, "down b panicked: on purpose");
    make_panic(&system, &supervisor, "a").await;
    assert_eq!(
        some(&mut events).await,
        ["down a panicked: on purpose", "started a 1", "started b 1"],
        "b is started after a, and only once"
    );
    supervisor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_gives_up_waits_for_no_back_off() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let wait = Duration::from_secs(4);
    let backoff = Backoff { first: wait, max: wait, jitter: 0.0, ..Backoff::default() };
    let children = ["a", "b"].map(|name| child(&system, name, Restart::Permanent));
    let limits = OneForOne::new().at_most(1, LONG).backoff(backoff);
    let supervisor = Supervisor::start(&system, limits, children.into(), tell).await.unwrap();
    let _: [String; 2] = some(&mut events).await;
    make_panic(&system, &supervisor, "a").await;
    assert_eq!(next(&mut events).await, "down a panicked: on purpose");
    make_panic(&system, &supervisor, "b").await;
    assert_eq!(next(&mut events).await, "down b panicked: on purpose");
    assert!(next(&mut events).await.starts_with("gave up on `b` "));
    tokio::time::timeout(wait / 2, supervisor.ended()).await.expect("at once").unwrap_err();
    assert!(events.recv().await.is_none(), "a was not started again");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_childs_description_is_a_start_that_failed() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let odd = ChildSpec::new("odd", Restart::Temporary, |_| {
        if true {
            panic!("on purpose");
        }
        async { Err(Error::other("not reached")) }
    });
    let supervisor =
        Supervisor::start(&system, quick(OneForOne::new()), vec![odd], tell).await.unwrap();
    assert_eq!(next(&mut events).await, "failed odd its start panicked: on purpose");
    supervisor.stop().await;
}

#[tokio::test]
async fn a_child_can_be_added_and_taken_away() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, OneForOne::new(), &["a"]).await;
    supervisor.add(child(&system, "b", Restart::Permanent)).await.unwrap();
    assert_eq!(next(&mut events).await, "started b 0");
    let error = supervisor.add(child(&system, "b", Restart::Permanent)).await.unwrap_err();
    assert!(error.to_string().contains("two children are called `b`"), "{error}");
    make_panic(&system, &supervisor, "b").await;
    assert_eq!(some(&mut events).await, ["down b panicked: on purpose", "started b 1"]);
    supervisor.remove("a").await.unwrap();
    assert_eq!(next(&mut events).await, "down a stopped");
    assert_eq!(supervisor.places().all().len(), 1);
    assert_eq!(supervisor.place("a"), None);
    supervisor.remove("a").await.unwrap_err();
    // The last one's end is the supervisor's.
    supervisor.remove("b").await.unwrap();
    assert_eq!(next(&mut events).await, "down b stopped");
    tokio::time::timeout(LONG, supervisor.ended()).await.unwrap().unwrap();
    let error = supervisor.add(child(&system, "c", Restart::Permanent)).await.unwrap_err();
    assert_eq!(error.to_string(), "the supervisor has ended");
    assert!(system.census().is_empty());
}

#[tokio::test]
async fn what_cannot_be_added_is_told_and_harms_nobody() {
    let system = system().await;
    let limits = OneForAll::new().at_most(0, LONG);
    let (supervisor, mut events) = start(&system, limits, &["a"]).await;
    let broken = || {
        ChildSpec::new("broken", Restart::Permanent, |_| async {
            Err(Error::other("there is no data"))
        })
    };
    for _ in 0..2 {
        let error = supervisor.add(broken()).await.unwrap_err();
        assert_eq!(error.to_string(), "the child `broken` was not added: there is no data");
        assert_eq!(next(&mut events).await, "failed broken there is no data");
    }
    assert_eq!(supervisor.places().all().len(), 1);
    let added = supervisor.add(child(&system, "b", Restart::Permanent)).await.unwrap();
    assert_eq!(supervisor.place("b"), Some(added));
    assert_eq!(next(&mut events).await, "started b 0");
    supervisor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_child_has_the_time_to_stop_that_it_was_given() {
    let system = system().await;
    for (within, how) in [(Duration::from_secs(2), "killed"), (Duration::MAX, "stopped")] {
        let (tell, mut events) = mpsc::unbounded_channel();
        let slow = child(&system, "slow", Restart::Permanent).stop_within(within);
        let supervisor =
            Supervisor::start(&system, OneForOne::new(), vec![slow], tell).await.unwrap();
        assert!(next(&mut events).await.starts_with("started"));
        let at = ActorRef::<Child>::at(supervisor.place("slow").unwrap(), &system);
        at.cast(Rest(Duration::from_secs(30))).await.unwrap();
        let asked = Instant::now();
        supervisor.stop().await;
        assert_eq!(next(&mut events).await, format!("down slow {how}"));
        assert!(asked.elapsed() >= within.min(Duration::from_secs(29)), "{:?}", asked.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_stops_one_after_another_and_one_that_is_taken_away_waits_for_none() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, RestForOne::new(), &["a", "b", "c", "d"]).await;
    let late = ActorRef::<Child>::at(supervisor.place("d").unwrap(), &system);
    late.cast(Rest(Duration::from_secs(3))).await.unwrap();
    let asked = Instant::now();
    make_panic(&system, &supervisor, "b").await;
    assert_eq!(next(&mut events).await, "down b panicked: on purpose");
    supervisor.remove("a").await.unwrap();
    assert_eq!(next(&mut events).await, "down a stopped");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    // The last one takes its time, and c is not told before it is down.
    assert_eq!(
        some(&mut events).await,
        ["down d stopped", "down c stopped", "started b 1", "started c 1", "started d 1"]
    );
    assert!(asked.elapsed() >= Duration::from_secs(3), "{:?}", asked.elapsed());
    supervisor.stop().await;
}

/// Takes so long.
#[derive(Serialize, Deserialize)]
struct Rest(Duration);
impl Message for Rest {
    type Reply = ();
    const NAME: &'static str = "test.rest";
}

impl Handler<Rest> for Child {
    async fn handle(&mut self, rest: Rest, _: &Context<Self>) {
        tokio::time::sleep(rest.0).await;
    }
}

#[tokio::test]
async fn a_supervisor_that_stays_may_have_no_child() {
    let system = system().await;
    let (supervisor, mut events) = start(&system, OneForOne::new().stays(), &[]).await;
    for name in ["a", "b"] {
        supervisor.add(child(&system, name, Restart::Permanent)).await.unwrap();
        assert_eq!(next(&mut events).await, format!("started {name} 0"));
        supervisor.remove(name).await.unwrap();
        assert_eq!(next(&mut events).await, format!("down {name} stopped"));
    }
    supervisor.stop().await;
}

#[tokio::test]
async fn two_children_of_one_name_are_refused() {
    let system = system().await;
    let (tell, _events) = mpsc::unbounded_channel();
    let children = ["a", "a"].map(|name| child(&system, name, Restart::Permanent)).into();
    let error = Supervisor::start(&system, OneForOne::new(), children, tell).await.unwrap_err();
    assert!(error.to_string().contains("two children are called `a`"), "{error}");
    assert!(system.census().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_given_up_is_told_to_stop_and_started_anew() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let lost = child(&system, "a", Restart::Permanent).lost_when(
        |_| tokio::time::sleep(Duration::from_secs(3)),
        |_| async { "nobody hears of it".to_owned() },
    );
    let supervision = quick(OneForOne::new());
    let supervisor = Supervisor::start(&system, supervision, vec![lost], tell).await.unwrap();
    let first = supervisor.place("a").unwrap();
    assert_eq!(
        some(&mut events).await,
        ["started a 0", "abandoned a nobody hears of it", "started a 1"]
    );
    assert_eq!(system.watch(first).await, crate::Down::Stopped);
    assert_ne!(supervisor.place("a"), Some(first));
    supervisor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_only_waits_is_called_off() {
    let system = system().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let waiting = ChildSpec::new("waits", Restart::Permanent, |attempt| async move {
        attempt.called_off.cancelled().await;
        Err(Error::other("it was called off"))
    });
    let children = vec![child(&system, "a", Restart::Permanent)];
    let supervision = quick(OneForOne::new());
    let supervisor = Supervisor::start(&system, supervision, children, tell).await.unwrap();
    assert_eq!(next(&mut events).await, "started a 0");
    let asked = Instant::now();
    let (added, removed) =
        tokio::join!(supervisor.add(waiting.clone()), supervisor.remove("waits"));
    assert_eq!(added, Err(ChildError::Removed("waits".to_owned())));
    assert_eq!(removed, Ok(()));
    let added = supervisor.add(waiting);
    supervisor.stop().await;
    assert_eq!(added.await, Err(ChildError::Ended));
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert_eq!(next(&mut events).await, "down a stopped", "a start called off has not failed");
}
