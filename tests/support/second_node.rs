//! A node that is asked to keep residuals, and takes each when the test says so.

use footlight::{
    actors::training::residuals::{AreWanted, AskResidual, KeepResidual, ResidualKeeper},
    prelude::*,
};
use std::sync::Arc;
use tokio::sync::mpsc;

use super::training::{LONG, Stage, until};

/// A residual that the node is to keep. To drop `reply` is to refuse it.
pub(crate) struct Asked {
    pub(crate) keep: KeepResidual,
    pub(crate) reply: ReplyTo<bool>,
}

/// Beside the actor.
struct Hand(mpsc::UnboundedSender<Asked>);

/// To all others it is a [`ResidualKeeper`].
struct SecondNode(Arc<Hand>);

impl Actor for SecondNode {
    type Args = ();
    const NAME: &'static str = ResidualKeeper::NAME;

    async fn start((): (), context: &Context<Self>) -> Result<Self> {
        let hand = context.system().extension::<Hand>();
        hand.map(SecondNode).ok_or_else(|| Error::other("there is no hand"))
    }
}

impl DeferredHandler<KeepResidual> for SecondNode {
    async fn handle(&mut self, keep: KeepResidual, reply: ReplyTo<bool>, _: &Context<Self>) {
        // Refused where the test has ended.
        let _ = self.0.0.send(Asked { keep, reply });
    }
}

impl Handler<AskResidual> for SecondNode {
    async fn handle(&mut self, _: AskResidual, _: &Context<Self>) -> Option<WireTensor> {
        None
    }
}

impl Handler<AreWanted> for SecondNode {
    async fn handle(&mut self, _: AreWanted, _: &Context<Self>) {}
}

/// Has such a node join, which has no part of its own; when this returns it is found.
pub(crate) async fn second_node(stage: &Stage) -> (Node, mpsc::UnboundedReceiver<Asked>) {
    let (tell, asked) = mpsc::unbounded_channel();
    let builder = Node::builder(stage.joiner_args()).extension(Arc::new(Hand(tell)));
    let builder = builder.register::<SecondNode>(|second| {
        second.defers::<KeepResidual>().handles::<AskResidual>().handles::<AreWanted>()
    });
    let node = builder.join_timeout(LONG).start().await.unwrap();
    node.spawn::<SecondNode>(()).on(Placement::any_of([node.id()])).await.unwrap();
    until("the node is found", async || {
        let found = stage.seed.find::<ResidualKeeper>().await;
        found.iter().any(|keeper| keeper.addr().node == node.id())
    })
    .await;
    (node, asked)
}

/// Takes whatever comes, without end.
pub(crate) async fn take_all(asked: &mut mpsc::UnboundedReceiver<Asked>) {
    while let Some(Asked { reply, .. }) = asked.recv().await {
        reply.send(true);
    }
    std::future::pending().await
}
