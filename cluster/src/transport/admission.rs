//! Whose handshake is begun: what keeps strangers from taking up a node.
//!
//! A handshake costs a node a signature and some memory before it knows who is there. So there are
//! bounds, and they are fair:
//!
//! * Handshakes under way have 256 places. When they run short, who has not shown that it receives
//!   what is sent to its address has to show that first (QUIC's Retry, which costs this node neither
//!   memory nor a signature): a flood with made-up addresses ends there. When they are all taken, the
//!   oldest handshake of the source with the most gives way: an honest one is done in a few round
//!   trips.
//! * Each source may begin so many handshakes a second; all that are no members together, too.
//!
//! A source is an IPv4 address or an IPv6 network of 64 bits. A state machine without I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use tokio::time::Instant;

/// Most handshakes under way.
pub(crate) const PLACES: usize = 256;
/// From so many on, addresses must be proved.
const PROVE_FROM: usize = 64;
/// One source may begin so many at once, and so many a second.
const OF_ONE: Rate = Rate { burst: 256.0, per_second: 128.0 };
/// All that are no members may, together.
const OF_STRANGERS: Rate = Rate { burst: 512.0, per_second: 256.0 };
/// Most sources that are told apart; further ones share one budget.
const MAX_SOURCES: usize = 4096;

/// Where a handshake comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(addr: SocketAddr) -> Self {
        Source(match addr.ip().to_canonical() {
            // A host has a network of 64 bits to itself, and so any number of addresses.
            IpAddr::V6(ip) => {
                let network = u128::from(ip) & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from(network))
            }
            ip => ip,
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: f64,
    as_of: Instant,
}

impl Budget {
    fn full(rate: Rate, now: Instant) -> Self {
        Budget { left: rate.burst, as_of: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.as_of).as_secs_f64();
        self.left = (self.left + passed * rate.per_second).min(rate.burst);
        self.as_of = now;
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// What to do with a connection that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Begin the handshake, in this place; end the one in the other place, if one is named.
    Begin { place: u64, instead_of: Option<u64> },
    /// Ask for a proof of the address.
    Prove,
    /// Refuse: try again later.
    Refuse,
}

/// The handshakes under way and the budgets of those who begin them.
#[derive(Debug)]
pub(crate) struct Admission {
    next: u64,
    /// The handshakes under way by age.
    places: BTreeMap<u64, Source>,
    of_source: BTreeMap<Source, BTreeSet<u64>>,
    budgets: BTreeMap<Source, Budget>,
    /// Of the sources that are too many to be told apart.
    others: Budget,
    strangers: Budget,
}

impl Admission {
    pub(crate) fn new(now: Instant) -> Self {
        Admission {
            next: 0,
            places: BTreeMap::new(),
            of_source: BTreeMap::new(),
            budgets: BTreeMap::new(),
            others: Budget::full(OF_ONE, now),
            strangers: Budget::full(OF_STRANGERS, now),
        }
    }

    /// Somebody wants a connection. `proved`: the address was shown to be the sender's. `known`: a
    /// member has the same address.
    pub(crate) fn arrives(
        &mut self,
        from: SocketAddr,
        proved: bool,
        known: bool,
        now: Instant,
    ) -> Verdict {
        let source = Source::of(from);
        // A made-up address must not use up the budget of its owner when there is little left.
        let scarce = self.places.len() >= PROVE_FROM || self.runs_short(source, now);
        if scarce && !proved {
            return Verdict::Prove;
        }
        if !self.budget(source, now).take(OF_ONE, now)
            || !(known || self.strangers.take(OF_STRANGERS, now))
        {
            return Verdict::Refuse;
        }
        let instead_of = if self.places.len() >= PLACES { self.oldest_of_most() } else { None };
        if let Some(place) = instead_of {
            self.done(place);
        }
        self.next += 1;
        let place = self.next;
        self.places.insert(place, source);
        self.of_source.entry(source).or_default().insert(place);
        Verdict::Begin { place, instead_of }
    }

    /// A handshake has ended in one way or another.
    pub(crate) fn done(&mut self, place: u64) {
        let Some(source) = self.places.remove(&place) else { return };
        if let Some(places) = self.of_source.get_mut(&source) {
            places.remove(&place);
            if places.is_empty() {
                self.of_source.remove(&source);
            }
        }
    }

    fn runs_short(&mut self, source: Source, now: Instant) -> bool {
        self.strangers.refill(OF_STRANGERS, now);
        let half = |budget: &Budget, rate: Rate| budget.left < rate.burst / 2.0;
        half(&self.strangers, OF_STRANGERS)
            || self.budgets.get_mut(&source).is_some_and(|budget| {
                budget.refill(OF_ONE, now);
                half(budget, OF_ONE)
            })
    }

