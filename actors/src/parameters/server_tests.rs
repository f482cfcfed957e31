use std::task::Poll;

use footlight_runtime::{ActorRef, Cause, System};
use futures::{FutureExt, StreamExt, poll};
use tokio::time::Instant;

use super::*;
use crate::{
    consistency::Consistency,
    on_one_node::{Owner, soon, system},
    owner::ADOPTION,
    parameters::{layout::Layout, optimizer::Sgd, rule::NonFinite, square_sum::SquareSum},
};

const LEN: usize = 32;

/// The first of two shards, with one chunk of ones (number 0); `p -= g`.
async fn server(slots: u32) -> (ActorRef<ParameterServer>, ActorRef<Owner>) {
    server_on(&system().await, slots).await
}

async fn server_on(system: &System, slots: u32) -> (ActorRef<ParameterServer>, ActorRef<Owner>) {
    let owner = system.spawn::<Owner>(()).await.unwrap();
    let spec = ShardSpec {
        layout: Layout::new([("all", vec![2 * LEN])], 2).unwrap(),
        shard: 0,
        optimizer: Sgd::new(1.0).into(),
        rule: StepRule::default(),
        consistency: Consistency::default(),
        total_steps: 100,
        slots,
        owner: owner.addr(),
    };
    let server = system.spawn::<ParameterServer>(spec).await.unwrap();
    (server, owner)
}

async fn initialised(slots: u32) -> (ActorRef<ParameterServer>, ActorRef<Owner>) {
    let (server, owner) = server(slots).await;
    server
        .call(Initialise { chunk: 0, state: SavedChunk::first(floats(1.0, LEN)) })
        .await
        .unwrap()
        .unwrap();
    (server, owner)
}

fn floats(value: f32, len: usize) -> HostTensor {
    HostTensor::from_vec(vec![value; len], &[len]).unwrap()
}

fn push(step: u64, slot: u32, value: f32) -> PushGradient {
    let metrics = SlotMetrics { samples: slot.wrapping_add(1), loss_sum: value, correct: slot };
    let gradient = floats(value, LEN).into();
    PushGradient { step, slot, chunk: 0, gradient, metrics: Some(metrics) }
}

/// A pulled chunk: its version and its first number.
fn seen(chunk: std::result::Result<Chunk, PushError>) -> (u64, f32) {
    let chunk = chunk.unwrap();
    let params = chunk.params.into_tensor();
    let params = params.as_slice::<f32>().unwrap();
    assert_eq!(params.len(), LEN);
    assert!(params.iter().all(|number| *number == params[0]));
    (chunk.version, params[0])
}

#[tokio::test]
async fn a_pull_waits_for_its_version_and_gets_exactly_that_one() {
    let (server, _owner) = initialised(2).await;
    let pull =
        |version| server.call(Pull { chunk: 0, version, format: WireFormat::F32, newest: false });
    assert_eq!(seen(pull(0).await.unwrap()), (0, 1.0));

    // Those who wait for later versions, the latest first.
    let mut third = Box::pin(pull(3));
    let mut first = Box::pin(pull(1));
    assert!(poll!(&mut third).is_pending() && poll!(&mut first).is_pending());
    server.call(push(0, 1, 0.25)).await.unwrap().unwrap();
    assert!(poll!(&mut first).is_pending(), "a slot is missing");
    server.call(push(0, 0, 0.25)).await.unwrap().unwrap();
    for step in 1..4 {
        for slot in [0, 1] {
            server.call(push(step, slot, 0.5)).await.unwrap().unwrap();
        }
    }
    assert_eq!(seen(soon(first).await.unwrap()), (1, 0.5));
    assert_eq!(seen(soon(third).await.unwrap()), (3, -1.5));
    assert_eq!(seen(pull(4).await.unwrap()), (4, -2.5));
}

#[tokio::test]
async fn gradients_and_parameters_travel_in_a_format_and_are_f32_in_the_shard() {
    let (server, _owner) = initialised(2).await;
    let pull = |version, format| server.call(Pull { chunk: 0, version, format, newest: false });
    let mut waiting: Vec<_> = WireFormat::ALL.map(|format| Box::pin(pull(1, format))).into();
    let mut again = Box::pin(pull(1, WireFormat::Bf16));
    assert!(waiting.iter_mut().chain([&mut again]).all(|pull| pull.now_or_never().is_none()));
    // What neither bf16 nor fp16 can tell from 0.25, the sum can.
    let fine = 0.25 + 1e-4;
    let coarse = floats(0.25, LEN).encoded(WireFormat::Bf16);
    server.call(push(0, 0, fine)).await.unwrap().unwrap();
    server.call(PushGradient { gradient: coarse, ..push(0, 1, 0.0) }).await.unwrap().unwrap();
    let wanted = floats(1.0 - (fine + 0.25), LEN);
    let mut bf16 = None;
    for (pulled, format) in waiting.into_iter().zip(WireFormat::ALL) {
        let chunk = soon(pulled).await.unwrap().unwrap();
        assert_eq!(chunk.params, wanted.encoded(format), "{format}");
        bf16 = bf16.or((format == WireFormat::Bf16).then_some(chunk.params));
    }
    let again = soon(again).await.unwrap().unwrap().params;
    assert_eq!(again.bytes().as_ptr(), bf16.unwrap().bytes().as_ptr(), "made once for both");
}

