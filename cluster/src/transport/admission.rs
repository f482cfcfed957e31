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
//! * Each source may begin so many handshakes a second; all that are no members together, too. On a
//!   slow or busy machine it is fewer: handshakes run on the thread that membership needs, and
//!   strangers get a part of its time, not so many of it.
//! * There may be so many connections of strangers, those that are over included: one whose very first
//!   packet says that it is over is kept by quinn until it would have ended for its silence.
//!
//! A source is an IPv4 address or an IPv6 network of 64 bits. A state machine without I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::time::Instant;

/// Most handshakes under way.
pub(crate) const PLACES: usize = 256;
/// Most connections of strangers, under way or over.
const OF_ALL_STRANGERS: usize = 4 * PLACES;
/// From so many on, addresses must be proved.
const PROVE_FROM: usize = 64;
/// One source may begin so many at once, and so many a second.
const OF_ONE: Rate = Rate { burst: 256.0, per_second: 128.0 };
/// All that are no members may, together.
const OF_STRANGERS: Rate = Rate { burst: 512.0, per_second: 256.0 };
/// Beginning a handshake may take so long, in seconds, before there have to be fewer: it is some half
/// of the work, so all strangers together get a fifth of the thread.
const COST: f64 = 0.2 / 256.0 / 2.0;
/// However slow the machine is, this part of the rates is left to members' addresses, and this to others':
/// an honest node must get in.
const LEAST_OF_KNOWN: f64 = 1.0 / 4.0;
const LEAST: f64 = 1.0 / 16.0;
/// What the latest handshake weighs in the mean of what they cost.
const WEIGHT: f64 = 0.1;
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

