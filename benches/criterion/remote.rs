//! What messages and tensors cost between two processes on loopback, beside bare quinn with the same
//! settings: both with their other side in a process of its own.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use footlight::prelude::*;
use footlight_benches::{
    Work,
    footlight_side::{Echo, Echoes, Put, Tick, Ticks},
    pair::Served,
    raw,
};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{runtime::Runtime, task::JoinSet};

const IN_FLIGHT: u64 = 256;
/// Actors that each get the same tensor.
const RECEIVERS: usize = 8;
const MIB: usize = 1 << 20;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_footlight-bench"))
}

/// Two processes share two cores: as many threads as each has of them.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
}

fn raw_quinn(runtime: &Runtime, work: Work) -> (Served, raw::Client) {
    runtime.block_on(Served::raw(program(), work)).expect("bare quinn starts")
}

/// What comes of `work`, which a task of the runtime does, as those that call in earnest are.
fn in_a_task<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    runtime.block_on(runtime.spawn(work)).expect("the work does not panic")
}

async fn calls(echo: ActorRef<Echoes>, count: u64, bytes: Bytes) -> Duration {
    let began = Instant::now();
    for _ in 0..count {
        black_box(echo.call(Echo { bytes: bytes.clone() }).await.expect("an answer"));
    }
    began.elapsed()
}

async fn calls_at_once(echo: ActorRef<Echoes>, count: u64) -> Duration {
    let began = Instant::now();
    let call = || echo.call(Echo { bytes: Bytes::from_static(&[7; 64]) });
    let mut under_way: FuturesUnordered<_> = (0..count.min(IN_FLIGHT)).map(|_| call()).collect();
    let mut left = count.saturating_sub(IN_FLIGHT);
    while let Some(answer) = under_way.next().await {
        answer.expect("an answer");
        if left > 0 {
            left -= 1;
            under_way.push(call());
        }
    }
    began.elapsed()
}

async fn casts(echo: ActorRef<Echoes>, count: u64) -> Duration {
    let before = echo.call(Ticks).await.expect("an answer");
    let began = Instant::now();
    for _ in 0..count {
        echo.cast(Tick { bytes: Bytes::from_static(&[3; 100]) }).await.expect("room");
    }
    // It comes behind them.
    let after = echo.call(Ticks).await.expect("an answer");
    assert_eq!(after - before, count);
    began.elapsed()
}

async fn puts(to: Vec<ActorRef<Echoes>>, count: u64, tensor: HostTensor) -> Duration {
    let began = Instant::now();
    for _ in 0..count {
        let puts = to.iter().map(|to| to.call(Put { tensor: tensor.clone() }));
        for put in futures::future::join_all(puts).await {
            assert_eq!(put.expect("an answer"), tensor.bytes().len() as u64);
        }
    }
    began.elapsed()
}

/// Calls while tensors of 256 MiB go to another actor: the time that the calls took.
async fn calls_behind(echo: ActorRef<Echoes>, other: ActorRef<Echoes>, count: u64) -> Duration {
    let tensor = tensor(256 * MIB);
    let mut transfers = JoinSet::new();
    transfers.spawn(async move {
        loop {
            other.call(Put { tensor: tensor.clone() }).await.expect("an answer");
        }
    });
    let mut took = Duration::ZERO;
    for _ in 0..count {
        tokio::time::sleep(Duration::from_millis(1)).await;
        took += calls(echo.clone(), 1, Bytes::from_static(&[7; 64])).await;
    }
    took
}

fn tensor(bytes: usize) -> HostTensor {
    HostTensor::from_vec(vec![1.0f32; bytes / 4], &[bytes / 4]).expect("the shape fits")
}

