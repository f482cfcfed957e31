//! Asking a running node: what `status`, `actors` and the like have in common.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use footlight::{
    cluster::{NodeActor, Observed, trust::TokenSource},
    prelude::{Message, Node, NodeArgs},
    runtime::{NodeId, actor::Receives},
};

/// Whom to ask.
#[derive(Clone, clap::Args)]
pub(crate) struct Target {
    /// Address of any node of the cluster
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) node: String,
    /// Directory with the cluster's keys [default: FOOTLIGHT_STATE, or the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Join token, or @FILE with one in it, if the directory has no keys of this cluster yet: it lets
    /// this command in, and the next ones with the same directory [env: FOOTLIGHT_TOKEN]
    #[arg(long, value_name = "TOKEN", env = "FOOTLIGHT_TOKEN", hide_env = true)]
    pub(crate) token: Option<TokenSource>,
    /// How long to wait for the node's answer
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value_t = 5.0)]
    pub(crate) timeout: f64,
}

/// A time in seconds that is worth waiting.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("give seconds, more than 0 and at most 86400".to_owned()),
    }
}

impl Target {
    /// The same for the node at another address.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        Target { node: address.to_string(), ..self.clone() }
    }

    /// Connects with the node, without becoming a member.
    pub(crate) async fn connect(&self) -> anyhow::Result<Line> {
        let options = NodeArgs {
            state: self.state.clone(),
            token: self.token.clone(),
            ..NodeArgs::default()
        };
        let patience = Duration::from_secs_f64(self.timeout);
        let builder = Node::builder(options).join_timeout(patience);
        let (asker, observed) = builder.observe(&self.node).await?;
        Ok(Line { asker, observed, patience })
    }

    /// Asks the node one question.
    pub(crate) async fn ask<M: Message, How: 'static>(
        &self,
        question: M,
    ) -> anyhow::Result<M::Reply>
    where
        NodeActor: Receives<M, How>,
    {
        let line = self.connect().await?;
        let answer = line.ask(question).await;
        line.close().await?;
        answer
    }

    /// Gives the node an order, which it may refuse to carry out.
    pub(crate) async fn order<M, T, How: 'static>(&self, order: M) -> anyhow::Result<T>
    where
        M: Message<Reply = Result<T, String>>,
        NodeActor: Receives<M, How>,
    {
        self.ask(order).await?.map_err(anyhow::Error::msg)
    }
}

/// A connection with a node.
pub(crate) struct Line {
    asker: Node,
    observed: Observed,
    patience: Duration,
}

impl Line {
    /// Asks the node.
    pub(crate) async fn ask<M: Message, How: 'static>(
        &self,
        question: M,
    ) -> anyhow::Result<M::Reply>
    where
        NodeActor: Receives<M, How>,
    {
        let there = self.observed.actor(&self.asker);
        Ok(there.call_within(question, self.patience).await?)
    }

    /// Which node is at the other end.
    pub(crate) fn node(&self) -> NodeId {
        self.observed.node()
    }

    /// Waits until the node says that it has ended; else why the connection broke.
    pub(crate) async fn gone(&self) -> Result<(), String> {
        self.observed.gone().await
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        Ok(self.asker.leave().await?)
    }
}
