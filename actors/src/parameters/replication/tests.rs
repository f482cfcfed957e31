use std::task::Poll;

use footlight_runtime::{Down, HostTensor, NodeId, System, tensor::WireFormat};
use futures::poll;

use super::*;
use crate::{
    consistency::Consistency,
    on_one_node::{Owner, soon, system},
    parameters::{
        ShardSpec,
        gate::Meet,
        layout::Layout,
        optimizer::Adam,
        rule::StepRule,
        server::{
            AskVersion, FollowSteps, Initialise, Pull, PushGradient, Pushed, SavedChunk,
            SlotMetrics,
        },
    },
};

const LEN: usize = 32;
const SLOTS: u32 = 2;

/// The shards of a layout of two chunks a shard, of which any may be started more than once.
struct Stage {
    system: System,
    owner: ActorRef<Owner>,
    layout: Layout,
    rule: StepRule,
}

impl Stage {
    async fn new(shards: usize, rule: StepRule) -> Self {
        let system = system().await;
        let owner = system.spawn::<Owner>(()).await.unwrap();
        let layout = Layout::new([("all", vec![shards * LEN])], shards).unwrap();
        Stage { system, owner, layout, rule }
    }

    async fn server(&self, shard: u32) -> ActorRef<ParameterServer> {
        let spec = ShardSpec {
            layout: self.layout.clone(),
            shard,
            optimizer: Adam::new(0.1).into(),
            rule: self.rule,
            consistency: Consistency::default(),
            total_steps: 100,
            slots: SLOTS,
            owner: self.owner.addr(),
        };
        self.system.spawn::<ParameterServer>(spec).await.unwrap()
    }

    /// A shard that has its first parameters.
    async fn primary(&self, shard: u32) -> ActorRef<ParameterServer> {
        let server = self.server(shard).await;
        let state = SavedChunk::first(floats(1.0));
        soon(server.call(Initialise { chunk: shard, state })).await.unwrap().unwrap();
        server
    }
}

fn floats(value: f32) -> HostTensor {
    HostTensor::from_vec((0..LEN).map(|at| value + at as f32).collect(), &[LEN]).unwrap()
}

async fn configure(
    primary: &ActorRef<ParameterServer>,
    view: u64,
    backups: &[&ActorRef<ParameterServer>],
) -> std::result::Result<(), PushError> {
    let backups = backups.iter().map(|backup| (*backup).clone()).collect();
    soon(primary.call(Configure { view, backups })).await.unwrap()
}

async fn push(server: &ActorRef<ParameterServer>, step: u64, slot: u32, chunk: u32) -> Pushed {
    let metrics = SlotMetrics { samples: 1, loss_sum: slot as f32, correct: 0 };
    let gradient = floats(0.1 * (step + 1) as f32 + slot as f32).into();
    let metrics = (chunk == 0).then_some(metrics);
    let push = PushGradient { step, slot, chunk, gradient, metrics };
    soon(server.call(push)).await.unwrap().unwrap()
}

fn pull(server: &ActorRef<ParameterServer>, version: u64, chunk: u32) -> Pulling<'_> {
    Box::pin(async move {
        let pull = Pull { chunk, version, format: WireFormat::F32, newest: false };
        let chunk = server.call(pull).await.map_err(|error| error.to_string())?;
        let chunk = chunk.map_err(|error| error.to_string())?;
        assert_eq!(chunk.version, version);
        Ok(chunk.params.into_tensor())
    })
}

type Pulling<'a> = futures::future::BoxFuture<'a, std::result::Result<HostTensor, String>>;

async fn pulled(server: &ActorRef<ParameterServer>, version: u64, chunk: u32) -> HostTensor {
    soon(pull(server, version, chunk)).await.unwrap()
}

/// What a chunk is after so many steps that nothing disturbed.
async fn undisturbed(steps: u64, chunk: u32, shards: usize) -> HostTensor {
    let stage = Stage::new(shards, StepRule::default()).await;
    let server = stage.primary(chunk).await;
    for step in 0..steps {
        for slot in 0..SLOTS {
            push(&server, step, slot, chunk).await;
        }
    }
    pulled(&server, steps, chunk).await
}

