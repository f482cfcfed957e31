//! When a certificate is renewed.
//!
//! At a random moment between half and four fifths of its life, so that the nodes of a cluster that
//! was started at once don't all ask at once. What failed is tried again, at first after a hundredth
//! of the life, then less and less often, but never more rarely than a tenth of what is left: many
//! attempts fit into the last fifth. Times are of the wall clock, as certificates are.

use std::{ops::Range, time::Duration};

use rand::Rng;

/// Where in the life of a certificate it is renewed.
const WHEN: Range<f64> = 0.5..0.8;
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// A certificate's life and what is planned for it. Times are durations since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Renewal {
    began: Duration,
    expires: Duration,
    next: Duration,
    /// After the latest attempt that failed.
    pause: Option<Duration>,
}

impl Renewal {
    /// Plans the renewal of a certificate that came at `now` and is valid until `expires`.
    pub(crate) fn plan(now: Duration, expires: Duration, rng: &mut impl Rng) -> Self {
        let life = expires.saturating_sub(now);
        let next = now + life.mul_f64(fraction(rng, WHEN));
        Renewal { began: now, expires, next, pause: None }
    }

    /// When the next attempt is due.
    pub(crate) fn next(&self) -> Duration {
        self.next
    }

    /// How long the certificate is still valid.
    pub(crate) fn left(&self, now: Duration) -> Duration {
        self.expires.saturating_sub(now)
    }

    /// An attempt has failed.
    pub(crate) fn failed(&mut self, now: Duration) {
        let life = self.expires.saturating_sub(self.began);
        let pause = match self.pause {
            None => life / 100,
            Some(before) => before * 2,
        };
        // Once it has ended there is no hurry any more.
        let most = match self.left(now) {
            Duration::ZERO => MAX_PAUSE,
            left => MAX_PAUSE.min(left / 10),
        };
        let pause = pause.min(most).max(MIN_PAUSE);
        self.pause = Some(pause);
        self.next = now + pause;
    }
}

fn fraction(rng: &mut impl Rng, of: Range<f64>) -> f64 {
    // 53 bits are as many as an f64 has.
    let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    of.start + unit * (of.end - of.start)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const START: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn renewals_are_spread_over_half_to_four_fifths_of_the_life() {
        let planned: Vec<f64> = (0..1_000)
            .map(|seed| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let renewal = Renewal::plan(START, START + DAY, &mut rng);
                (renewal.next() - START).as_secs_f64() / DAY.as_secs_f64()
            })
            .collect();
        assert!(planned.iter().all(|at| (0.5..0.8).contains(at)));
        for tenth in 0..10 {
            let from = 0.5 + 0.03 * f64::from(tenth);
            let here = planned.iter().filter(|at| (from..from + 0.03).contains(*at)).count();
            assert!((50..200).contains(&here), "{here} of 1000 from {from}");
        }
    }

    #[test]
    fn what_failed_is_tried_again_many_times_before_the_end_and_for_ever_after_it() {
        for life in [Duration::from_secs(4), Duration::from_secs(3600), DAY, DAY * 90] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut renewal = Renewal::plan(START, START + life, &mut rng);
            let (mut now, mut attempts, mut last) = (renewal.next(), 0, Duration::ZERO);
            while renewal.left(now) > Duration::ZERO {
                renewal.failed(now);
                assert!(renewal.next() > now);
                last = renewal.next() - now;
                now = renewal.next();
                attempts += 1;
                assert!(attempts < 100_000);
            }
            assert!(attempts >= 8, "{attempts} in {life:?}");
            assert!(last <= MAX_PAUSE);
            renewal.failed(now);
            assert!(renewal.next() > now);
        }
    }
}
