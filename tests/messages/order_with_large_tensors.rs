//! Large tensors keep their place among small messages, and hold back only their own receiver.

use footlight::prelude::*;

use crate::support::*;

fn tensor(bytes: usize) -> HostTensor {
    HostTensor::from_vec(vec![7u8; bytes], &[bytes]).unwrap()
}

/// A process that gets its tensors over the network; `tests/messages/same_host.rs` has the other way.
async fn seed(cluster: &Cluster) -> NodeProcess {
    cluster.process("seed", Options { flags: "--same-host network", ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn casts_arrive_in_order_whatever_their_size() {
    let cluster = Cluster::new();
    let seed = seed(&cluster).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    let (small, large) = (tensor(1 << 10), tensor(8 << 20));
    for number in 0..48 {
        let tensor = match number % 4 {
            0 => Some(large.clone()),
            1 | 2 => Some(small.clone()),
            _ => None,
        };
        soon(probe.cast(Note { number, tensor })).await.unwrap();
    }
    assert_eq!(soon(probe.call(Notes {})).await.unwrap(), (0..48).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_call_is_answered_long_before_a_large_transfer_ends() {
    let cluster = Cluster::new();
    let seed = seed(&cluster).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let busy = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    let other = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    // The connection for tensors exists from here on.
    soon(busy.call(Mirror { tensor: tensor(1 << 20) })).await.unwrap();
    let large = tensor(256 << 20);
    soon(busy.cast(Note { number: 1, tensor: Some(large) })).await.unwrap();
    // This one comes behind the transfer.
    let behind = tokio::spawn(async move { busy.call(Notes {}).await });
    for _ in 0..10 {
        soon(other.call(Where {})).await.unwrap();
    }
    assert!(!behind.is_finished(), "ten small calls took as long as 256 MiB");
    assert_eq!(soon(behind).await.unwrap().unwrap(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_tensors_arrive_in_their_turn_and_a_short_one_ahead_of_them() {
    const LONG: usize = 16;
    let cluster = Cluster::new();
    let seed = seed(&cluster).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let mut probes = Vec::new();
    for _ in 0..=LONG {
        probes.push(soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap());
    }
    // The connection for tensors exists from here on.
    soon(probes[0].call(Mirror { tensor: tensor(100 << 10) })).await.unwrap();
    let (long, short) = (tensor(16 << 20), tensor(100 << 10));
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    for (number, probe) in probes.into_iter().enumerate() {
        let tensor = if number == LONG { &short } else { &long };
        let note = Note { number: number as u64, tensor: Some(tensor.clone()) };
        soon(probe.cast(note)).await.unwrap();
        let done = done.clone();
        tokio::spawn(async move {
            probe.call(Notes {}).await.unwrap();
            done.send(number).unwrap();
        });
    }
    drop(done);
    let mut arrived = Vec::new();
    while let Some(number) = soon(order.recv()).await {
        arrived.push(number);
    }
    let position = |number| arrived.iter().position(|arrived| *arrived == number).unwrap();
    // Two are on their way at once.
    assert!((0..LONG).all(|number| position(number).abs_diff(number) <= 3), "{arrived:?}");
    assert!(position(LONG) < LONG / 2, "{arrived:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tensor_comes_back_as_it_went() {
    let cluster = Cluster::new();
    let seed = seed(&cluster).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    for len in [0, 1, 1000, 100_000, 3_000_000] {
        let values: Vec<f32> = (0..len).map(|n| n as f32).collect();
        let tensor = HostTensor::from_vec(values.clone(), &[len]).unwrap();
        let back = soon(probe.call(Mirror { tensor })).await.unwrap();
        assert!(back.as_slice::<f32>().unwrap() == values, "{len}");
    }
}

/// A tensor that is cut into pieces, and two that are not, each its own, come back in whatever way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_several_connections_tensors_arrive_whole_and_in_order() {
    let cluster = Cluster::new();
    let flags = "--same-host network --bulk-connections 3";
    let seed = cluster.process("seed", Options { flags, ..Options::default() }).await;
    let node = cluster.here(Options { flags, ..Options::join(seed.addr) }).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    for len in [3_000_000, 1_000, 100_000, 10_000_001] {
        let values: Vec<f32> = (0..len).map(|n| n as f32).collect();
        let tensor = HostTensor::from_vec(values, &[len]).unwrap();
        let back = soon(probe.call(Mirror { tensor: tensor.clone() })).await.unwrap();
        assert!(back == tensor, "{len} numbers came back as others");
    }
    for number in 0..48 {
        let len = [20 << 20, 1 << 10, 100 << 10][number as usize % 3];
        let tensor = HostTensor::from_vec(vec![number as u8; len], &[len]).unwrap();
        soon(probe.cast(Sip { number, tensor, millis: 0 })).await.unwrap();
    }
    assert_eq!(soon(probe.call(Notes {})).await.unwrap(), (0..48).collect::<Vec<_>>());
}
