use footlight_runtime::{ActorAddr, ActorId, Incarnation};
use proptest::prelude::*;

use super::*;
use crate::{
    record::Load,
    resources::{Gpu, Resources},
};

fn member(id: u64, role: &str, zone: &str) -> Member {
    let resources = Resources::cpus(4).gpu(Gpu::new(0, "gpu", 8 << 30));
    Member {
        id: NodeId(id),
        address: "127.0.0.1:1".parse().unwrap(),
        state: MemberState::Up,
        incarnation: Incarnation(1),
        roles: vec![role.to_owned()],
        labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
        http: None,
        actors: vec!["probe".to_owned()],
        free: resources.clone(),
        resources,
        load: Load::default(),
        unreachable: Vec::new(),
        groups: BTreeMap::new(),
        ledger: None,
    }
}

fn in_state(member: Member, state: MemberState) -> Member {
    Member { state, ..member }
}

/// Who is tried, with this node as the first one and the third as its seed.
fn choose(members: &[Member], placement: &Placement) -> Vec<u64> {
    found(members, placement).fit.into_iter().map(|id| id.0).collect()
}

fn found(members: &[Member], placement: &Placement) -> Candidates {
    candidates(members, &Request::new(placement, "probe", NodeId(1), NodeId(3)))
}

fn actor_on(node: u64) -> ActorAddr {
    ActorAddr { node: NodeId(node), incarnation: Incarnation(1), actor: ActorId(77) }
}

/// Three workers in two zones, a server, and one worker that is down.
fn five() -> Vec<Member> {
    vec![
        member(1, "worker", "a"),
        member(2, "worker", "a"),
        member(3, "server", "b"),
        member(4, "worker", "b"),
        in_state(member(5, "worker", "b"), MemberState::Down),
    ]
}

#[test]
fn a_place_is_a_set_of_nodes_in_an_order() {
    let members = five();
    assert_eq!(choose(&members, &Placement::here()), [1]);
    assert_eq!(choose(&members, &Placement::seed()), [3]);
    assert_eq!(choose(&members, &Placement::anywhere()), [1, 2, 3, 4]);
    assert_eq!(choose(&members, &Placement::node(NodeId(4))), [4]);
    let order = [5, 4, 2].map(NodeId);
    assert_eq!(choose(&members, &Placement::any_of(order)), [4, 2]);
    assert_eq!(choose(&members, &Placement::role("worker")), [1, 2, 4]);
    assert_eq!(choose(&members, &Placement::label("zone", "b")), [3, 4]);
    let both = Placement::role("worker").and_label("zone", "b");
    assert_eq!(choose(&members, &both), [4]);
    let away = Placement { away_from: vec![actor_on(1), actor_on(4)], ..Placement::role("worker") };
    assert_eq!(choose(&members, &away), [2]);
    let beside = Placement { beside: vec![actor_on(3)], ..Placement::anywhere() };
    assert_eq!(choose(&members, &beside), [3]);
}

#[test]
fn each_node_that_does_not_fit_has_a_reason() {
    let mut members = five();
    members[1].actors.clear();
    members[3] = in_state(members[3].clone(), MemberState::Leaving);
    let placement = Placement { away_from: vec![actor_on(1)], ..Placement::role("worker") };
    let why = found(&members, &placement).unfit;
    let words: Vec<_> = why.iter().map(|(id, why)| format!("{} {why}", id.0)).collect();
    assert_eq!(
        words,
        [
            "1 has the actor to be away from",
            "2 does not host the type",
            "3 is not of role worker",
            "4 is leaving",
            "5 is down"
        ]
    );
    let unreachable = [NodeId(3)];
    let anywhere = Placement::anywhere();
    let request = Request::new(&anywhere, "probe", NodeId(1), NodeId(1));
    let cut_off = candidates(&members, &request.unreachable(&unreachable));
    assert!(cut_off.unfit.contains(&(NodeId(3), Unfit::Unreachable)));
    // Only what is here may be unknown to the others.
    let here = Placement::here();
    assert_eq!(candidates(&members, &Request::new(&here, "x", NodeId(1), NodeId(1))).fit.len(), 1);
    assert!(
        candidates(&members, &Request::new(&anywhere, "x", NodeId(1), NodeId(1))).fit.is_empty()
    );
}

