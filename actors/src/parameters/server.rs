//! The actor around one [`Shard`].
//!
//! A worker pushes one message for each chunk of a slot's gradient and pulls each chunk of the next
//! version; a pull waits until its version is there. So the barrier of bulk-synchronous training is
//! nothing but the order of versions, chunk by chunk: push, sum and pull overlap. Where workers may be
//! [apart](crate::consistency), they wait for an older version, or for none, and take the newest that there is.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::{
    gate::{Gate, Meet, TellSquares, Whole, tell},
    replication::{Record, Replication},
    rule::{LossScale, StepRule, Verdict},
    shard::{ChunkState, Gradient, Numbers, Push, Shard, ShardError},
};
use crate::owner::{Adopt, Dismiss, Owner};
use bytes::Bytes;
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Context, DeferredHandler, Down, Error, Handler, HostTensor,
    Message, ReplyTo, Result, StreamSender, Streamed,
    tensor::{BufferPool, DType, WireFormat, WireTensor},
};

pub use super::message::{
    AskVersion, AwaitVersion, Capture, CaptureError, Chunk, FollowSteps, Initialise, Pull,
    PushError, PushGradient, Pushed, SavedChunk, ShardSpec, SlotMetrics, StepDone,
};

/// Most slots of a step: what is remembered of each takes room at every chunk.
pub const MAX_SLOTS: u32 = 1 << 16;

/// Steps that a server remembers for those who begin to follow.
const STEPS_KEPT: usize = 8 << 10;
/// Steps that a listener may be behind before the server stops telling it.
const STEPS_BEHIND: usize = 2 * STEPS_KEPT;

/// Somebody who waits for a version.
struct Waiting {
    version: u64,
    format: WireFormat,
    reply: PullReply,
}

type PullReply = ReplyTo<<Pull as Message>::Reply>;
type CaptureReply = ReplyTo<<Capture as Message>::Reply>;
type VersionReply = ReplyTo<<AwaitVersion as Message>::Reply>;

/// One shard of a parameter server: holds chunks of the parameters, sums gradients by slot, applies
/// the optimiser.
pub struct ParameterServer {
    pub(super) shard: Shard<Floats>,
    rule: StepRule,
    pub(super) gate: Gate,
    /// The job's other shards, where the rule needs them.
    others: Vec<ActorRef<ParameterServer>>,
    /// Steps in a row that were left out.
    pub(super) skipped: u32,
    pub(super) loss_scale: LossScale,
    slots: u32,
    /// By chunk: who waits for which version.
    pulls: HashMap<u32, Vec<Waiting>>,
    /// By chunk: who waits for the state at which version.
    captures: HashMap<u32, Vec<(u64, CaptureReply)>>,
    /// Who waits until all chunks have a version.
    versions: Vec<(u64, VersionReply)>,
    /// Why no further version will come: the training diverged.
    failed: Option<PushError>,
    /// What slots reported of steps that are not applied whole yet, by step and slot.
    metrics: BTreeMap<u64, BTreeMap<u32, SlotMetrics>>,
    /// The chunk with which they report.
    reported_with: Option<u32>,
    followers: Vec<StreamSender<StepDone>>,
    /// The latest steps, for those who begin to follow.
    pub(super) history: VecDeque<StepDone>,
    pub(super) replication: Replication,
    owner: Owner,
}

/// A tensor that is known to be `f32`, in whatever format it came.
#[derive(Debug)]
pub(super) struct Floats(WireTensor);

impl Floats {
    pub(super) fn new(tensor: WireTensor) -> std::result::Result<Self, PushError> {
        match tensor.dtype() {
            DType::F32 => Ok(Floats(tensor)),
            other => Err(PushError(format!("parameters and gradients are f32, not {other}"))),
        }
    }
}

impl Gradient for Floats {
    fn count(&self) -> usize {
        // No product overflows: the tensor has such a shape.
        self.0.shape().iter().product()
    }

    fn copy_to(&self, at: usize, values: &mut [f32]) {
        self.0.copy_part_to(at, values).expect("a part of f32 elements that are there");
    }

    fn add_to(&self, at: usize, sums: &mut [f32]) {
        self.0.add_part_to(at, sums).expect("a part of f32 elements that are there");
    }
}

