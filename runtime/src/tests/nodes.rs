//! One actor's bad end harms no other; a node that ends leaves nothing behind.

use std::sync::{
    Arc, Mutex, Weak,
    mpsc::{Receiver, channel},
};

use futures::future::BoxFuture;

use super::*;
use crate::{
    ActorAddr, ActorId, Cause, Fate, Watch,
    cell::{Birth, Cell, start_error},
    error::Failure,
    remote::{Answer, End, Outgoing, Remote, Unsent},
};

/// An actor whose state panics when it is dropped.
struct Fragile;
impl Actor for Fragile {
    type Args = ();
    const NAME: &'static str = "test.fragile";
    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Fragile)
    }
}
impl Drop for Fragile {
    fn drop(&mut self) {
        panic!("on purpose, in a drop")
    }
}

#[tokio::test]
async fn a_panic_in_the_drop_of_one_actors_state_ends_nobody_else() {
    let system = system().await;
    let probe = system.spawn::<Probe>(()).await.unwrap();
    for end in [End::Stop, End::Kill] {
        let fragile = system.spawn::<Fragile>(()).await.unwrap();
        let watch = fragile.watch();
        system.end(fragile.addr(), end);
        let down = if end == End::Stop { Down::Stopped } else { Down::Killed };
        assert_eq!(soon(watch).await, down);
    }
    soon(probe.call(Echo { text: "still here".into() })).await.unwrap();
    let fresh = system.spawn::<Probe>(()).await.unwrap();
    fresh.stop();
    assert_eq!(soon(fresh.watch()).await, Down::Stopped, "ends are still told");
}