impl Rate {
    fn times(self, factor: f64) -> Self {
        Rate { burst: self.burst * factor, per_second: self.per_second * factor }
    }
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
    /// What it costs to begin a handshake, on the mean, in seconds.
    cost: f64,
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
            cost: 0.0,
        }
    }

    /// A handshake that was let begin took so long to do so.
    pub(crate) fn took(&mut self, time: Duration) {
        self.cost += WEIGHT * (time.as_secs_f64() - self.cost);
    }

    /// The rates of one source and of all strangers, as the machine bears them now.
    fn rates(&self, known: bool) -> (Rate, Rate) {
        let bearable = COST / self.cost.max(f64::MIN_POSITIVE);
        let least = if known { LEAST_OF_KNOWN } else { LEAST };
        (OF_ONE.times(bearable.clamp(least, 1.0)), OF_STRANGERS.times(bearable.clamp(LEAST, 1.0)))
    }

    /// Somebody wants a connection. `proved`: the address was shown to be the sender's. `known`: a
    /// member has the same address. `strangers`: so many connections that are no members' there are.
    pub(crate) fn arrives(
        &mut self,
        from: SocketAddr,
        proved: bool,
        known: bool,
        strangers: usize,
        now: Instant,
    ) -> Verdict {
        if !known && strangers >= OF_ALL_STRANGERS {
            return Verdict::Refuse;
        }
        let source = Source::of(from);
        // A made-up address must not use up the budget of its owner when there is little left.
        let scarce = self.places.len() >= PROVE_FROM || self.runs_short(source, known, now);
        if scarce && !proved {
            return Verdict::Prove;
        }
        let (of_one, of_strangers) = self.rates(known);
        if !self.budget(source, of_one, now).take(of_one, now)
            || !(known || self.strangers.take(of_strangers, now))
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

    fn runs_short(&mut self, source: Source, known: bool, now: Instant) -> bool {
        let (of_one, of_strangers) = self.rates(known);
        self.strangers.refill(of_strangers, now);
        let half = |budget: &Budget, rate: Rate| budget.left < rate.burst / 2.0;
        half(&self.strangers, of_strangers)
            || self.budgets.get_mut(&source).is_some_and(|budget| {
                budget.refill(of_one, now);
                half(budget, of_one)
            })
    }

    fn budget(&mut self, source: Source, of_one: Rate, now: Instant) -> &mut Budget {
        if !self.budgets.contains_key(&source) && self.budgets.len() >= MAX_SOURCES {
            // Those that have all they could have are as good as unknown.
            self.budgets.retain(|_, budget| {
                budget.refill(of_one, now);
                budget.left < of_one.burst
            });
        }
        match self.budgets.len() < MAX_SOURCES || self.budgets.contains_key(&source) {
            true => self.budgets.entry(source).or_insert_with(|| Budget::full(of_one, now)),
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
            (0..PROVE_FROM).filter(|_| begins(admission.arrives(at(0, 1), false, false, 0, now)));
        assert_eq!(begun.count(), PROVE_FROM);
        // From here on the address has to be proved.
        assert_eq!(admission.arrives(at(0, 2), false, false, 0, now), Verdict::Prove);
        assert!(begins(admission.arrives(at(0, 2), true, false, 0, now)));
    }

    #[test]
    fn made_up_addresses_take_no_place_and_no_memory_once_there_are_many() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        for number in 0..100_000u32 {
            let from = SocketAddr::from((number.to_be_bytes(), 1));
            admission.arrives(from, false, false, 0, now);
        }
        assert!(admission.places.len() <= PROVE_FROM);
        assert!(admission.budgets.len() <= PROVE_FROM);
        // An honest one still gets in.
        assert!(begins(admission.arrives(at(0, 1), true, false, 0, now)));
    }

    #[test]
    fn half_handshakes_of_one_source_give_way_to_those_of_others() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let mut places = Vec::new();
        for _ in 0..PLACES {
            match admission.arrives(at(0, 1), true, false, 0, now) {
                Verdict::Begin { place, instead_of: None } => places.push(place),
                other => panic!("{other:?}"),
            }
        }
        let Verdict::Begin { place, instead_of } = admission.arrives(at(0, 2), true, false, 0, now)
        else {
            panic!()
        };
        assert_eq!(instead_of, places.first().copied());
        assert_eq!(admission.places.len(), PLACES);
        // The honest one is not the next to go, however many come.
        let later = now + Duration::from_secs(2);
        for _ in 0..200 {
            let verdict = admission.arrives(at(0, 1), true, false, 0, later);
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
                if let Verdict::Begin { place, .. } =
                    admission.arrives(at(0, 1), true, true, 0, now)
                {
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
    fn on_a_slow_machine_there_are_fewer_and_never_none() {
        let now = Instant::now();
        let begun = |cost: Duration, known: bool| {
            let mut admission = Admission::new(now);
            (0..200).for_each(|_| admission.took(cost));
            let begun = (0..1_000).filter(|_| {
                match admission.arrives(at(0, 1), true, known, 0, now) {
                    Verdict::Begin { place, .. } => admission.done(place),
                    _ => return false,
                }
                true
            });
            begun.count()
        };
        for known in [true, false] {
            assert_eq!(begun(Duration::from_micros(100), known), 256);
            assert_eq!(begun(Duration::from_secs_f64(COST * 2.0), known), 128);
        }
        assert_eq!(begun(Duration::from_secs(1), true), 64);
        assert_eq!(begun(Duration::from_secs(1), false), 16);
    }

    #[test]
    fn strangers_from_everywhere_leave_room_for_members() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let mut begun = 0;
        for number in 0..2_000u32 {
            let from = SocketAddr::from(((number * 256).to_be_bytes(), 1));
            if let Verdict::Begin { place, .. } = admission.arrives(from, true, false, 0, now) {
                admission.done(place);
                begun += 1;
            }
        }
        assert_eq!(begun, 512);
        assert_eq!(admission.arrives(at(0, 1), true, false, 0, now), Verdict::Refuse);
        assert!(begins(admission.arrives(at(0, 1), true, true, 0, now)));
    }

    #[test]
    fn sources_that_can_t_be_told_apart_share_a_budget_and_memory_is_bounded() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        for number in 0..20_000u32 {
            // Members, so that only the sources' own budgets count.
            let from = SocketAddr::from(((number * 256).to_be_bytes(), 1));
            if let Verdict::Begin { place, .. } = admission.arrives(from, true, true, 0, now) {
                admission.done(place);
            }
        }
        assert_eq!(admission.budgets.len(), MAX_SOURCES);
        // They are forgotten when they are at rest.
        let later = now + Duration::from_secs(60);
        admission.arrives(at(0, 1), true, true, 0, later);
        assert_eq!(admission.budgets.len(), 1);
    }

    #[test]
    fn a_host_s_ipv6_network_is_one_source() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(source("[2001:db8::1]:1"), source("[2001:db8::ffff:1]:2"));
        assert_ne!(source("[2001:db8::1]:1"), source("[2001:db8:0:1::1]:1"));
        assert_eq!(source("[::ffff:10.0.0.1]:1"), source("10.0.0.1:9"));
    }

    #[test]
    fn when_strangers_have_all_the_connections_they_may_have_members_still_get_in() {
        let now = Instant::now();
        let mut admission = Admission::new(now);
        let most = OF_ALL_STRANGERS;
        assert_eq!(admission.arrives(at(0, 1), true, false, most, now), Verdict::Refuse);
        assert!(begins(admission.arrives(at(0, 1), true, true, most, now)));
        assert!(begins(admission.arrives(at(0, 1), true, false, most - 1, now)));
    }
}