#[tokio::test]
async fn a_backup_has_each_step_before_anybody_sees_it_and_goes_on_with_the_same_bits() {
    let stage = Stage::new(1, StepRule::default()).await;
    let (primary, backup) = (stage.primary(0).await, stage.server(0).await);
    // It is made in the middle of the training.
    for slot in 0..SLOTS {
        push(&primary, 0, slot, 0).await;
    }
    configure(&primary, 1, &[&backup]).await.unwrap();
    for step in 1..3 {
        for slot in 0..SLOTS {
            push(&primary, step, slot, 0).await;
        }
        pulled(&primary, step + 1, 0).await;
        assert_eq!(soon(backup.call(AskVersion)).await.unwrap(), Some(step + 1));
    }
    // A slot that is not applied is lost with the primary.
    push(&primary, 3, 0, 0).await;
    primary.kill();
    configure(&backup, 2, &[]).await.unwrap();
    assert_eq!(push(&backup, 2, 0, 0).await, Pushed::Repeated);
    for slot in (0..SLOTS).rev() {
        assert_eq!(push(&backup, 3, slot, 0).await, Pushed::Accepted);
    }
    assert_eq!(pulled(&backup, 4, 0).await, undisturbed(4, 0, 1).await);
    // It remembers the steps from before it was there, and has counted each slot once.
    let steps = soon(backup.call(FollowSteps { from: 0 })).await.unwrap();
    let steps: Vec<_> = soon(steps.take(4).try_collect::<Vec<_>>()).await.unwrap();
    assert!(steps.iter().map(|done| done.step).eq(0..4), "{steps:?}");
    assert!(steps.iter().all(|done| done.samples == SLOTS), "{steps:?}");
}

#[tokio::test]
async fn a_primary_whose_backup_has_taken_over_publishes_nothing_and_ends() {
    let stage = Stage::new(1, StepRule::default()).await;
    let (primary, backup) = (stage.primary(0).await, stage.server(0).await);
    configure(&primary, 1, &[&backup]).await.unwrap();
    // It was held for lost, and knows nothing of that.
    configure(&backup, 2, &[]).await.unwrap();
    let mut waits = pull(&primary, 1, 0);
    assert!(poll!(&mut waits).is_pending());
    let down = primary.watch();
    for slot in 0..SLOTS {
        push(&primary, 0, slot, 0).await;
    }
    assert!(matches!(soon(down).await, Down::Stopped));
    assert!(soon(waits).await.is_err(), "nobody sees the step");
    assert_eq!(soon(backup.call(AskVersion)).await.unwrap(), Some(0));
    // And what somebody sent late under an earlier view changes nothing.
    let late = configure(&backup, 1, &[]).await.unwrap_err();
    assert_eq!(late.to_string(), "view 1 is over: 2 is known");
}

#[tokio::test]
async fn a_step_waits_for_a_lost_backup_until_it_is_said_that_there_is_none() {
    let stage = Stage::new(1, StepRule::default()).await;
    let (primary, backup) = (stage.primary(0).await, stage.server(0).await);
    configure(&primary, 1, &[&backup]).await.unwrap();
    let down = backup.watch();
    backup.kill();
    soon(down).await;
    for slot in 0..SLOTS {
        push(&primary, 0, slot, 0).await;
    }
    assert_eq!(soon(primary.call(AskVersion)).await.unwrap(), Some(0));
    let mut waits = pull(&primary, 1, 0);
    assert!(matches!(poll!(&mut waits), Poll::Pending));
    let another = stage.server(0).await;
    // The next one is told of what is not published yet.
    configure(&primary, 2, &[&another]).await.unwrap();
    let params = soon(waits).await.unwrap();
    assert_eq!(params, undisturbed(1, 0, 1).await);
    assert_eq!(soon(another.call(AskVersion)).await.unwrap(), Some(1));
}

#[tokio::test]
async fn who_is_out_of_reach_is_told_nothing_any_more_once_it_is_no_backup() {
    let stage = Stage::new(1, StepRule::default()).await;
    let primary = stage.primary(0).await;
    let nowhere = ActorAddr { node: NodeId(2), ..primary.addr() };
    let backups = vec![ActorRef::at(nowhere, &stage.system)];
    let mut given = Box::pin(primary.call(Configure { view: 1, backups }));
    assert!(matches!(poll!(&mut given), Poll::Pending));
    configure(&primary, 2, &[]).await.unwrap();
    let refused = soon(given).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("could not be given the state"), "{refused}");
    for slot in 0..SLOTS {
        push(&primary, 0, slot, 0).await;
    }
    assert_eq!(pulled(&primary, 1, 0).await, undisturbed(1, 0, 1).await);
}

