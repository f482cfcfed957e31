//! What a message costs within one process, beside ractor; and what it costs to encode one, beside a
//! copy of its bytes and their encryption.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use footlight::{
    actors::parameters::{
        layout::{Layout, MAX_CHUNK},
        optimizer::Adam,
        rule::StepRule,
        shard::Shard,
    },
    prelude::*,
    runtime::{
        codec::{self, Parcel},
        tensor::WireFormat,
    },
};
use footlight_benches::{
    footlight_side::{Echo, Echoes, Tick, Ticks, alone},
    local::Bare,
};
use ractor::rpc::CallResult;
use tokio::runtime::Runtime;

/// What comes of `work`, which a task of the runtime does, as those that call in earnest are.
fn in_a_task<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    runtime.block_on(runtime.spawn(work)).expect("the work does not panic")
}

fn messages(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let state = tempfile::tempdir().expect("a folder");
    let node = runtime.block_on(alone(&state)).expect("a node");
    let echo: ActorRef<Echoes> =
        runtime.block_on(node.system().spawn(())).expect("an actor starts");
    let (bare, _) =
        runtime.block_on(ractor::Actor::spawn(None, Bare, ())).expect("an actor starts");
    let mut group = criterion.benchmark_group("local");
    group.throughput(Throughput::Elements(1));
    group.bench_function("call/footlight", |bench| {
        bench.iter_custom(|count| {
            let echo = echo.clone();
            in_a_task(&runtime, async move {
                let began = Instant::now();
                for _ in 0..count {
                    let echoed = echo.call(Echo { bytes: Bytes::from_static(&[1; 8]) }).await;
                    black_box(echoed.expect("an answer"));
                }
                began.elapsed()
            })
        });
    });
    group.bench_function("call/ractor", |bench| {
        bench.iter_custom(|count| {
            let bare = bare.clone();
            in_a_task(&runtime, async move {
                let began = Instant::now();
                for _ in 0..count {
                    ask(&bare).await;
                }
                began.elapsed()
            })
        });
    });
    group.bench_function("cast/footlight", |bench| {
        bench.iter_custom(|count| {
            let echo = echo.clone();
            in_a_task(&runtime, async move {
                let began = Instant::now();
                for _ in 0..count {
                    let tick = Tick { bytes: Bytes::from_static(&[1; 8]) };
                    echo.cast(tick).await.expect("room");
                }
                // It comes behind them.
                echo.call(Ticks).await.expect("an answer");
                began.elapsed()
            })
        });
    });
    group.bench_function("cast/ractor", |bench| {
        bench.iter_custom(|count| {
            let bare = bare.clone();
            in_a_task(&runtime, async move {
                let began = Instant::now();
                for _ in 0..count {
                    bare.cast((Bytes::from_static(&[1; 8]), None)).expect("it runs");
                }
                ask(&bare).await;
                began.elapsed()
            })
        });
    });
    group.finish();
    runtime.block_on(node.leave()).expect("the node leaves");
}

/// A call with a deadline, as every call of ours has one.
async fn ask(bare: &ractor::ActorRef<<Bare as ractor::Actor>::Msg>) {
    let ask = |reply| (Bytes::from_static(&[1; 8]), Some(reply));
    let answer = bare.call(ask, Some(Duration::from_secs(30))).await;
    assert!(matches!(answer, Ok(CallResult::Success(_))));
}

/// Message bodies and tensors as bytes and back. `memcpy` and `aes_128_gcm` of as many bytes are the
/// limits: one copy there is on the way, and each byte is encrypted.
fn encoding(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let state = tempfile::tempdir().expect("a folder");
    let node = runtime.block_on(alone(&state)).expect("a node");
    let system = node.system().clone();
    let mut group = criterion.benchmark_group("encoding");
    for bytes in [64, 1024, 64 << 10] {
        let message = Echo { bytes: Bytes::from(vec![7; bytes]) };
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::new("encode", bytes), &message, |bench, message| {
            bench.iter(|| codec::encode(black_box(message)).expect("it can be encoded"));
        });
        let body = codec::encode(&message).expect("it can be encoded").body;
        group.bench_with_input(BenchmarkId::new("decode", bytes), &body, |bench, body| {
            bench.iter(|| {
                let encoded = codec::Encoded { body: body.clone(), ..codec::Encoded::default() };
                Parcel::local(encoded, &system).decode::<Echo>().expect("it is one")
            });
        });
        limits(&mut group, bytes);
    }
    let values: Vec<f32> = (0..1 << 20).map(|number| number as f32 / 1000.0).collect();
    let (bytes, mut back) = (4 * values.len(), vec![0.0; values.len()]);
    group.throughput(Throughput::Bytes(bytes as u64));
    for format in [WireFormat::Bf16, WireFormat::Fp16, WireFormat::Int8] {
        let mut encoded = vec![0; format.encoded_len(values.len())];
        group.bench_function(BenchmarkId::new(format!("f32_to_{format}"), bytes), |bench| {
            bench.iter(|| format.encode_into(black_box(&values), &mut encoded));
        });
        group.bench_function(BenchmarkId::new(format!("{format}_to_f32"), bytes), |bench| {
            bench.iter(|| format.decode_into(black_box(&encoded), &mut back));
        });
    }
    limits(&mut group, bytes);
    group.finish();
    runtime.block_on(node.leave()).expect("the node leaves");
}

fn limits(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    bytes: usize,
) {
    let (from, mut to) = (vec![5u8; bytes], vec![0u8; bytes]);
    group.bench_function(BenchmarkId::new("memcpy", bytes), |bench| {
        bench.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    });
    let key = ring::aead::UnboundKey::new(&ring::aead::AES_128_GCM, &[7; 16]).expect("a key");
    let key = ring::aead::LessSafeKey::new(key);
    group.bench_function(BenchmarkId::new("aes_128_gcm", bytes), |bench| {
        bench.iter(|| {
            let nonce = ring::aead::Nonce::assume_unique_for_key([1; 12]);
            let tag = key.seal_in_place_separate_tag(nonce, ring::aead::Aad::empty(), &mut to);
            black_box(tag.is_ok())
        });
    });
}

/// How long training stands still while a chunk's state is saved: as long as it takes to copy what the optimiser
/// remembers, two numbers a parameter with Adam. `memcpy` of as many bytes is the limit.
fn saving(criterion: &mut Criterion) {
    let layout = Layout::new([("all", vec![MAX_CHUNK / 2])], 1).expect("a layout");
    let mut shard =
        Shard::<Vec<f32>>::new(&layout, 0, Adam::new(1e-3).into(), StepRule::default(), 2, 1)
            .expect("a shard");
    shard.init(0, vec![0.0; layout.len()]).expect("it had none");
    shard.push(0, 0, 0, vec![1.0; layout.len()]).expect("a step");
    let bytes = 2 * layout.len() * size_of::<f32>();
    let mut group = criterion.benchmark_group("saving");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(BenchmarkId::new("pause", bytes), |bench| {
        bench.iter(|| black_box(shard.state(0).expect("a state")));
    });
    limits(&mut group, bytes);
    group.finish();
}

criterion_group!(benches, messages, encoding, saving);
criterion_main!(benches);
