//! `cargo xtask detect` measures with every core busy, whatever the machine.

#[path = "endurance/load.rs"]
mod load;

use load::{threads_for, threads_on};

#[test]
fn five_nodes_have_a_thread_for_every_core() {
    for cores in 1..=128 {
        let threads = threads_on(cores, 5);
        assert!(threads >= 1 && 5 * threads >= cores && 5 * threads < cores + 5, "{cores}");
    }
    assert!(threads_for(5) >= 1);
}
