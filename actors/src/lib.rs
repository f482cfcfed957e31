//! The cast of Footlight: parameter server, data loader, worker, trainer, inference, HTTP gateway.
//!
//! * [`parameters`]: shards that sum gradients by slot and apply the optimiser.
//! * [`data`]: data sets, their order, and who works on which part.
//! * [`consistency`]: how far apart the workers of a job may be.
//! * [`schedule`]: how the learning rate changes.
//! * [`owner`]: how the parts of a job outlive the actor that holds it together.
//! * [`report`]: what a user sees of a job.
//!
//! With the feature `torch`:
//!
//! * `model`: the `Model` trait and replicas of models on compute threads.
//! * `checkpoint`: a job's state in files.
//! * `training`: the job, its trainer and its workers.
//! * `serving`: inference and the HTTP gateway.
//!
//! [`cast`] registers them all with a node.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test is no node"))]

#[cfg(feature = "torch")]
pub mod checkpoint;
pub mod consistency;
pub mod data;
#[cfg(feature = "torch")]
pub mod model;
#[cfg(test)]
mod on_one_node;
pub mod owner;
pub mod parameters;
pub mod report;
pub mod schedule;
#[cfg(feature = "torch")]
pub mod serving;
mod storage;
#[cfg(feature = "torch")]
pub mod training;

use footlight_cluster::NodeBuilder;

use data::loader::{DataLoader, Describe, NextWork, StepsApplied, WorkerLost};
use owner::{Adopt, Dismiss};
use parameters::{
    gate::{Meet, TellSquares},
    replication::{Configure, Copy, Replicate},
    server::{
        AskVersion, AwaitVersion, Capture, FollowSteps, Initialise, ParameterServer, Pull,
        PushGradient,
    },
};

/// Registers the actors that need no model: what the plain `footlight` binary hosts.
pub fn stagehands(builder: NodeBuilder) -> NodeBuilder {
    builder
        .register::<ParameterServer>(|server| {
            server
                .handles::<Meet>()
                .handles::<Initialise>()
                .handles::<PushGradient>()
                .handles::<TellSquares>()
                .defers::<Pull>()
                .defers::<Capture>()
                .handles::<AskVersion>()
                .defers::<AwaitVersion>()
                .handles::<FollowSteps>()
                .defers::<Configure>()
                .handles::<Copy>()
                .handles::<Replicate>()
                .handles::<Adopt>()
                .handles::<Dismiss>()
        })
        .register::<DataLoader>(|loader| {
            loader
                .defers::<NextWork>()
                .handles::<WorkerLost>()
                .handles::<StepsApplied>()
                .handles::<Describe>()
        })
}

/// Gives a node a user's own data sources and transforms: for
/// [`NodeBuilder::with`](footlight_cluster::NodeBuilder::with), on the nodes that host data loaders and trainers.
pub fn sources(sources: data::Sources) -> impl FnOnce(NodeBuilder) -> NodeBuilder {
    move |builder| builder.extension(std::sync::Arc::new(sources))
}

/// Registers the whole cast, with the models that this binary knows: for
/// [`NodeBuilder::with`](footlight_cluster::NodeBuilder::with).
#[cfg(feature = "torch")]
pub fn cast(models: model::Models) -> impl FnOnce(NodeBuilder) -> NodeBuilder {
    use serving::inference::{Inference, Predict};
    use training::{
        residuals::{AreWanted, AskResidual, KeepResidual, ResidualKeeper, Residuals},
        trainer::{
            AskJob, AskOver, AskWeights, DismissParts, FollowJob, ResidualIsLost, Trainer,
            UnfitData,
        },
        worker::{AskDevice, UseLoader, UseShards, Worker},
    };
    move |builder| {
        stagehands(builder)
            .extension(std::sync::Arc::new(models))
            .extension(std::sync::Arc::new(Residuals::default()))
            .register::<Worker>(|worker| {
                worker.handles::<AskDevice>().handles::<UseLoader>().handles::<UseShards>()
            })
            .register::<Trainer>(|trainer| {
                trainer
                    .handles::<FollowJob>()
                    .handles::<AskJob>()
                    .handles::<AskOver>()
                    .handles::<AskWeights>()
                    .handles::<DismissParts>()
                    .handles::<UnfitData>()
                    .handles::<ResidualIsLost>()
            })
            .register::<ResidualKeeper>(|keeper| {
                keeper.handles::<AskResidual>().handles::<KeepResidual>().handles::<AreWanted>()
            })
            .register::<Inference>(|inference| inference.handles::<Predict>())
    }
}
