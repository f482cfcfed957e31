//! A singleton that leaves a trace of each moment that it ran, and what must hold of all traces.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use footlight::{cluster::NodeBuilder, prelude::*, runtime::fence};

use crate::support;

const BEAT: Duration = Duration::from_millis(20);
/// Whoever did not beat for so long stood still: a frozen process can't know what it missed.
const STOOD_STILL: Duration = Duration::from_secs(1);
/// After that it has so long to learn it.
const TO_LEARN: Duration = Duration::from_millis(500);

/// What a beat is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BeatArgs {
    pub(crate) name: String,
    /// Where all instances leave their traces.
    pub(crate) trace: PathBuf,
    /// Hears of each beat, under the lease.
    pub(crate) witness: ActorRef<Witness>,
}

/// Beats as long as it runs.
pub(crate) struct Beat;

/// One beat.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Heard {
    name: String,
    generation: u64,
}

impl Message for Heard {
    type Reply = ();
    const NAME: &'static str = "chaos.heard";
}

/// Whose beats were heeded, by name: generations, in the order of their coming.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Heeded;

impl Message for Heeded {
    type Reply = BTreeMap<String, Vec<u64>>;
    const NAME: &'static str = "chaos.heeded";
}

/// Hears the beats.
pub(crate) struct Witness {
    heeded: BTreeMap<String, Vec<u64>>,
}

pub(crate) fn register(builder: NodeBuilder) -> NodeBuilder {
    builder
        .register::<Beat>(|beat| beat)
        .register::<Witness>(|witness| witness.handles::<Heard>().handles::<Heeded>())
        .with(support::register_tally)
}

impl Actor for Beat {
    type Args = BeatArgs;
    const NAME: &'static str = "chaos.beat";

    async fn start(args: BeatArgs, context: &Context<Self>) -> Result<Self> {
        let generation = fence::held().map_or(0, |fence| fence.generation);
        let mut trace = support::append(&args.trace)?;
        context.run(async move {
            loop {
                let line = format!(
                    "{} {generation} {}\n",
                    args.name,
                    support::clock::monotonic().as_micros()
                );
                trace.write_all(line.as_bytes())?;
                let beat = Heard { name: args.name.clone(), generation };
                // What is lost or refused on the way is the witness's business.
                let _ = args.witness.try_cast(beat);
                tokio::time::sleep(BEAT).await;
            }
        });
        Ok(Beat)
    }
}

impl Actor for Witness {
    type Args = ();
    const NAME: &'static str = "chaos.witness";

    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Witness { heeded: BTreeMap::new() })
    }
}

impl Handler<Heard> for Witness {
    async fn handle(&mut self, heard: Heard, _: &Context<Self>) {
        let heeded = self.heeded.entry(heard.name).or_default();
        if heeded.last() != Some(&heard.generation) {
            heeded.push(heard.generation);
        }
    }
}

impl Handler<Heeded> for Witness {
    async fn handle(&mut self, _: Heeded, _: &Context<Self>) -> BTreeMap<String, Vec<u64>> {
        self.heeded.clone()
    }
}

/// What the traces show.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// How many instances there were, of all singletons.
    pub(crate) generations: usize,
    /// The longest time that one of them ran nowhere.
    pub(crate) longest_gap: Duration,
    /// Beats of a process that was frozen, before it learned that another had taken over.
    pub(crate) posthumous: usize,
    pub(crate) breaches: Vec<String>,
}

/// Reads what all instances left behind. At any time at most one of a name ran, and generations grew.
pub(crate) fn read_traces(path: &Path) -> io::Result<Traces> {
    let mut instances = BTreeMap::<(String, u64), Vec<u64>>::new();
    for line in fs::read_to_string(path)?.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default().to_owned();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(generation), Some(at)) = (number(), number()) else {
            return Err(io::Error::other(format!("a trace that can't be read: {line}")));
        };
        instances.entry((name, generation)).or_default().push(at);
    }
    let mut traces = Traces { generations: instances.len(), ..Traces::default() };
    // The end of the one before, by name.
    let mut before = BTreeMap::<String, (u64, u64)>::new();
    let all: Vec<_> = instances.iter().collect();
    for (index, ((name, generation), beats)) in all.iter().enumerate() {
        let next = all.get(index + 1).filter(|((other, _), _)| other == name);
        let successor = next.and_then(|(_, beats)| beats.iter().min().copied());
        let mut beats = (*beats).clone();
        beats.sort_unstable();
        let mut woke = None;
        let mut last = beats[0];
        for at in &beats {
            if at - last > STOOD_STILL.as_micros() as u64 {
                woke = Some(*at);
            }
            let too_late = successor.is_some_and(|successor| *at >= successor);
            let excused = woke.is_some_and(|woke| at - woke <= TO_LEARN.as_micros() as u64);
            match (too_late, excused) {
                (true, true) => traces.posthumous += 1,
                (true, false) => {
                    let successor = successor.unwrap_or_default();
                    traces.breaches.push(format!(
                        "{name}: generation {generation} ran {} ms after the next one had begun",
                        (at - successor) / 1000
                    ));
                    break;
                }
                (false, _) => last = *at,
            }
        }
        if let Some((_, end)) = before.get(name) {
            let gap = Duration::from_micros(beats[0].saturating_sub(*end));
            traces.longest_gap = traces.longest_gap.max(gap);
        }
        before.insert(name.clone(), (*generation, last));
    }
    Ok(traces)
}
