//! What one node promises, seen from a user's side.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    Actor, ActorRef, Context, DeferredHandler, Down, Error, Handler, Message, NodeId, ReplyTo,
    Result, System, env::Env, id::Incarnation, registry::Types,
};

/// How long a test waits for what must come.
const LONG: Duration = Duration::from_secs(20);

async fn system() -> System {
    let mut types = Types::default();
    types.register::<Probe>(|probe| probe.handles::<Echo>().handles::<Note>());
    System::start(NodeId(7), Incarnation(1), types, Env::system().unwrap()).await.unwrap()
}

/// Waits for something that must come, and not for ever.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it took too long")
}

macro_rules! message {
    ($name:ident { $($field:ident: $type:ty),* } -> $reply:ty) => {
        #[derive(Debug, Serialize, Deserialize)]
        struct $name { $($field: $type),* }
        impl Message for $name {
            type Reply = $reply;
            const NAME: &'static str = concat!("test.", stringify!($name));
        }
    };
}

mod calls;
mod drain;
mod ends;
mod links;
mod mailboxes;
mod nodes;
mod values;

message!(Echo { text: String } -> String);
message!(Note { number: u64 } -> ());
message!(Notes {} -> Vec<u64>);
message!(Boom { text: String } -> ());
message!(Hold {} -> u32);
message!(ReleaseAt { callers: usize } -> u32);
message!(DropHeld {} -> ());
message!(FailSoon { why: String } -> ());
message!(PanicSoon { why: String } -> ());
message!(WatchIt { other: ActorRef<Probe> } -> ());
message!(StopSelf {} -> ());

/// An actor that does what it is told.
struct Probe {
    notes: Vec<u64>,
    held: Vec<ReplyTo<u32>>,
    barrier: Vec<ReplyTo<u32>>,
    fail_on_down: bool,
}

impl Actor for Probe {
    type Args = ();
    const NAME: &'static str = "test.probe";
    const MAILBOX: usize = 8;

    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Probe { notes: Vec::new(), held: Vec::new(), barrier: Vec::new(), fail_on_down: false })
    }

    async fn down(&mut self, _: crate::ActorAddr, down: Down, _: &Context<Self>) -> Result<()> {
        if self.fail_on_down {
            return Err(Error::other(format!("what I watched {down}")));
        }
        Ok(())
    }
}

impl Handler<Echo> for Probe {
    async fn handle(&mut self, echo: Echo, _: &Context<Self>) -> String {
        echo.text
    }
}

impl Handler<Note> for Probe {
    async fn handle(&mut self, note: Note, _: &Context<Self>) {
        self.notes.push(note.number);
    }
}

impl Handler<Notes> for Probe {
    async fn handle(&mut self, _: Notes, _: &Context<Self>) -> Vec<u64> {
        self.notes.clone()
    }
}

impl Handler<Boom> for Probe {
    async fn handle(&mut self, boom: Boom, _: &Context<Self>) {
        panic!("{}", boom.text)
    }
}

impl DeferredHandler<Hold> for Probe {
    async fn handle(&mut self, _: Hold, reply: ReplyTo<u32>, _: &Context<Self>) {
        self.held.push(reply);
    }
}

impl DeferredHandler<ReleaseAt> for Probe {
    async fn handle(&mut self, at: ReleaseAt, reply: ReplyTo<u32>, _: &Context<Self>) {
        self.barrier.push(reply);
        if self.barrier.len() == at.callers {
            for (place, reply) in self.barrier.drain(..).enumerate() {
                reply.send(place as u32);
            }
        }
    }
}

impl Handler<DropHeld> for Probe {
    async fn handle(&mut self, _: DropHeld, _: &Context<Self>) {
        self.held.clear();
    }
}

impl Handler<FailSoon> for Probe {
    async fn handle(&mut self, fail: FailSoon, context: &Context<Self>) {
        context.run(async move { Err(Error::other(fail.why)) });
    }
}

impl Handler<PanicSoon> for Probe {
    async fn handle(&mut self, soon: PanicSoon, context: &Context<Self>) {
        context.run(async move { panic!("{}", soon.why) });
    }
}

impl Handler<WatchIt> for Probe {
    async fn handle(&mut self, watch: WatchIt, context: &Context<Self>) {
        self.fail_on_down = true;
        context.watch(&watch.other);
    }
}

impl Handler<StopSelf> for Probe {
    async fn handle(&mut self, _: StopSelf, context: &Context<Self>) {
        context.stop();
    }
}

/// An actor that tells when it begins a message and goes on when it is let. Its channels can't
/// travel, so tests lay them out in the system before it starts.
struct Gate {
    began: mpsc::UnboundedSender<u64>,
    go: mpsc::UnboundedReceiver<()>,
}

message!(Pass { number: u64 } -> u64);

struct Gates(std::sync::Mutex<VecDeque<Gate>>);

impl Actor for Gate {
    type Args = ();
    const NAME: &'static str = "test.gate";
    const MAILBOX: usize = 4;

    async fn start(_: (), context: &Context<Self>) -> Result<Self> {
        let gates = context.system().extension::<Gates>();
        let gate = gates.and_then(|gates| gates.0.lock().unwrap().pop_front());
        gate.ok_or_else(|| Error::other("no gate was laid out"))
    }
}

impl Handler<Pass> for Gate {
    async fn handle(&mut self, pass: Pass, _: &Context<Self>) -> u64 {
        self.began.send(pass.number).ok();
        self.go.recv().await;
        pass.number
    }
}

/// A gate, what it has begun, and the way to let it go on.
async fn gate(
    system: &System,
) -> (ActorRef<Gate>, mpsc::UnboundedReceiver<u64>, mpsc::UnboundedSender<()>) {
    let (began, beginnings) = mpsc::unbounded_channel();
    let (let_go, go) = mpsc::unbounded_channel();
    system.extend(std::sync::Arc::new(Gates(std::sync::Mutex::new([Gate { began, go }].into()))));
    (system.spawn::<Gate>(()).await.unwrap(), beginnings, let_go)
}
