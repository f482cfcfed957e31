use bytes::Bytes;

use super::*;

fn at(version: u64) -> Versioned {
    Versioned { value: Bytes::new(), version, owner: None }
}

fn there(key: &str, version: u64) -> Watched {
    Watched::There(key.to_owned(), at(version))
}

fn now(key: &str, version: u64) -> (String, Option<Versioned>) {
    (key.to_owned(), Some(at(version)))
}

impl Seen {
    fn told(&mut self, items: Vec<Watched>) -> Vec<(String, Option<Versioned>)> {
        items.into_iter().flat_map(|item| self.take(item).expect("it is not behind")).collect()
    }
}

#[test]
fn le6_what_is_there_comes_first_then_each_change() {
    let mut seen = Seen::default();
    let told = seen.told(vec![
        Watched::Begin(4),
        there("a", 1),
        there("b", 4),
        Watched::All,
        Watched::Changed(5, "a".to_owned(), Some(at(5))),
        Watched::Changed(6, "b".to_owned(), None),
    ]);
    assert_eq!(told, [now("a", 1), now("b", 4), now("a", 5), ("b".to_owned(), None)]);
}

#[test]
fn le6_another_voter_tells_only_what_is_new_and_what_is_gone() {
    let mut seen = Seen::default();
    seen.told(vec![Watched::Begin(4), there("a", 1), there("b", 4), there("c", 2), Watched::All]);
    let told = seen.told(vec![Watched::Begin(9), there("a", 1), there("b", 8), Watched::All]);
    assert_eq!(told, [now("b", 8), ("c".to_owned(), None)]);
}

#[test]
fn le6_a_voter_that_is_behind_is_not_listened_to() {
    let mut seen = Seen::default();
    seen.told(vec![Watched::Begin(4), Watched::All]);
    seen.told(vec![Watched::Changed(7, "a".to_owned(), Some(at(7)))]);
    assert_eq!(seen.take(Watched::Begin(6)), None);
    // A telling that broke off has been seen in part: nothing older than that, either.
    seen.told(vec![Watched::Begin(9), there("a", 8)]);
    assert_eq!(seen.take(Watched::Begin(8)), None);
    assert_eq!(seen.told(vec![Watched::Begin(9), there("a", 8), Watched::All]), []);
}

#[test]
fn le10_another_ledger_is_told_from_its_start() {
    let mut seen = Seen::default();
    seen.told(vec![Watched::Begin(40), there("a", 1), there("b", 40), Watched::All]);
    seen.other_ledger();
    let told = seen.told(vec![Watched::Begin(2), there("a", 1), Watched::All]);
    assert_eq!(told, [now("a", 1), ("b".to_owned(), None)]);
}
