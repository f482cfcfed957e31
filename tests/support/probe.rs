//! An actor that does what it is told, and the messages to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use footlight::{
    cluster::NodeBuilder,
    prelude::*,
    runtime::{Failure, NodeId},
};
use futures::StreamExt;

macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* } -> $reply:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
        impl Message for $name {
            type Reply = $reply;
            const NAME: &'static str = concat!("test.", stringify!($name));
        }
    };
}

message!(Echo { text: String } -> String);
message!(
    /// Where are you: the node and the process.
    Where {} -> (NodeId, u32));
message!(
    /// Never answered, until the probe ends.
    Hold {} -> ());
message!(
    /// How many `Hold`s are held.
    Held {} -> usize);
message!(Boom { text: String } -> ());
message!(
    /// Remembers the number and the tensor's size.
    Note { number: u64, tensor: Option<HostTensor> } -> ());
message!(Notes {} -> Vec<u64>);
message!(
    /// Calls `Where` at another probe.
    Relay { to: ActorRef<Probe> } -> Result<(NodeId, u32), Failure>);
message!(
    /// Handles nothing until `Unblock` comes to another probe of the node.
    Block {} -> ());
message!(
    /// Takes so long to be handled.
    Nap { millis: u64 } -> ());
message!(Unblock {} -> ());
message!(
    /// Whether a probe of the node handles `Block` now.
    Blocked {} -> bool);
message!(
    /// So many numbers, as the reader takes them.
    Count { to: u64 } -> Streamed<u64>);
message!(
    /// How many numbers have been taken from the producer, and whether it has ended.
    Produced {} -> (u64, bool));
message!(
    /// A stream that brings nothing and only waits for its end.
    Silence {} -> Streamed<u64>);
message!(
    /// Tensors come back as they went.
    Mirror { tensor: HostTensor } -> HostTensor);
message!(
    /// A text so long.
    Text { bytes: usize } -> String);
message!(
    /// A tensor so large, of memory of its own.
    Ones { bytes: usize } -> HostTensor);
message!(
    /// Sends so many tensors to another probe, each of memory of its own.
    Pour { to: ActorRef<Probe>, tensors: u64, bytes: usize, millis: u64 } -> ());
message!(
    /// Takes so long, and remembers the number if the tensor is filled with it.
    Sip { number: u64, tensor: HostTensor, millis: u64 } -> ());
message!(Shaped { field: u32 } -> ());
message!(
    /// Watches another probe; the ends are asked for by `Ends`.
    WatchIt { other: ActorRef<Probe> } -> ());
message!(Ends {} -> Vec<String>);

mod other {
    use super::*;
    #[derive(Debug, Serialize, Deserialize)]
    pub(crate) struct Shaped {
        pub(crate) field: u64,
    }
    impl Message for Shaped {
        type Reply = ();
        const NAME: &'static str = "test.Shaped";
    }
}

/// Registers the probe and its messages.
pub(crate) fn register(builder: NodeBuilder) -> NodeBuilder {
    builder.register::<Probe>(|probe| {
        probe
            .handles::<Echo>()
            .handles::<Where>()
            .defers::<Hold>()
            .handles::<Held>()
            .handles::<Boom>()
            .handles::<Note>()
            .handles::<Notes>()
            .handles::<Relay>()
            .handles::<Block>()
            .handles::<Nap>()
            .handles::<Unblock>()
            .handles::<Blocked>()
            .handles::<Count>()
            .handles::<Produced>()
            .handles::<Silence>()
            .handles::<Mirror>()
            .handles::<Text>()
            .handles::<Ones>()
            .handles::<Pour>()
            .handles::<Sip>()
            .handles::<Shaped>()
            .handles::<WatchIt>()
            .handles::<Ends>()
    })
}

/// Another type that takes a message of the name `test.Shaped`, in another shape, in place of the
/// probe.
pub(crate) fn register_other_shape(builder: NodeBuilder) -> NodeBuilder {
    builder.register::<Probe>(|probe| probe.handles::<Where>().handles::<other::Shaped>())
}

/// Opened by `Unblock`; laid beside a node's actors, since a blocked probe takes no message.
#[derive(Default)]
pub(crate) struct Gate {
    opened: tokio::sync::Notify,
    blocked: AtomicBool,
}

/// What a stream's producer has done so far.
#[derive(Default)]
struct Producer {
    sent: AtomicU64,
    ended: AtomicBool,
}

/// An actor that does what it is told.
pub(crate) struct Probe {
    held: Vec<ReplyTo<()>>,
    notes: Vec<u64>,
    ends: Vec<String>,
    producer: Arc<Producer>,
}

impl Actor for Probe {
    type Args = ();
    const NAME: &'static str = "test.probe";

    async fn start(_: (), context: &Context<Self>) -> Result<Self> {
        if context.system().extension::<Gate>().is_none() {
            context.system().extend(Arc::new(Gate::default()));
        }
        Ok(Probe {
            held: Vec::new(),
            notes: Vec::new(),
            ends: Vec::new(),
            producer: Default::default(),
        })
    }

    async fn down(
        &mut self,
        _: footlight::runtime::ActorAddr,
        down: Down,
        _: &Context<Self>,
    ) -> Result<()> {
        self.ends.push(down.to_string());
        Ok(())
    }
}

impl Handler<Echo> for Probe {
    async fn handle(&mut self, echo: Echo, _: &Context<Self>) -> String {
        echo.text
    }
}

