//! How busy this node is, and telling the others of it when that has changed enough.
//!
//! A node looks once a second. What it tells is a record to every member, so small changes are not
//! told: an idle cluster is silent. See [`Load`] for what is told, and [`is_news`] for when.

use std::{sync::Weak, time::Duration};

use footlight_runtime::System;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{groups::Backlog, network::Network, record::Load};

/// A node looks this often how busy it is.
const LOOK: Duration = Duration::from_secs(1);
/// The number of actors is told so late at most, if it has changed a little.
const LATE: Duration = Duration::from_secs(10);
/// A change of the processors' load that is worth telling.
const CPU_STEP: f32 = 0.1;

/// Tells until the node has gone.
pub(crate) async fn run(network: Weak<Network>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told_at = Instant::now();
    loop {
        look.tick().await;
        let Some(network) = network.upgrade() else { return };
        let now = measure(&network.system);
        let told = network.own().load;
        let news = is_news(&told, &now, told_at.elapsed());
        if news {
            told_at = Instant::now();
        }
        let system = &network.system;
        let telling = network.tell(|record| {
            if news {
                record.load = now;
            }
            for part in record.groups.values_mut() {
                for (actor, backlog) in &mut part.actors {
                    *backlog = Backlog::of(system.in_hand_of(*actor).unwrap_or_default());
                }
            }
        });
        if let Err(error) = telling {
            tracing::error!(%error, "how busy this node is could not be told");
        }
    }
}

fn measure(system: &System) -> Load {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Load { cpu: cpu(), actors: number(system.population()), in_hand: number(system.in_hand()) }
}

/// Whether it is worth telling how busy the node is: the load of the processors has changed by a
/// tenth of a core each, what its actors have in hand has reached another power of two, or the
/// number of actors has changed by more than an eighth, or at all for ten seconds.
fn is_news(told: &Load, now: &Load, since: Duration) -> bool {
    let in_hand = |load: &Load| Backlog::of(load.in_hand as usize);
    let actors = told.actors.abs_diff(now.actors);
    (told.cpu - now.cpu).abs() >= CPU_STEP
        || in_hand(told) != in_hand(now)
        || actors > told.actors / 8
        || (actors > 0 && since >= LATE)
}

/// The machine's load a core, rounded to a hundredth; 0 if the system does not tell.
fn cpu() -> f32 {
    let mut average = [0.0];
    // SAFETY: it writes at most as many numbers as it is told that there is room for.
    let written = unsafe { libc::getloadavg(average.as_mut_ptr(), 1) };
    // SAFETY: it only reads a setting of the system.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1);
    match written {
        1 => ((average[0] / cores as f64 * 100.0).round() / 100.0) as f32,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cpu: f32, actors: u32, in_hand: u32) -> Load {
        Load { cpu, actors, in_hand }
    }

    #[test]
    fn only_what_has_changed_enough_is_told() {
        let told = load(0.5, 80, 4);
        let soon = Duration::from_secs(1);
        for silent in [told, load(0.55, 80, 4), load(0.45, 90, 7), load(0.5, 70, 5)] {
            assert!(!is_news(&told, &silent, soon), "{silent:?}");
        }
        for news in [load(0.61, 80, 4), load(0.5, 91, 4), load(0.5, 69, 4), load(0.5, 80, 8)] {
            assert!(is_news(&told, &news, soon), "{news:?}");
        }
        // Of few actors each counts.
        assert!(is_news(&load(0.0, 1, 0), &load(0.0, 2, 0), soon));
        // What has changed a little is told late, what has not is never.
        assert!(is_news(&told, &load(0.5, 81, 4), LATE));
        assert!(!is_news(&told, &load(0.59, 80, 7), 100 * LATE));
    }

    #[test]
    fn the_machine_tells_its_load() {
        let cpu = cpu();
        assert!(cpu.is_finite() && cpu >= 0.0, "{cpu}");
    }
}