fn messages(criterion: &mut Criterion) {
    let runtime = runtime();
    let (_served, node, echoes) =
        runtime.block_on(Served::node(program(), 2)).expect("two nodes start");
    let (echo, other) = (&echoes[0], &echoes[1]);
    let mut group = criterion.benchmark_group("remote");
    let (_raw_served, raw) = raw_quinn(&runtime, Work::CallRtt);
    for bytes in [64, 1024] {
        let message = Bytes::from(vec![7; bytes]);
        group.bench_function(BenchmarkId::new("call/footlight", bytes), |bench| {
            bench.iter_custom(|count| {
                in_a_task(&runtime, calls(echo.clone(), count, message.clone()))
            });
        });
        group.bench_function(BenchmarkId::new("call/raw_quinn", bytes), |bench| {
            bench.iter_custom(|count| {
                runtime.block_on(raw.echoes(count, bytes)).expect("bare quinn answers")
            });
        });
    }
    group.bench_function("call_behind_256mib/footlight", |bench| {
        bench.iter_custom(|count| {
            in_a_task(&runtime, calls_behind(echo.clone(), other.clone(), count))
        });
    });
    let (_raw_behind_served, raw_behind) =
        runtime.block_on(Served::raw_behind(program())).expect("bare quinn starts");
    group.bench_function("call_behind_256mib/raw_quinn", |bench| {
        bench.iter_custom(|count| {
            runtime.block_on(raw_behind.calls_behind(count)).expect("bare quinn answers")
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("calls_256_at_once/footlight", |bench| {
        bench.iter_custom(|count| in_a_task(&runtime, calls_at_once(echo.clone(), count)));
    });
    group.bench_function("calls_256_at_once/raw_quinn", |bench| {
        bench.iter_custom(|count| {
            let echoed = raw.echoes_at_once(count, 64, IN_FLIGHT as usize);
            runtime.block_on(echoed).expect("bare quinn answers")
        });
    });
    group.bench_function("casts_100b/footlight", |bench| {
        bench.iter_custom(|count| in_a_task(&runtime, casts(echo.clone(), count)));
    });
    let (_raw_served, raw) = raw_quinn(&runtime, Work::CastsPerSecond);
    group.bench_function("casts_100b/raw_quinn", |bench| {
        bench.iter_custom(|count| runtime.block_on(raw.casts(count)).expect("all frames come"));
    });
    group.finish();
    runtime.block_on(node.leave()).expect("the node leaves");
}

fn tensors(criterion: &mut Criterion) {
    let runtime = runtime();
    let (_served, node, echoes) =
        runtime.block_on(Served::node(program(), RECEIVERS)).expect("two nodes start");
    let (_raw_served, raw) = raw_quinn(&runtime, Work::TensorPut100mib);
    let mut group = criterion.benchmark_group("tensors");
    group.sample_size(10);
    for mib in [1, 16, 100, 256] {
        group.throughput(Throughput::Bytes((mib * MIB) as u64));
        let tensor = tensor(mib * MIB);
        group.bench_function(BenchmarkId::new("put/footlight", format!("{mib}MiB")), |bench| {
            bench.iter_custom(|count| {
                in_a_task(&runtime, puts(echoes[..1].to_vec(), count, tensor.clone()))
            });
        });
        group.bench_function(BenchmarkId::new("put/raw_quinn", format!("{mib}MiB")), |bench| {
            bench.iter_custom(|count| {
                runtime.block_on(raw.puts(count, tensor.bytes())).expect("bare quinn takes it")
            });
        });
    }
    // The limit is one tensor of as many bytes.
    group.throughput(Throughput::Bytes((RECEIVERS * MIB) as u64));
    let (one, all) = (tensor(MIB), tensor(RECEIVERS * MIB));
    group.bench_function("broadcast_1MiB_to_8/footlight", |bench| {
        bench.iter_custom(|count| in_a_task(&runtime, puts(echoes.clone(), count, one.clone())));
    });
    group.bench_function("broadcast_1MiB_to_8/raw_quinn", |bench| {
        bench.iter_custom(|count| {
            runtime.block_on(raw.puts(count, all.bytes())).expect("bare quinn takes it")
        });
    });
    group.finish();
    runtime.block_on(node.leave()).expect("the node leaves");
}

criterion_group!(benches, messages, tensors);
criterion_main!(benches);