/// Parameters that the shard and those who read them share.
struct Shared(Arc<Vec<f32>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn chunk(
    version: u64,
    loss_scale: f32,
    params: Arc<Vec<f32>>,
    format: WireFormat,
    pool: &BufferPool,
) -> std::result::Result<Chunk, PushError> {
    tensor(params).map(|params| Chunk {
        version,
        loss_scale,
        params: params.encoded_in(format, pool),
    })
}

/// Not copied: the shard writes the next version elsewhere while this one is on its way.
pub(super) fn tensor(params: Arc<Vec<f32>>) -> std::result::Result<HostTensor, PushError> {
    let shape = [params.len()];
    HostTensor::from_bytes(DType::F32, &shape, Bytes::from_owner(Shared(params))).map_err(refused)
}

impl Actor for ParameterServer {
    type Args = ShardSpec;
    const NAME: &'static str = "parameters.server";

    async fn start(spec: ShardSpec, context: &Context<Self>) -> Result<Self> {
        let ShardSpec { layout, shard, optimizer, rule, consistency, total_steps, slots, owner } =
            spec;
        if slots > MAX_SLOTS {
            return Err(Error::other(format!("{slots} slots are too many: {MAX_SLOTS} at most")));
        }
        let chunks = layout.chunks_of(shard as usize).count();
        let gate = Gate::new(shard, layout.shards(), chunks, consistency.window());
        let shard = Shard::new(&layout, shard as usize, optimizer, rule, total_steps, slots)
            .and_then(|shard| shard.consistency(consistency))
            .map_err(Error::other)?;
        Ok(ParameterServer {
            owner: Owner::new(owner, context),
            shard,
            rule,
            gate,
            others: Vec::new(),
            skipped: 0,
            loss_scale: LossScale::default(),
            slots,
            pulls: HashMap::new(),
            captures: HashMap::new(),
            versions: Vec::new(),
            failed: None,
            metrics: BTreeMap::new(),
            reported_with: None,
            followers: Vec::new(),
            history: VecDeque::new(),
            replication: Replication::default(),
        })
    }

    async fn down(&mut self, actor: ActorAddr, _: Down, context: &Context<Self>) -> Result<()> {
        if self.owner.is(actor) {
            self.owner.lost(context);
        }
        Ok(())
    }
}

impl Handler<Adopt> for ParameterServer {
    async fn handle(&mut self, adopt: Adopt, context: &Context<Self>) {
        self.owner.adopt(adopt, context);
    }
}

impl Handler<Dismiss> for ParameterServer {
    async fn handle(&mut self, _: Dismiss, context: &Context<Self>) {
        context.stop();
    }
}

impl Handler<Initialise> for ParameterServer {
    async fn handle(
        &mut self,
        message: Initialise,
        context: &Context<Self>,
    ) -> std::result::Result<(), PushError> {
        let Initialise { chunk, state } = message;
        let (version, skipped, loss_scale) = (state.version, state.skipped, state.loss_scale);
        let restored = self.restored(state)?;
        self.shard.restore(chunk as usize, restored)?;
        // The same for all chunks.
        (self.skipped, self.loss_scale) = (skipped, loss_scale);
        self.gate.begin(version);
        self.answer(chunk, context.system().pool());
        Ok(())
    }
}

impl DeferredHandler<Capture> for ParameterServer {
    async fn handle(&mut self, capture: Capture, reply: CaptureReply, _: &Context<Self>) {
        let Capture { chunk, version } = capture;
        let newest = match self.shard.params(chunk as usize) {
            Ok((newest, _)) => newest,
            Err(ShardError::NotInitialised { .. }) => 0,
            Err(error) => return reply.send(Err(PushError::from(error).into())),
        };
        if let Some(failed) = self.failed.clone().or(self.must_be_primary().err()) {
            return reply.send(Err(failed.into()));
        }
        if version < newest {
            return reply.send(Err(CaptureError::GoneBy { chunk, version: newest }));
        }
        let waiting = self.captures.entry(chunk).or_default();
        // Those who gave up make room for those who come.
        waiting.retain(|(_, reply)| reply.is_awaited());
        waiting.push((version, reply));
        self.save(chunk);
    }
}

impl Handler<PushGradient> for ParameterServer {
    async fn handle(
        &mut self,
        push: PushGradient,
        context: &Context<Self>,
    ) -> std::result::Result<Pushed, PushError> {
        let PushGradient { step, slot, chunk, gradient, metrics } = push;
        self.must_be_primary()?;
        let gradient = Floats::new(gradient)?;
        let outcome = self.shard.push(step, slot, chunk as usize, gradient);
        if matches!(outcome, Ok(Push::Accepted | Push::Applied { .. } | Push::Summed { .. }))
            && let Some(metrics) = metrics
        {
            self.metrics.entry(step).or_default().insert(slot, metrics);
            self.reported_with.get_or_insert(chunk);
        }
        match outcome {
            Ok(Push::Accepted) => Ok(Pushed::Accepted),
            Ok(Push::Duplicate | Push::AlreadyApplied) => Ok(Pushed::Repeated),
            Ok(outcome) => {
                self.took(chunk, outcome, context)?;
                self.advance(chunk, context)?;
                Ok(Pushed::Accepted)
            }
            Err(error) => Err(self.refuse(error)),
        }
    }
}

pub(super) fn refused(error: impl std::fmt::Display) -> PushError {
    PushError(error.to_string())
}

impl Handler<Meet> for ParameterServer {
    async fn handle(
        &mut self,
        meet: Meet,
        context: &Context<Self>,
    ) -> std::result::Result<(), PushError> {
        let me = context.me().addr();
        if !meet.shards.iter().any(|shard| shard.addr() == me) {
            return Err(refused("a shard must be one of those that it meets"));
        }
        self.others = meet.shards.into_iter().filter(|shard| shard.addr() != me).collect();
        // One that is new does not know what was told to the one before it.
        for told in self.gate.has_told() {
            context.run(tell(self.others.clone(), told));
        }
        Ok(())
    }
}

impl Handler<TellSquares> for ParameterServer {
    async fn handle(
        &mut self,
        told: TellSquares,
        context: &Context<Self>,
    ) -> std::result::Result<(), PushError> {
        if !self.rule.is_global() {
            return Err(refused("this job's steps wait for no verdict"));
        }
        self.gate.told(told).map_err(refused)?;
        self.decide(context)
    }
}

impl DeferredHandler<Pull> for ParameterServer {
    async fn handle(&mut self, pull: Pull, reply: PullReply, context: &Context<Self>) {
        match self.shard.params(pull.chunk as usize) {
            Ok((newest, params)) if newest >= pull.version => {
                let asked = self.shard.params_of(pull.chunk as usize, pull.version);
                let (version, params) = match asked.filter(|_| !pull.newest) {
                    Some(params) => (pull.version, params),
                    None => (newest, params),
                };
                let scale = self.scale_of(version, newest);
                let pool = context.system().pool();
                reply.send(chunk(version, scale, params, pull.format, pool));
            }
            Ok(_) | Err(ShardError::NotInitialised { .. }) => {
                if let Some(failed) = self.failed.clone().or(self.must_be_primary().err()) {
                    return reply.send(Err(failed));
                }
                let waiting = self.pulls.entry(pull.chunk).or_default();
                // Those who gave up make room for those who come.
                waiting.retain(|waiting| waiting.reply.is_awaited());
                waiting.push(Waiting { version: pull.version, format: pull.format, reply });
            }
            Err(error) => reply.send(Err(error.into())),
        }
    }
}

impl Handler<AskVersion> for ParameterServer {
    async fn handle(&mut self, _: AskVersion, _: &Context<Self>) -> Option<u64> {
        self.shard.version()
    }
}

impl DeferredHandler<AwaitVersion> for ParameterServer {
    async fn handle(&mut self, ask: AwaitVersion, reply: VersionReply, _: &Context<Self>) {
        if let Some(failed) = self.failed.clone().or(self.must_be_primary().err()) {
            return reply.send(Err(failed));
        }
        // Those who gave up make room for those who come.
        self.versions.retain(|(_, reply)| reply.is_awaited());
        self.versions.push((ask.version, reply));
        self.tell_version();
    }
}

impl Handler<FollowSteps> for ParameterServer {
    async fn handle(&mut self, follow: FollowSteps, _: &Context<Self>) -> Streamed<StepDone> {
        let (sender, steps) = Streamed::channel(STEPS_BEHIND);
        // There is room for all that is kept.
        let told = self.history.iter().filter(|done| done.step >= follow.from);
        if told.map(|done| sender.try_send(*done)).all(|sent| sent.is_ok()) {
            self.followers.push(sender);
        }
        steps
    }
}

impl ParameterServer {
    /// A chunk may have a step whose slots came before its turn.
    pub(super) fn advance(
        &mut self,
        chunk: u32,
        context: &Context<Self>,
    ) -> std::result::Result<(), PushError> {
        loop {
            match self.shard.advance(chunk as usize) {
                Ok(None) => return Ok(()),
                Ok(Some(outcome)) => self.took(chunk, outcome, context)?,
                Err(error) => return Err(self.refuse(error)),
            }
        }
    }

    /// A chunk has new parameters, or a sum that waits.
    fn took(
        &mut self,
        chunk: u32,
        outcome: Push,
        context: &Context<Self>,
    ) -> std::result::Result<(), PushError> {
        match outcome {
            Push::Accepted | Push::Duplicate | Push::AlreadyApplied => {}
            Push::Applied { version } => {
                self.answer(chunk, context.system().pool());
                while let Some(step) = self.reported_before(chunk, version) {
                    let done = self.done(chunk, step, None, false);
                    self.told(done);
                }
            }
            Push::Summed { squares } => {
                let waits = squares.is_some();
                let step = self.shard.sum_of(chunk as usize).map(|(step, _)| step);
                let step = step.filter(|_| !waits);
                let done = step.and_then(|step| self.done(chunk, step, None, false));
                if let Some(record) = self.sum_record(chunk, waits, done)? {
                    self.replicate(record, context);
                }
                if let Some(own) = squares.and_then(|squares| self.gate.sum(chunk, &squares)) {
                    context.run(tell(self.others.clone(), own));
                    self.gate.told(own).map_err(refused)?;
                    self.decide(context)?;
                }
            }
        }
        Ok(())
    }

    /// The first step before `version` of which slots have reported with this chunk.
    fn reported_before(&self, chunk: u32, version: u64) -> Option<u64> {
        let first = *self.metrics.first_key_value()?.0;
        (self.reported_with == Some(chunk) && first < version).then_some(first)
    }

    /// Answers those who wait for the state that a chunk has now.
    fn save(&mut self, chunk: u32) {
        let Some(waiting) = self.captures.get_mut(&chunk).filter(|waiting| !waiting.is_empty())
        else {
            return;
        };
        let Ok((newest, _)) = self.shard.params(chunk as usize) else { return };
        let due: Vec<_> = waiting.extract_if(.., |(version, _)| *version <= newest).collect();
        let awaited = due.into_iter().filter(|(_, reply)| reply.is_awaited());
        for (version, reply) in awaited {
            if version < newest {
                reply.send(Err(CaptureError::GoneBy { chunk, version: newest }));
                continue;
            }
            let state = self.shard.state(chunk as usize).map_err(PushError::from);
            reply.send(state.and_then(|state| self.saved(state)).map_err(CaptureError::from));
        }
    }

    /// Answers those who wait until all chunks have a version that they have now.
    fn tell_version(&mut self) {
        if self.versions.is_empty() {
            return;
        }
        let Some(version) = self.shard.version() else { return };
        for (_, reply) in self.versions.extract_if(.., |(wanted, _)| *wanted <= version) {
            reply.send(Ok(version));
        }
    }

    /// Gradients and waiting pulls that came to a backup would be lost there.
    fn must_be_primary(&self) -> std::result::Result<(), PushError> {
        match self.replication.is_primary() {
            true => Ok(()),
            false => Err(refused("this is a backup of its shard, and not the primary")),
        }
    }

    /// A chunk's state as it travels.
    pub(super) fn restored(&self, state: SavedChunk) -> std::result::Result<ChunkState, PushError> {
        let floats = |tensor: &HostTensor| match tensor.as_slice::<f32>() {
            Ok(floats) => Ok(floats.to_vec()),
            Err(error) => Err(PushError(format!("parameters are f32: {error}"))),
        };
        let params = floats(&state.params)?;
        let optimizer = match state.version {
            0 => self.shard.optimizer().state(params.len()),
            _ => {
                let buffers = state.buffers.iter().map(floats).collect::<Result<_, _>>()?;
                self.shard.optimizer().state_of(params.len(), buffers).map_err(refused)?
            }
        };
        Ok(ChunkState {
            version: state.version,
            taken: state.taken,
            params: Arc::new(params),
            optimizer,
        })
    }

    pub(super) fn saved(&self, state: ChunkState) -> std::result::Result<SavedChunk, PushError> {
        let ChunkState { version, taken, params, optimizer } = state;
        let buffers = optimizer.into_buffers().into_iter().map(|buffer| {
            let shape = [buffer.len()];
            HostTensor::from_vec(buffer, &shape).map_err(refused)
        });
        Ok(SavedChunk {
            version,
            taken,
            skipped: self.skipped,
            loss_scale: self.loss_scale,
            buffers: buffers.collect::<Result<_, _>>()?,
            params: tensor(params)?,
        })
    }

    /// Answers those who wait for the version that is there: pulls, each format made once, and captures.
    pub(super) fn answer(&mut self, number: u32, pool: &BufferPool) {
        self.save(number);
        self.tell_version();
        let Ok((version, params)) = self.shard.params(number as usize) else { return };
        let scale = self.scale_of(version, version);
        let Some(waiting) = self.pulls.get_mut(&number) else { return };
        let ready = waiting.extract_if(.., |waiting| waiting.version <= version);
        let mut made = Vec::<(WireFormat, std::result::Result<Chunk, PushError>)>::new();
        for Waiting { format, reply, .. } in ready {
            let chunk = match made.iter().find(|(made, _)| *made == format) {
                Some((_, chunk)) => chunk.clone(),
                None => {
                    let chunk = chunk(version, scale, params.clone(), format, pool);
                    made.push((format, chunk.clone()));
                    chunk
                }
            };
            reply.send(chunk);
        }
    }

    /// The scale of the loss for a version, which is the newest or the one before.
    fn scale_of(&self, version: u64, newest: u64) -> f32 {
        let [now, before] = self.loss_scale.scales();
        match self.rule.scales_loss() {
            true if version == newest => now,
            true => before,
            false => 1.0,
        }
    }

    /// Takes a step, or leaves it out, once the squares of all chunks are known.
    fn decide(&mut self, context: &Context<Self>) -> std::result::Result<(), PushError> {
        let Some(Whole { step, norm, not_finite }) = self.gate.take() else {
            return Ok(());
        };
        let verdict = self.rule.verdict(norm, self.skipped);
        if let (Verdict::Stop, Some(chunk)) = (verdict, not_finite) {
            // The same on all shards: the chunk that has brought it.
            let numbers = Numbers::Gradient;
            let _ = self.shard.decide(step, verdict);
            return Err(self.refuse(ShardError::NonFinite {
                chunk: chunk as usize,
                step,
                numbers,
            }));
        }
        let done = self
            .reported_with
            .and_then(|chunk| self.done(chunk, step, Some(norm), verdict == Verdict::Skip));
        let squares = self.gate.before().map(Box::new);
        self.replicate(Record::Verdict { step, verdict, squares, done }, context);
        match &self.failed {
            Some(failed) => Err(failed.clone()),
            None => Ok(()),
        }
    }

    /// If the training has diverged, whoever waits for the next version would wait for ever.
    pub(super) fn refuse(&mut self, error: ShardError) -> PushError {
        let refusal = PushError::from(error.clone());
        if matches!(error, ShardError::NonFinite { .. }) {
            self.failed = Some(refusal.clone());
            for waiting in self.pulls.drain().flat_map(|(_, waiting)| waiting) {
                waiting.reply.send(Err(refusal.clone()));
            }
            for (_, reply) in self.captures.drain().flat_map(|(_, waiting)| waiting) {
                reply.send(Err(refusal.clone().into()));
            }
            for (_, reply) in self.versions.drain(..) {
                reply.send(Err(refusal.clone()));
            }
        }
        refusal
    }

    /// Sums wait for the verdict of all shards.
    pub(super) fn holds_for_verdict(&self) -> bool {
        self.rule.is_global()
    }

    /// What is told of a step that is applied to a chunk, if that is the one with which slots report, and all have.
    fn done(
        &mut self,
        chunk: u32,
        step: u64,
        norm: Option<f64>,
        skipped: bool,
    ) -> Option<StepDone> {
        if self.reported_with != Some(chunk) {
            return None;
        }
        let slots = self.metrics.remove(&step)?;
        if slots.len() != self.slots as usize {
            return None;
        }
        let mut done = StepDone { step, samples: 0, loss_sum: 0.0, correct: 0, norm, skipped };
        // In slot order, as the gradients: the same sum whoever computed.
        for metrics in slots.values() {
            done.samples = done.samples.saturating_add(metrics.samples);
            done.loss_sum += metrics.loss_sum;
            done.correct = done.correct.saturating_add(metrics.correct);
        }
        Some(done)
    }

    /// A step is applied: whoever follows is told.
    pub(super) fn told(&mut self, done: Option<StepDone>) {
        let Some(done) = done else { return };
        if self.history.len() == STEPS_KEPT {
            self.history.pop_front();
        }
        self.history.push_back(done);
        self.followers.retain(|follower| follower.try_send(done).is_ok());
    }
}

impl std::fmt::Debug for ParameterServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParameterServer")
            .field("version", &self.shard.version())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