#[tokio::test]
async fn the_version_before_the_newest_is_given_to_who_has_to_compute_with_it() {
    // A worker that died between its pushes leaves some chunks a version further than others: who
    // computes its slot again needs all of them as they were.
    let (server, _owner) = initialised(1).await;
    for step in 0..3 {
        server.call(push(step, 0, 1.0)).await.unwrap().unwrap();
    }
    let pull = async |version| {
        seen(
            server
                .call(Pull { chunk: 0, version, format: WireFormat::F32, newest: false })
                .await
                .unwrap(),
        )
    };
    assert_eq!(pull(2).await, (2, -1.0));
    assert_eq!(pull(3).await, (3, -2.0));
    // Of what is long past nobody computes anything: the newest, and the answer says so.
    assert_eq!(pull(1).await, (3, -2.0));
}

#[tokio::test]
async fn a_pull_before_the_first_parameters_waits_for_them() {
    let (server, _owner) = server(1).await;
    let mut early = Box::pin(server.call(Pull {
        chunk: 0,
        version: 0,
        format: WireFormat::F32,
        newest: false,
    }));
    assert!(poll!(&mut early).is_pending());
    server
        .call(Initialise { chunk: 0, state: SavedChunk::first(floats(3.0, LEN)) })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(seen(soon(early).await.unwrap()), (0, 3.0));
}