    fn budget(&mut self, source: Source, now: Instant) -> &mut Budget {
        if !self.budgets.contains_key(&source) && self.budgets.len() >= MAX_SOURCES {
            // Those that have all they could have are as good as unknown.
            self.budgets.retain(|_, budget| {
                budget.refill(OF_ONE, now);
                budget.left < OF_ONE.burst
            });
        }
        match self.budgets.len() < MAX_SOURCES || self.budgets.contains_key(&source) {
            true => self.budgets.entry(source).or_insert_with(|| Budget::full(OF_ONE, now)),
            false => &mut self.others,
        }
    }

    fn oldest_of_most(&self) -> Option<u64> {
        // Of equals the last in order: no matter which, but always the same.
        let most = self.of_source.values().max_by_key(|places| places.len())?;
        most.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(a: u8, b: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, a, b], 4433))
    }

    fn begins(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Begin { .. })
    }

    #[test]
    fn a_few_handshakes_begin_at_once() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let begun =
            (0..PROVE_FROM).filter(|_| begins(admission.arrives(at(0, 1), false, false, now)));
        assert_eq!(begun.count(), PROVE_FROM);
        // From here on the address has to be proved.
        assert_eq!(admission.arrives(at(0, 2), false, false, now), Verdict::Prove);
        assert!(begins(admission.arrives(at(0, 2), true, false, now)));
    }

    #[test]
    fn made_up_addresses_take_no_place_and_no_memory_once_there_are_many() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        for number in 0..100_000u32 {
            let from = SocketAddr::from((number.to_be_bytes(), 1));
            admission.arrives(from, false, false, now);
        }
        assert!(admission.places.len() <= PROVE_FROM);
        assert!(admission.budgets.len() <= PROVE_FROM);
        // An honest one still gets in.
        assert!(begins(admission.arrives(at(0, 1), true, false, now)));
    }

    #[test]
    fn half_handshakes_of_one_source_give_way_to_those_of_others() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let mut places = Vec::new();
        for _ in 0..PLACES {
            match admission.arrives(at(0, 1), true, false, now) {
                Verdict::Begin { place, instead_of: None } => places.push(place),
                other => panic!("{other:?}"),
            }
        }
        let Verdict::Begin { place, instead_of } = admission.arrives(at(0, 2), true, false, now)
        else {
            panic!()
        };
        assert_eq!(instead_of, places.first().copied());
        assert_eq!(admission.places.len(), PLACES);
        // The honest one is not the next to go, however many come.
        let later = now + Duration::from_secs(2);
        for _ in 0..200 {
            let verdict = admission.arrives(at(0, 1), true, false, later);
            assert!(
                !matches!(verdict, Verdict::Begin { instead_of: Some(gone), .. } if gone == place)
            );
        }
        admission.done(place);
        assert!(admission.places.len() < PLACES);
    }

    #[test]
    fn a_source_begins_so_many_at_once_and_so_many_a_second() {
        let mut now = Instant::now();
        let mut admission = Admission::new(now);
        let count = |admission: &mut Admission, now| {
            let mut begun = 0;
            for _ in 0..1_000 {
                if let Verdict::Begin { place, .. } = admission.arrives(at(0, 1), true, true, now) {
                    admission.done(place);
                    begun += 1;
                }
            }
            begun
        };
        assert_eq!(count(&mut admission, now), 256);
        now += Duration::from_secs(1);
        assert_eq!(count(&mut admission, now), 128);
        now += Duration::from_secs(60);
        assert_eq!(count(&mut admission, now), 256);
    }

    #[test]
    fn strangers_from_everywhere_leave_room_for_members() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let mut begun = 0;
        for number in 0..2_000u32 {
            let from = SocketAddr::from(((number * 256).to_be_bytes(), 1));
            if let Verdict::Begin { place, .. } = admission.arrives(from, true, false, now) {
                admission.done(place);
                begun += 1;
            }
        }
        assert_eq!(begun, 512);
        assert_eq!(admission.arrives(at(0, 1), true, false, now), Verdict::Refuse);
        assert!(begins(admission.arrives(at(0, 1), true, true, now)));
    }

    #[test]
    fn sources_that_can_t_be_told_apart_share_a_budget_and_memory_is_bounded() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        for number in 0..20_000u32 {
            // Members, so that only the sources' own budgets count.
            let from = SocketAddr::from(((number * 256).to_be_bytes(), 1));
            if let Verdict::Begin { place, .. } = admission.arrives(from, true, true, now) {
                admission.done(place);
            }
        }
        assert_eq!(admission.budgets.len(), MAX_SOURCES);
        // They are forgotten when they are at rest.
        let later = now + Duration::from_secs(60);
        admission.arrives(at(0, 1), true, true, later);
        assert_eq!(admission.budgets.len(), 1);
    }

    #[test]
    fn a_host_s_ipv6_network_is_one_source() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(source("[2001:db8::1]:1"), source("[2001:db8::ffff:1]:2"));
        assert_ne!(source("[2001:db8::1]:1"), source("[2001:db8:0:1::1]:1"));
        assert_eq!(source("[::ffff:10.0.0.1]:1"), source("10.0.0.1:9"));
    }
}