/// An actor whose state takes until it is let go to be dropped, and that runs a task: it sends back
/// what it gets.
struct Clinging(Receiver<()>);
type Channels = (Receiver<()>, mpsc::UnboundedReceiver<u8>, mpsc::UnboundedSender<u8>);
struct Cling(Mutex<Option<Channels>>);
impl Actor for Clinging {
    type Args = ();
    const NAME: &'static str = "test.clinging";
    async fn start(_: (), context: &Context<Self>) -> Result<Self> {
        let cling = context.system().extension::<Cling>();
        let cling = cling.and_then(|cling| cling.0.lock().unwrap().take());
        let (release, mut asked, tell) = cling.ok_or_else(|| Error::other("no channels"))?;
        context.run(async move {
            while let Some(number) = asked.recv().await {
                tell.send(number).ok();
            }
            Ok(())
        });
        Ok(Clinging(release))
    }
}
impl Drop for Clinging {
    fn drop(&mut self) {
        // The test lets go by dropping its end.
        self.0.recv().ok();
    }
}
impl Handler<Boom> for Clinging {
    async fn handle(&mut self, boom: Boom, _: &Context<Self>) {
        panic!("{}", boom.text)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_actors_tasks_end_and_its_end_is_told_however_slow_its_drop() {
    for panics in [false, true] {
        let system = system().await;
        let (let_go, release) = channel();
        let (ask, asked) = mpsc::unbounded_channel();
        let (tell, mut told) = mpsc::unbounded_channel();
        system.extend(Arc::new(Cling(Mutex::new(Some((release, asked, tell))))));
        let clinging = system.spawn::<Clinging>(()).await.unwrap();
        let probe = system.spawn::<Probe>(()).await.unwrap();
        ask.send(1).unwrap();
        assert_eq!(soon(told.recv()).await, Some(1), "the task runs");
        let (watch, others) = (clinging.watch(), probe.watch());
        if panics {
            soon(clinging.call(Boom { text: "on purpose".into() })).await.unwrap_err();
            assert_eq!(soon(watch).await, Down::Panicked("on purpose".into()));
        } else {
            clinging.kill();
            assert_eq!(soon(watch).await, Down::Killed);
        }
        assert_eq!(soon(told.recv()).await, None, "the task ends with it");
        probe.stop();
        assert_eq!(soon(others).await, Down::Stopped, "others' ends are told meanwhile");
        drop(let_go);
    }
}

/// A message that panics when it is dropped unread.
#[derive(Serialize, Deserialize)]
struct Spiteful;
impl Message for Spiteful {
    type Reply = ();
    const NAME: &'static str = "test.spiteful";
}
impl Drop for Spiteful {
    fn drop(&mut self) {
        panic!("on purpose, in a message's drop")
    }
}
impl Handler<Spiteful> for Gate {
    async fn handle(&mut self, spiteful: Spiteful, _: &Context<Self>) {
        std::mem::forget(spiteful);
    }
}

#[tokio::test]
async fn an_actor_whose_task_broke_off_is_not_said_to_have_stopped() {
    let system = system().await;
    let (gate, mut began, let_go) = gate(&system).await;
    let watch = gate.watch();
    gate.try_cast(Pass { number: 1 }).unwrap();
    assert_eq!(soon(began.recv()).await, Some(1));
    gate.try_cast(Spiteful).unwrap();
    gate.stop();
    let_go.send(()).unwrap();
    assert_eq!(soon(watch).await, Down::Killed);
}

#[tokio::test]
async fn an_actor_that_was_asked_for_in_a_past_life_of_the_node_does_not_start() {
    let system = system().await;
    let asked = |id| Birth {
        claim: None,
        id,
        incarnation: Incarnation(1),
        args: (),
        fence: None,
        system: system.clone(),
    };
    let (free, well_known) = (asked(ActorId(100)), asked(ActorId(3)));
    system.renew(Incarnation(2));
    let late = ractor::Actor::spawn(None, Cell::<Probe>::new(), free).await;
    let error = late.map(|_| ()).map_err(start_error::<Probe>).unwrap_err();
    assert!(error.to_string().contains("the node began a new life meanwhile"), "{error}");
    assert!(system.census().is_empty());
    // The node's own actors live through it.
    ractor::Actor::spawn(None, Cell::<Probe>::new(), well_known).await.map(|_| ()).unwrap();
    assert_eq!(system.census(), [("test.probe", 1)]);
}

#[tokio::test]
async fn an_actor_that_starts_while_its_node_ends_never_was() {
    let system = system().await;
    soon(system.shutdown(LONG)).await;
    let error = soon(system.spawn::<Probe>(())).await.unwrap_err();
    assert!(error.to_string().ends_with("could not start: the node ended meanwhile"), "{error}");
    assert!(system.census().is_empty());
}

#[tokio::test]
async fn killing_all_ends_all_at_once_and_tells_all_who_watch() {
    let system = system().await;
    let (gate, mut began, _let_go) = gate(&system).await;
    let probe = system.spawn_well_known::<Probe>(ActorId(3), ()).await.unwrap();
    gate.try_cast(Pass { number: 1 }).unwrap();
    assert_eq!(soon(began.recv()).await, Some(1), "in the middle of a message");
    let watches = [gate.watch(), probe.watch()];
    system.kill_all();
    assert!(system.census().is_empty());
    for mut watch in watches {
        assert_eq!(futures::poll!(&mut watch), std::task::Poll::Ready(Down::Killed));
    }
    assert_eq!(soon(began.recv()).await, None, "its state is gone");
    let call = soon(probe.call(Echo { text: String::new() })).await.unwrap_err();
    assert_eq!(call.fate(), Fate::NotSent, "{call}");
}

/// A way to other nodes on which nothing arrives; it knows the system, as the real one does.
struct Nowhere(#[expect(dead_code, reason = "held, to make the cycle")] System);
impl Remote for Nowhere {
    fn send(
        &self,
        _: Outgoing,
        _: Option<Answer>,
        _: Duration,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Err(Failure::not_sent(Cause::Overloaded)) })
    }
    fn try_send(&self, _: Outgoing, _: Option<Answer>) -> Result<(), Unsent> {
        Err(Unsent::Failed(Failure::not_sent(Cause::Overloaded)))
    }
    fn watch(&self, actor: ActorAddr) -> Watch {
        Watch::new(actor).1
    }
    fn end(&self, _: ActorAddr, _: End) {}
    fn link(&self, _: ActorAddr, _: ActorAddr, _: bool) {}
}

#[tokio::test]
async fn a_connection_that_is_let_go_is_freed_and_reaches_nobody_any_more() {
    let system = system().await;
    let remote = Arc::new(Nowhere(system.clone()));
    let held: Weak<Nowhere> = Arc::downgrade(&remote);
    system.connect(remote);
    let elsewhere = ActorAddr { node: NodeId(8), incarnation: Incarnation(1), actor: ActorId(100) };
    let probe = ActorRef::<Probe>::at(elsewhere, &system);
    let error = soon(probe.cast(Note { number: 1 })).await.unwrap_err();
    assert_eq!(error.cause(), &Cause::Overloaded, "it goes through the connection");
    system.disconnect();
    assert!(held.upgrade().is_none());
    let error = soon(probe.cast(Note { number: 1 })).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Unreachable(_)), "{error}");
}