impl Handler<Where> for Probe {
    async fn handle(&mut self, _: Where, context: &Context<Self>) -> (NodeId, u32) {
        (context.system().node(), std::process::id())
    }
}

impl DeferredHandler<Hold> for Probe {
    async fn handle(&mut self, _: Hold, reply: ReplyTo<()>, _: &Context<Self>) {
        self.held.push(reply);
    }
}

impl Handler<Held> for Probe {
    async fn handle(&mut self, _: Held, _: &Context<Self>) -> usize {
        self.held.len()
    }
}

impl Handler<Boom> for Probe {
    async fn handle(&mut self, boom: Boom, _: &Context<Self>) {
        panic!("{}", boom.text)
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

impl Handler<Relay> for Probe {
    async fn handle(&mut self, relay: Relay, _: &Context<Self>) -> Result<(NodeId, u32), Failure> {
        relay.to.call_within(Where {}, Duration::from_secs(15)).await.map_err(|error| error.failure)
    }
}

impl Handler<Block> for Probe {
    async fn handle(&mut self, _: Block, context: &Context<Self>) {
        if let Some(gate) = context.system().extension::<Gate>() {
            gate.blocked.store(true, SeqCst);
            gate.opened.notified().await;
            gate.blocked.store(false, SeqCst);
        }
    }
}

impl Handler<Nap> for Probe {
    async fn handle(&mut self, nap: Nap, _: &Context<Self>) {
        tokio::time::sleep(Duration::from_millis(nap.millis)).await;
    }
}

impl Handler<Unblock> for Probe {
    async fn handle(&mut self, _: Unblock, context: &Context<Self>) {
        if let Some(gate) = context.system().extension::<Gate>() {
            gate.opened.notify_one();
        }
    }
}

impl Handler<Blocked> for Probe {
    async fn handle(&mut self, _: Blocked, context: &Context<Self>) -> bool {
        context.system().extension::<Gate>().is_some_and(|gate| gate.blocked.load(SeqCst))
    }
}

impl Handler<Count> for Probe {
    async fn handle(&mut self, count: Count, context: &Context<Self>) -> Streamed<u64> {
        let producer = Arc::new(Producer::default());
        self.producer = producer.clone();
        let (sender, numbers) = Streamed::channel(1);
        context.run(async move {
            for number in 0..count.to {
                if sender.send(number).await.is_err() {
                    break;
                }
                producer.sent.fetch_add(1, SeqCst);
            }
            producer.ended.store(true, SeqCst);
            Ok(())
        });
        numbers
    }
}

impl Handler<Produced> for Probe {
    async fn handle(&mut self, _: Produced, _: &Context<Self>) -> (u64, bool) {
        (self.producer.sent.load(SeqCst), self.producer.ended.load(SeqCst))
    }
}

impl Handler<Silence> for Probe {
    async fn handle(&mut self, _: Silence, context: &Context<Self>) -> Streamed<u64> {
        let producer = Arc::new(Producer::default());
        self.producer = producer.clone();
        let (sender, nothing) = Streamed::channel(1);
        context.run(async move {
            sender.closed().await;
            producer.ended.store(true, SeqCst);
            Ok(())
        });
        nothing
    }
}

impl Handler<Mirror> for Probe {
    async fn handle(&mut self, mirror: Mirror, _: &Context<Self>) -> HostTensor {
        mirror.tensor
    }
}

impl Handler<Text> for Probe {
    async fn handle(&mut self, text: Text, _: &Context<Self>) -> String {
        "x".repeat(text.bytes)
    }
}

impl Handler<Ones> for Probe {
    async fn handle(&mut self, ones: Ones, _: &Context<Self>) -> HostTensor {
        HostTensor::from_vec(vec![1u8; ones.bytes], &[ones.bytes]).unwrap()
    }
}

impl Handler<Pour> for Probe {
    async fn handle(&mut self, pour: Pour, _: &Context<Self>) {
        for number in 0..pour.tensors {
            let tensor = HostTensor::from_vec(vec![number as u8; pour.bytes], &[pour.bytes]);
            let sip = Sip { number, tensor: tensor.unwrap(), millis: pour.millis };
            pour.to.cast(sip).await.unwrap();
        }
    }
}

impl Handler<Sip> for Probe {
    async fn handle(&mut self, sip: Sip, _: &Context<Self>) {
        tokio::time::sleep(Duration::from_millis(sip.millis)).await;
        let bytes = sip.tensor.bytes();
        if [bytes.first(), bytes.last()] == [Some(&(sip.number as u8)); 2] {
            self.notes.push(sip.number);
        }
    }
}

impl Handler<Shaped> for Probe {
    async fn handle(&mut self, shaped: Shaped, _: &Context<Self>) {
        self.notes.push(shaped.field.into());
    }
}

impl Handler<other::Shaped> for Probe {
    async fn handle(&mut self, shaped: other::Shaped, _: &Context<Self>) {
        self.notes.push(shaped.field);
    }
}

impl Handler<WatchIt> for Probe {
    async fn handle(&mut self, watch: WatchIt, context: &Context<Self>) {
        context.watch(&watch.other);
    }
}

impl Handler<Ends> for Probe {
    async fn handle(&mut self, _: Ends, _: &Context<Self>) -> Vec<String> {
        self.ends.clone()
    }
}

/// All items of a stream, the first error in their place.
pub(crate) async fn collect(stream: Streamed<u64>) -> Result<Vec<u64>, Failure> {
    stream.collect::<Vec<_>>().await.into_iter().collect()
}
