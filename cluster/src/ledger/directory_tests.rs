use super::*;

fn view(id: u64, founded: u64, term: u64, leader: u64, voters: &[u64]) -> LedgerView {
    LedgerView {
        id: LedgerId(id),
        founded_unix_micros: founded,
        term,
        leader: (leader != 0).then_some(NodeId(leader)),
        on_disk: true,
        voters: voters.iter().map(|node| NodeId(*node)).collect(),
    }
}

fn told(node: u64, state: MemberState, ledger: Option<LedgerView>) -> Told {
    Told { node: NodeId(node), state, server: Some(true), ledger }
}

use MemberState::{Down, Suspect, Up};

#[test]
fn the_latest_word_of_those_who_are_there_counts() {
    let told = [
        told(1, Down, Some(view(7, 100, 9, 1, &[1, 2, 3]))),
        told(2, Up, Some(view(7, 100, 5, 1, &[1, 2, 3]))),
        told(3, Suspect, Some(view(7, 100, 6, 3, &[1, 2, 3]))),
        told(4, Up, None),
    ];
    let directory = Directory::of(&told).unwrap();
    assert_eq!((directory.term, directory.leader), (6, Some(NodeId(3))));
    assert_eq!(directory.order(NodeId(4)), [NodeId(3), NodeId(2)]);
    let status = LedgerStatus::of(&told).unwrap();
    assert_eq!(status.missing, [NodeId(1), NodeId(3)]);
    assert_eq!(status.tolerance(), None);
    assert_eq!(Directory::of(&[self::told(4, Up, None)]), None);
}

#[test]
fn of_two_ledgers_the_one_founded_first_counts() {
    let told = [
        told(1, Up, Some(view(7, 200, 90, 1, &[1]))),
        told(2, Up, Some(view(9, 100, 5, 2, &[2]))),
        told(3, Up, Some(view(8, 100, 1, 3, &[3]))),
    ];
    // Founded at the same time: the smaller id.
    assert_eq!(Directory::of(&told).unwrap().ledger, LedgerId(8));
    assert_eq!(Directory::of(&told[..2]).unwrap().ledger, LedgerId(9));
}

#[test]
fn status_says_what_may_be_lost() {
    let says = |voters: &[u64], up: &[u64]| {
        let view = view(7, 100, 1, voters[0], voters);
        let told: Vec<Told> = voters
            .iter()
            .map(|node| told(*node, if up.contains(node) { Up } else { Down }, Some(view.clone())))
            .collect();
        LedgerStatus::of(&told).unwrap().to_string()
    };
    assert_eq!(says(&[1], &[1]), "1 voter: its loss stops the ledger");
    assert_eq!(says(&[1, 2], &[1, 2]), "2 voters: the loss of one more stops the ledger");
    assert_eq!(says(&[1, 2, 3], &[1, 2, 3]), "3 voters: one may be lost");
    assert_eq!(
        says(&[1, 2, 3], &[1, 2]),
        "3 voters, 1 of them missing: the loss of one more stops the ledger"
    );
    assert_eq!(
        says(&[1, 2, 3], &[1]),
        "3 voters, 2 of them missing: it has stopped: no majority is there"
    );
    assert_eq!(says(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]), "5 voters: two may be lost");
}