#[test]
fn a_suspect_is_taken_if_there_is_no_other() {
    let mut members = five();
    members[0] = in_state(members[0].clone(), MemberState::Suspect);
    assert_eq!(choose(&members, &Placement::anywhere()), [2, 3, 4, 1]);
    assert_eq!(choose(&members, &Placement::node(NodeId(1))), [1]);
}

#[test]
fn what_never_fits_is_left_out_and_what_is_taken_now_comes_last() {
    let mut members = five();
    members[1].resources = Resources::cpus(2);
    members[1].free = Resources::cpus(2);
    members[0].free.gpus.clear();
    let anywhere = Placement::anywhere();
    let asked = |needs: Needs| {
        let request = Request::new(&anywhere, "probe", NodeId(1), NodeId(3)).needing(needs);
        candidates(&members, &request)
    };
    assert_eq!(asked(Needs::gpus(1)).fit, [3, 4, 1].map(NodeId));
    let (_, why) = &asked(Needs::gpus(1)).unfit[0];
    assert_eq!(why.to_string(), "never fits: asked 1 GPU, it has 2 CPUs, 0 GPUs");
    assert_eq!(asked(Needs::cpus(2)).fit, [1, 2, 3, 4].map(NodeId));
    assert!(asked(Needs::cpus(5)).fit.is_empty());
}

#[test]
fn spread_and_pack_go_by_what_was_placed() {
    let members = five();
    let after = |placement: &Placement, placed: &[(u64, u32)]| -> Vec<u64> {
        let placed = placed.iter().map(|&(id, count)| (NodeId(id), count)).collect();
        let request = Request::new(placement, "probe", NodeId(1), NodeId(3)).placed(&placed);
        candidates(&members, &request).fit.into_iter().map(|id| id.0).collect()
    };
    let spread = Placement::role("worker").spread();
    assert_eq!(after(&spread, &[]), [1, 2, 4]);
    assert_eq!(after(&spread, &[(1, 2), (2, 1)]), [4, 2, 1]);
    let over = Placement::anywhere().spread_over("zone");
    assert_eq!(after(&over, &[(1, 1)]), [3, 4, 2, 1]);
    // What lies on a node that is down counts for its zone all the same.
    assert_eq!(after(&over, &[(1, 1), (5, 2)]), [2, 1, 3, 4]);
    let pack = Placement::anywhere().pack();
    assert_eq!(after(&pack, &[(4, 1)]), [4, 1, 2, 3]);
    assert_eq!(after(&pack, &[(4, 1), (3, 2)]), [3, 4, 1, 2]);
}

#[test]
fn pack_fills_the_fullest_node_that_has_room() {
    let mut members = five();
    members[2].free.gpus[0].share = 500;
    members[3].free.gpus.clear();
    let pack = Placement::anywhere().pack();
    let request = Request::new(&pack, "probe", NodeId(1), NodeId(3));
    let part = candidates(&members, &request.clone().needing(Needs::gpus(1).shared(0.5)));
    assert_eq!(part.fit, [3, 1, 2, 4].map(NodeId));
    let whole = candidates(&members, &request.needing(Needs::gpus(1)));
    assert_eq!(whole.fit, [1, 2, 4, 3].map(NodeId));
}

