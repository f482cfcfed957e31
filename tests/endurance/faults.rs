//! What goes wrong, drawn from a seed.

use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// What can be done to some of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL; started again when it heals.
    Kill,
    /// SIGSTOP, and SIGCONT when it heals.
    Freeze,
    /// Nothing passes between them and the others.
    Cut,
    /// What they send is lost.
    Mute,
    /// What is sent to them is lost.
    Deaf,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Kill => "killed",
            Kind::Freeze => "frozen",
            Kind::Cut => "cut off",
            Kind::Mute => "not heard",
            Kind::Deaf => "deaf",
        })
    }
}

/// One fault.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Which nodes, by number.
    pub(crate) nodes: Vec<usize>,
    /// For so long.
    pub(crate) lasts: Duration,
    /// Then so long nothing.
    pub(crate) pause: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(|node| (node + 1).to_string()).collect();
        let nodes = nodes.join(" and ");
        write!(f, "{nodes} {} for {:.1} s", self.kind, self.lasts.as_secs_f64())
    }
}

/// All faults of a run.
pub(crate) struct Faults {
    rng: ChaCha8Rng,
    kinds: Vec<Kind>,
    nodes: usize,
}

impl Faults {
    /// The same for the same seed.
    pub(crate) fn new(seed: u64, nodes: usize, with_cuts: bool) -> Self {
        let mut kinds = vec![Kind::Kill, Kind::Freeze];
        if with_cuts {
            kinds.extend([Kind::Cut, Kind::Cut, Kind::Mute, Kind::Deaf]);
        }
        Faults { rng: ChaCha8Rng::seed_from_u64(seed), kinds, nodes }
    }

    /// The next one: it befalls one or two nodes, so that a majority is left.
    pub(crate) fn draw(&mut self) -> Fault {
        let kind = self.kinds[self.rng.random_range(0..self.kinds.len())];
        let mut nodes: Vec<usize> = (0..self.nodes).collect();
        nodes.shuffle(&mut self.rng);
        nodes.truncate(self.rng.random_range(1..=2));
        nodes.sort_unstable();
        let mut millis = |from, to| Duration::from_millis(self.rng.random_range(from..to));
        Fault { kind, nodes, lasts: millis(300, 5000), pause: millis(0, 2000) }
    }
}
