//! `cargo xtask detect` takes the first word of a loss since it happened, and no earlier one.

#[path = "endurance/losses.rs"]
mod losses;

use std::time::Duration;

use footlight::runtime::{Incarnation, NodeId};
use losses::{Told, line, told};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_node_that_was_cut_off_and_lost_all_others_may_lose_them_again() {
    let (lost, life) = (NodeId(1), Incarnation(7));
    let text: String = [2, 5, 6].map(|at| line(lost, life, seconds(at))).concat();
    let since = |moment| told(&text, lost, life, seconds(moment)).unwrap();
    assert_eq!(since(1), Told { since: Some(seconds(2)), before: None });
    assert_eq!(since(4), Told { since: Some(seconds(5)), before: Some(seconds(2)) });
    assert_eq!(since(7), Told { since: None, before: Some(seconds(6)) });
}

#[test]
fn another_node_and_another_life_are_not_meant() {
    let text =
        line(NodeId(1), Incarnation(70), seconds(2)) + &line(NodeId(2), Incarnation(7), seconds(2));
    assert_eq!(told(&text, NodeId(1), Incarnation(7), seconds(0)).unwrap(), Told::default());
}

#[test]
fn half_a_line_is_not_read_and_a_damaged_one_is_an_error() {
    let (lost, life) = (NodeId(1), Incarnation(7));
    let text = line(lost, life, seconds(12));
    assert_eq!(told(&text[..text.len() - 3], lost, life, seconds(0)).unwrap(), Told::default());
    told(&format!("{lost} 7 now\n"), lost, life, seconds(0)).unwrap_err();
}
