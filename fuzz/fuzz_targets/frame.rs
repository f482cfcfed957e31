//! Bytes as they come on a lane: see `footlight_cluster::transport::fuzzing`.
#![no_main]

use std::sync::LazyLock;

use footlight_cluster::transport::fuzzing;
use footlight_runtime::{Incarnation, NodeId, System, env::Env, registry::Types};
use libfuzzer_sys::fuzz_target;

/// Decoding needs a node: references to actors are resolved there.
static NODE: LazyLock<System> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let node = runtime.block_on(async {
        let env = Env::system().unwrap();
        System::start(NodeId(1), Incarnation(1), Types::default(), env).await.unwrap()
    });
    // The node's own tasks end with it.
    std::mem::forget(runtime);
    node
});

fuzz_target!(|bytes: &[u8]| {
    fuzzing::lane(bytes, &NODE);
});
