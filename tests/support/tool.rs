//! An actor that needs something of its node, and tells what it got.

use footlight::{
    cluster::{Granted, NodeBuilder},
    prelude::*,
    runtime::NodeId,
};

macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* } -> $reply:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
        impl Message for $name {
            type Reply = $reply;
            const NAME: &'static str = concat!("test.tool.", stringify!($name));
        }
    };
}

message!(
    /// Its node, and the GPUs that it was granted: index and thousandths.
    AskGot {} -> (NodeId, Vec<(u32, u16)>));
message!(Fall { why: String } -> ());
message!(LinkTo { other: ActorRef<Tool>, linked: bool } -> ());
message!(
    /// How many links it has.
    Links {} -> usize);

/// How its start goes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) enum Begin {
    #[default]
    Ready,
    Fails(String),
    Panics,
}

/// The actor.
pub(crate) struct Tool;

impl Actor for Tool {
    type Args = Begin;
    const NAME: &'static str = "test.tool";

    async fn start(begin: Begin, _: &Context<Self>) -> Result<Self> {
        match begin {
            Begin::Ready => Ok(Tool),
            Begin::Fails(why) => Err(Error::other(why)),
            Begin::Panics => panic!("its start panics on purpose"),
        }
    }
}

impl Handler<AskGot> for Tool {
    async fn handle(&mut self, _: AskGot, context: &Context<Self>) -> (NodeId, Vec<(u32, u16)>) {
        let granted = Granted::of(context).expect("started through a node");
        let gpus = granted.gpus().iter().map(|gpu| (gpu.index, gpu.share)).collect();
        (context.system().node(), gpus)
    }
}

impl Handler<Fall> for Tool {
    async fn handle(&mut self, fall: Fall, _: &Context<Self>) {
        panic!("{}", fall.why)
    }
}

impl Handler<LinkTo> for Tool {
    async fn handle(&mut self, link: LinkTo, context: &Context<Self>) {
        match link.linked {
            true => context.link(&link.other),
            false => context.unlink(&link.other),
        }
    }
}

impl Handler<Links> for Tool {
    async fn handle(&mut self, _: Links, context: &Context<Self>) -> usize {
        context.links().len()
    }
}

pub(crate) fn register_tool(builder: NodeBuilder) -> NodeBuilder {
    builder.register::<Tool>(|tool| {
        tool.handles::<AskGot>().handles::<Fall>().handles::<LinkTo>().handles::<Links>()
    })
}