#[tokio::test]
async fn a_backup_takes_no_gradients_and_answers_no_pull_that_must_wait() {
    let stage = Stage::new(1, StepRule::default()).await;
    let (primary, backup) = (stage.primary(0).await, stage.server(0).await);
    configure(&primary, 1, &[&backup]).await.unwrap();
    let gradient = floats(0.0).into();
    let push = PushGradient { step: 0, slot: 0, chunk: 0, gradient, metrics: None };
    let error = soon(backup.call(push)).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "this is a backup of its shard, and not the primary");
    assert!(soon(pull(&backup, 1, 0)).await.is_err());
}

/// The primary is lost after the shards have told each other of the step, and before its backup knows what became of it.
#[tokio::test]
async fn shards_that_step_together_go_on_when_one_is_replaced_between_the_two_phases() {
    let rule = StepRule::default().clip_norm(1e9);
    let stage = Stage::new(2, rule).await;
    let (first, second) = (stage.primary(0).await, stage.primary(1).await);
    let backup = stage.server(0).await;
    configure(&first, 1, &[&backup]).await.unwrap();
    let meet = async |shards: [&ActorRef<ParameterServer>; 2]| {
        let shards: Vec<_> = shards.map(ActorRef::clone).into();
        for shard in &shards {
            soon(shard.call(Meet { shards: shards.clone() })).await.unwrap().unwrap();
        }
    };
    meet([&first, &second]).await;
    for (chunk, shard) in [(0, &first), (1, &second)] {
        for slot in 0..SLOTS {
            push(shard, 0, slot, chunk).await;
        }
    }
    pulled(&second, 1, 1).await;
    // Of the second step only the first shard has all slots: the other one is told of it, and goes no further.
    for slot in 0..SLOTS {
        push(&first, 1, slot, 0).await;
    }
    pulled(&first, 1, 0).await;
    let down = first.watch();
    first.kill();
    soon(down).await;
    configure(&backup, 2, &[]).await.unwrap();
    meet([&backup, &second]).await;
    for slot in 0..SLOTS {
        push(&second, 1, slot, 1).await;
    }
    // The sum that the lost one had is not known any more.
    for slot in 0..SLOTS {
        assert_eq!(push(&backup, 1, slot, 0).await, Pushed::Accepted);
    }
    assert_eq!(pulled(&backup, 2, 0).await, undisturbed(2, 0, 2).await);
    assert_eq!(pulled(&second, 2, 1).await, undisturbed(2, 1, 2).await);
}

/// Both primaries are lost when the backup of one knows what became of the step, and that of the other does not.
#[tokio::test]
async fn so_do_shards_of_which_two_are_replaced_at_once() {
    let rule = StepRule::default().clip_norm(1e9);
    let stage = Stage::new(2, rule).await;
    let primaries = [stage.primary(0).await, stage.primary(1).await];
    let backups = [stage.server(0).await, stage.server(1).await];
    let meet = async |shards: &[ActorRef<ParameterServer>; 2]| {
        for shard in shards {
            soon(shard.call(Meet { shards: shards.to_vec() })).await.unwrap().unwrap();
        }
    };
    let step = async |shards: &[ActorRef<ParameterServer>; 2], step: u64| {
        for (chunk, shard) in (0..).zip(shards) {
            for slot in 0..SLOTS {
                push(shard, step, slot, chunk).await;
            }
        }
    };
    meet(&primaries).await;
    for (primary, backup) in primaries.iter().zip(&backups) {
        configure(primary, 1, &[backup]).await.unwrap();
    }
    step(&primaries, 0).await;
    pulled(&primaries[1], 1, 1).await;
    // What becomes of the second step its backup does not hear.
    configure(&primaries[1], 2, &[]).await.unwrap();
    step(&primaries, 1).await;
    pulled(&primaries[0], 2, 0).await;
    for primary in &primaries {
        let down = primary.watch();
        primary.kill();
        soon(down).await;
    }
    for backup in &backups {
        configure(backup, 3, &[]).await.unwrap();
    }
    meet(&backups).await;
    step(&backups, 1).await;
    for (chunk, backup) in (0..).zip(&backups) {
        assert_eq!(pulled(backup, 2, chunk).await, undisturbed(2, chunk, 2).await);
    }
}