#[test]
fn a_place_is_said_in_words() {
    let words = |placement: Placement| placement.to_string();
    assert_eq!(words(Placement::here()), "this node");
    assert_eq!(words(Placement::node(NodeId(1))), "node 0000000000000001");
    let all = Placement {
        away_from: vec![actor_on(1)],
        ..Placement::role("a").and_label("b", "c").spread_over("zone")
    };
    assert_eq!(
        words(all),
        "a node of role a and labelled b=c, away from actor 77 on node 0000000000000001, spread \
         over zone"
    );
}

fn a_member(id: u64) -> impl Strategy<Value = Member> {
    let state = prop_oneof![
        4 => Just(MemberState::Up),
        1 => Just(MemberState::Leaving),
        1 => Just(MemberState::Suspect)
    ];
    (state, 0..2usize, 0..3usize, any::<bool>(), 0u32..4, 0u32..4).prop_map(
        move |(state, role, zone, hosts, cpus, used)| {
            let mut member = member(id, ["worker", "server"][role], ["a", "b", "c"][zone]);
            member.state = state;
            if !hosts {
                member.actors.clear();
            }
            member.resources.cpus = cpus;
            member.free.cpus = cpus.saturating_sub(used);
            member
        },
    )
}

fn a_placement() -> impl Strategy<Value = Placement> {
    let site = prop_oneof![
        Just(Placement::here()),
        Just(Placement::seed()),
        Just(Placement::anywhere()),
        Just(Placement::any_of([4, 2, 7].map(NodeId))),
        Just(Placement::role("worker")),
        Just(Placement::label("zone", "b")),
    ];
    (site, 0..4usize, prop::option::of(1u64..8), prop::option::of(1u64..8)).prop_map(
        |(site, prefer, beside, away)| {
            let placement = match prefer {
                0 => site,
                1 => site.spread(),
                2 => site.spread_over("zone"),
                _ => site.pack(),
            };
            Placement {
                beside: beside.map(actor_on).into_iter().collect(),
                away_from: away.map(actor_on).into_iter().collect(),
                ..placement
            }
        },
    )
}

proptest! {
    #[test]
    fn every_member_is_a_candidate_or_has_a_reason_and_order_of_members_changes_nothing(
        members in (1u64..8).prop_map(|count| (1..=count).map(a_member).collect::<Vec<_>>())
            .prop_flat_map(|members| members).prop_shuffle(),
        placement in a_placement(),
        cpus in 0u32..4,
        placed in prop::collection::btree_map((1u64..8).prop_map(NodeId), 0u32..5, 0..8),
    ) {
        let request = Request::new(&placement, "probe", NodeId(1), NodeId(3))
            .needing(Needs::cpus(cpus))
            .placed(&placed);
        let found = candidates(&members, &request);
        let mut all: Vec<_> =
            found.fit.iter().copied().chain(found.unfit.iter().map(|(id, _)| *id)).collect();
        all.sort();
        let mut known: Vec<_> = members.iter().map(|member| member.id).collect();
        known.sort();
        prop_assert_eq!(all, known);
        let of = |id: &NodeId| members.iter().find(|member| member.id == *id).unwrap();
        for member in found.fit.iter().map(of) {
            prop_assert!(may_be_up(member));
            prop_assert!(member.resources.cpus >= cpus);
            prop_assert!(placement.away_from.iter().all(|actor| actor.node != member.id));
            prop_assert!(placement.beside.iter().all(|actor| actor.node == member.id));
        }
        // Suspects come last; before them those with room now come first, and among these a spread
        // goes to those with the fewest.
        let rank = |id: &NodeId| (!of(id).is_up(), of(id).free.cpus < cpus);
        prop_assert!(found.fit.is_sorted_by_key(rank));
        if placement.prefer == Prefer::Spread {
            let count = |id: &NodeId| placed.get(id).copied().unwrap_or(0);
            prop_assert!(found.fit.is_sorted_by_key(|id| (rank(id), count(id))));
        }
        let mut sorted = members.clone();
        sorted.sort_by_key(|member| member.id);
        prop_assert_eq!(&candidates(&sorted, &request).fit, &found.fit);
    }
}