#[tokio::test]
async fn each_step_is_told_once_and_in_order_also_if_slots_come_twice_and_nobody_listens_yet() {
    let (server, _owner) = initialised(2).await;
    let pushes = [(0, 1), (0, 1), (0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1)];
    let mut repeated = Vec::new();
    for (index, (step, slot)) in pushes.into_iter().enumerate() {
        // A second push of a slot reports something else, which must not count.
        let pushed = server.call(push(step, slot, index as f32)).await.unwrap().unwrap();
        if pushed == Pushed::Repeated {
            repeated.push(index);
        }
    }
    assert_eq!(repeated, [1, 3, 4, 7]);
    let mut steps = server.call(FollowSteps { from: 0 }).await.unwrap();
    for slot in [1, 0] {
        server.call(push(2, slot, 1.0)).await.unwrap().unwrap();
    }
    for (step, loss_sum) in [(0, 2.0), (1, 11.0), (2, 2.0)] {
        let told = soon(steps.next()).await.unwrap().unwrap();
        assert_eq!(
            told,
            StepDone { step, samples: 3, loss_sum, correct: 1, norm: None, skipped: false }
        );
    }
    assert!(steps.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_follower_that_went_away_disturbs_nobody() {
    let (server, _owner) = initialised(1).await;
    drop(server.call(FollowSteps { from: 0 }).await.unwrap());
    server.call(push(0, 0, 1.0)).await.unwrap().unwrap();
    let mut steps = server.call(FollowSteps { from: 1 }).await.unwrap();
    server.call(push(1, 0, 1.0)).await.unwrap().unwrap();
    assert_eq!(soon(steps.next()).await.unwrap().unwrap().step, 1);
}

#[tokio::test]
async fn after_a_number_that_is_not_finite_nobody_waits_for_what_will_never_come() {
    let (server, _owner) = initialised(2).await;
    let mut before = Box::pin(server.call(Pull {
        chunk: 0,
        version: 1,
        format: WireFormat::F32,
        newest: false,
    }));
    assert!(poll!(&mut before).is_pending());
    server.call(push(0, 0, f32::NAN)).await.unwrap().unwrap();
    let refused = server.call(push(0, 1, 1.0)).await.unwrap().unwrap_err();
    assert!(
        refused.to_string().starts_with("the gradients of chunk 0 at step 0 are not all finite"),
        "{refused}"
    );
    assert_eq!(soon(before).await.unwrap().unwrap_err(), refused);
    let after =
        soon(server.call(Pull { chunk: 0, version: 1, format: WireFormat::F32, newest: false }))
            .await
            .unwrap();
    assert_eq!(after.unwrap_err(), refused);
    assert_eq!(
        seen(
            server
                .call(Pull { chunk: 0, version: 0, format: WireFormat::F32, newest: false })
                .await
                .unwrap()
        ),
        (0, 1.0)
    );
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_reason_and_changes_nothing() {
    let (server, _owner) = initialised(1).await;
    let refused =
        async |push: PushGradient| server.call(push).await.unwrap().unwrap_err().to_string();
    let other = HostTensor::from_vec(vec![1u8; LEN], &[LEN]).unwrap();
    let text = refused(PushGradient { gradient: other.into(), ..push(0, 0, 1.0) }).await;
    assert!(text.starts_with("parameters and gradients are f32"), "{text}");
    let text = refused(PushGradient { gradient: floats(1.0, 3).into(), ..push(0, 0, 1.0) }).await;
    assert_eq!(text, "chunk 0 has 32 numbers and 3 came");
    assert!(refused(PushGradient { chunk: 1, ..push(0, 0, 1.0) }).await.contains("chunk 1"));
    assert!(refused(push(0, 1, 1.0)).await.contains("no slot 1"));
    assert!(refused(push(1, 0, 1.0)).await.contains("step 1"));
    assert!(refused(push(u64::MAX, u32::MAX, 1.0)).await.contains("no slot"));
    for chunk in [1, u32::MAX] {
        let pulled = server
            .call(Pull { chunk, version: 0, format: WireFormat::F32, newest: false })
            .await
            .unwrap();
        assert!(pulled.unwrap_err().to_string().contains("is not on this shard"));
        let first = Initialise { chunk, state: SavedChunk::first(floats(1.0, LEN)) };
        assert!(server.call(first).await.unwrap().is_err());
    }
    let again = Initialise { chunk: 0, state: SavedChunk::first(floats(2.0, LEN)) };
    assert!(server.call(again).await.unwrap().is_err());
    assert_eq!(
        seen(
            server
                .call(Pull { chunk: 0, version: 0, format: WireFormat::F32, newest: false })
                .await
                .unwrap()
        ),
        (0, 1.0)
    );
}

#[tokio::test]
async fn a_shard_that_cannot_be_is_refused_at_its_start() {
    let system = system().await;
    let owner = system.spawn::<Owner>(()).await.unwrap();
    let spec = |shard, slots| ShardSpec {
        layout: Layout::new([("all", vec![LEN])], 1).unwrap(),
        shard,
        optimizer: Sgd::new(1.0).into(),
        rule: StepRule::default(),
        consistency: Consistency::default(),
        total_steps: 1,
        slots,
        owner: owner.addr(),
    };
    for (spec, part) in [
        (spec(1, 1), "there is no shard 1"),
        (spec(0, 0), "at least one slot"),
        (spec(0, u32::MAX), "4294967295 slots are too many"),
    ] {
        let error = system.spawn::<ParameterServer>(spec).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_whose_owner_is_gone_waits_for_another_one_and_ends_if_none_comes() {
    let system = system().await;
    let (server, owner) = server_on(&system, 1).await;
    server
        .call(Initialise { chunk: 0, state: SavedChunk::first(floats(1.0, LEN)) })
        .await
        .unwrap()
        .unwrap();
    owner.kill();
    owner.watch().await;
    server.call(push(0, 0, 1.0)).await.unwrap().unwrap();
    tokio::time::sleep(ADOPTION / 2).await;
    let next = system.spawn::<Owner>(()).await.unwrap();
    server.call(Adopt { owner: next.addr() }).await.unwrap();
    tokio::time::sleep(2 * ADOPTION).await;
    assert_eq!(
        seen(
            server
                .call(Pull { chunk: 0, version: 1, format: WireFormat::F32, newest: false })
                .await
                .unwrap()
        ),
        (1, 0.0)
    );

    let gone = Instant::now();
    next.stop();
    assert_eq!(server.watch().await, Down::Stopped);
    assert!((ADOPTION..2 * ADOPTION).contains(&gone.elapsed()));
}

#[tokio::test]
async fn a_shard_that_is_dismissed_ends_and_who_waits_is_told() {
    let (server, _owner) = initialised(1).await;
    let mut waiting = Box::pin(server.call(Pull {
        chunk: 0,
        version: 1,
        format: WireFormat::F32,
        newest: false,
    }));
    assert!(matches!(poll!(&mut waiting), Poll::Pending));
    let end = server.watch();
    server.call(Dismiss).await.unwrap();
    assert_eq!(soon(end).await, Down::Stopped);
    assert_eq!(*soon(waiting).await.unwrap_err().cause(), Cause::Stopped);
}

/// Two shards of one chunk each, all ones, that know each other.
async fn two(rule: StepRule) -> (Vec<ActorRef<ParameterServer>>, ActorRef<Owner>) {
    let system = system().await;
    let owner = system.spawn::<Owner>(()).await.unwrap();
    let mut shards = Vec::new();
    for shard in 0..2 {
        let spec = ShardSpec {
            layout: Layout::new([("all", vec![2 * LEN])], 2).unwrap(),
            shard,
            optimizer: Sgd::new(1.0).into(),
            rule,
            consistency: Consistency::default(),
            total_steps: 100,
            slots: 1,
            owner: owner.addr(),
        };
        shards.push(system.spawn::<ParameterServer>(spec).await.unwrap());
    }
    for (chunk, shard) in (0..).zip(&shards) {
        shard.call(Meet { shards: shards.clone() }).await.unwrap().unwrap();
        let first = Initialise { chunk, state: SavedChunk::first(floats(1.0, LEN)) };
        shard.call(first).await.unwrap().unwrap();
    }
    (shards, owner)
}

async fn push_to_both(shards: &[ActorRef<ParameterServer>], step: u64, values: [f32; 2]) {
    for ((chunk, shard), value) in (0..).zip(shards).zip(values) {
        let push = PushGradient { chunk, ..push(step, 0, value) };
        // Refused if it is the last, and the training has diverged.
        let _ = shard.call(push).await.unwrap();
    }
}

async fn pull_both(
    shards: &[ActorRef<ParameterServer>],
    version: u64,
) -> Vec<std::result::Result<Chunk, PushError>> {
    let pulls = (0..).zip(shards).map(|(chunk, shard)| async move {
        soon(shard.call(Pull { chunk, version, format: WireFormat::F32, newest: false }))
            .await
            .unwrap()
    });
    futures::future::join_all(pulls).await
}

#[tokio::test]
async fn a_gradient_is_clipped_by_the_norm_of_all_shards_together() {
    let norm = 2.0;
    let (shards, _owner) = two(StepRule::default().clip_norm(norm)).await;
    let mut steps = shards[0].call(FollowSteps { from: 0 }).await.unwrap();
    push_to_both(&shards, 0, [3.0, 4.0]).await;
    let whole = (LEN as f64 * 25.0).sqrt();
    let scale = (norm / (whole + 1e-6)) as f32;
    let pulled: Vec<_> = pull_both(&shards, 1).await.into_iter().map(seen).collect();
    assert_eq!(pulled, [(1, 1.0 - 3.0 * scale), (1, 1.0 - 4.0 * scale)]);
    let told = soon(steps.next()).await.unwrap().unwrap();
    assert_eq!((told.step, told.norm, told.skipped), (0, Some(whole), false));
    // Short enough: not touched.
    push_to_both(&shards, 1, [0.125, -0.125]).await;
    let again: Vec<_> = pull_both(&shards, 2).await.into_iter().map(seen).collect();
    assert_eq!(again, [(2, pulled[0].1 - 0.125), (2, pulled[1].1 + 0.125)]);
}

#[tokio::test]
async fn a_gradient_that_is_not_finite_is_left_out_on_all_shards_and_told_of() {
    let rule = StepRule::default().non_finite(NonFinite::Skip { in_a_row: 2 });
    let (shards, _owner) = two(rule).await;
    let mut steps = shards[0].call(FollowSteps { from: 0 }).await.unwrap();
    push_to_both(&shards, 0, [0.5, f32::NAN]).await;
    push_to_both(&shards, 1, [f32::INFINITY, 0.5]).await;
    push_to_both(&shards, 2, [0.5, 0.25]).await;
    let pulled: Vec<_> = pull_both(&shards, 3).await.into_iter().map(seen).collect();
    assert_eq!(pulled, [(3, 0.5), (3, 0.75)]);
    for wanted in [true, true, false] {
        assert_eq!(soon(steps.next()).await.unwrap().unwrap().skipped, wanted);
    }
    for step in 3..6 {
        push_to_both(&shards, step, [0.5, f32::NAN]).await;
    }
    for refused in pull_both(&shards, 6).await {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("gradients of chunk 1 at step 5"), "{error}");
    }
}

#[tokio::test]
async fn what_a_shard_is_told_of_another_step_or_chunk_is_refused() {
    let (shards, _owner) = two(StepRule::default().clip_norm(1.0)).await;
    for (step, shard, part) in [(1, 1, "step 0 is due"), (0, 2, "no shard 2")] {
        let squares = SquareSum::default();
        let told = TellSquares { step, shard, squares, not_finite: None };
        let error = shards[0].call(told).await.unwrap().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let stranger = Meet { shards: shards[1..].to_vec() };
    assert!(shards[0].call(stranger).await.unwrap().is_err());
    let (shards, _owner) = two(StepRule::default()).await;
    let squares = SquareSum::default();
    let told = TellSquares { step: 0, shard: 1, squares, not_finite: None };
    assert!(shards[0].call(told).await.unwrap().is_err(), "no rule needs it");
}
