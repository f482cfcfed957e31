//! An actor of which there is to be one: it tells a witness of itself, again and again, and leaves a
//! trace of each moment that it ran.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use footlight::{
    cluster::NodeBuilder,
    prelude::*,
    runtime::{NodeId, fence},
};

use super::{
    append,
    clock::monotonic,
    probe::{Note, Probe},
};

/// So often it tells the witness.
const BEAT: Duration = Duration::from_millis(10);

/// What it is started with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SoloArgs {
    /// Gets a `Note` with the generation, again and again.
    pub(crate) witness: Option<ActorRef<Probe>>,
    /// The file to which it adds its generation and the time, again and again.
    pub(crate) trace: Option<PathBuf>,
    /// It can't be started.
    pub(crate) broken: bool,
}

/// Where it is, and its generation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tell;

impl Message for Tell {
    type Reply = (NodeId, u64);
    const NAME: &'static str = "test.tell";
}

/// It ends by itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) panics: bool,
}

impl Message for End {
    type Reply = ();
    const NAME: &'static str = "test.end";
}

pub(crate) fn register_solo(builder: NodeBuilder) -> NodeBuilder {
    builder.register::<Solo>(|solo| solo.handles::<Tell>().handles::<End>())
}

/// The actor.
pub(crate) struct Solo {
    generation: u64,
}

impl Actor for Solo {
    type Args = SoloArgs;
    const NAME: &'static str = "test.solo";

    async fn start(args: SoloArgs, context: &Context<Self>) -> Result<Self> {
        if args.broken {
            return Err(Error::other("it is broken on purpose"));
        }
        let generation = fence::held().map_or(0, |fence| fence.generation);
        let mut trace = args.trace.as_deref().map(append).transpose()?;
        context.run(async move {
            loop {
                if let Some(trace) = &mut trace {
                    writeln!(trace, "{generation} {}", monotonic().as_micros())?;
                }
                if let Some(witness) = &args.witness {
                    // What is refused or lost on the way is the witness's business.
                    let _ = witness.try_cast(Note { number: generation, tensor: None });
                }
                tokio::time::sleep(BEAT).await;
            }
        });
        Ok(Solo { generation })
    }
}

impl Handler<Tell> for Solo {
    async fn handle(&mut self, _: Tell, context: &Context<Self>) -> (NodeId, u64) {
        (context.system().node(), self.generation)
    }
}

impl Handler<End> for Solo {
    async fn handle(&mut self, end: End, context: &Context<Self>) {
        if end.panics {
            panic!("it ends on purpose");
        }
        context.stop();
    }
}

/// When each generation of a solo ran, the first and the last moment, as its trace tells; by
/// generation.
pub(crate) fn lives(trace: &Path) -> BTreeMap<u64, (Duration, Duration)> {
    let mut lives = BTreeMap::new();
    for line in fs::read_to_string(trace).unwrap().lines() {
        let (generation, at) = line.split_once(' ').unwrap();
        let at = Duration::from_micros(at.parse().unwrap());
        let life = lives.entry(generation.parse().unwrap()).or_insert((at, at));
        life.1 = at;
    }
    lives
}
