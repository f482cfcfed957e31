//! What administrators tell a node: to make, list and revoke tokens, and to revoke nodes.

use std::{future::Future, time::Duration};

use footlight_runtime::{Context, DeferredHandler, Error, Message, NodeId, ReplyTo, Result};
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    tokens::{self, TokenRecord},
    upkeep::revoked_key,
};
use crate::{
    Node, NodeActor,
    ledger::{Expect, Versioned},
    trust::{Role, Token, TokenId},
};

/// Most tokens that the ledger keeps.
const MAX_TOKENS: usize = 4096;
/// Shortest piece of a token's id that may stand for it.
const MIN_PREFIX: usize = 8;

/// Make a token. Needs the role `admin`.
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateToken {
    /// What the node that joins by it may do.
    pub role: Role,
    /// How long it is valid.
    pub ttl: Duration,
}

impl Message for CreateToken {
    /// The token, which is nowhere else, or why there is none.
    type Reply = std::result::Result<String, String>;
    const NAME: &'static str = "cluster.create_token";
}

/// Tell which tokens there are. Needs the role `admin`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListTokens;

impl Message for ListTokens {
    /// By id.
    type Reply = std::result::Result<Vec<TokenInfo>, String>;
    const NAME: &'static str = "cluster.list_tokens";
}

/// Make a token invalid. Nodes that it has let in stay. Needs the role `admin`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RevokeToken {
    /// Its id, or the beginning of it: at least 8 characters.
    pub id: String,
}

impl Message for RevokeToken {
    /// The token that is revoked, or why none is.
    type Reply = std::result::Result<TokenInfo, String>;
    const NAME: &'static str = "cluster.revoke_token";
}

/// Throw a node out for good: its connections end, and its certificate counts no more. Needs the
/// role `admin`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RevokeNode {
    /// Which.
    pub node: NodeId,
}

impl Message for RevokeNode {
    /// What the administrator should know besides, if anything; or why it is not done.
    type Reply = std::result::Result<Option<String>, String>;
    const NAME: &'static str = "cluster.revoke_node";
}

/// What is known of a token: not its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Names it.
    pub id: TokenId,
    /// The role that it gives.
    pub role: Role,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// Whom it has let in.
    pub used_by: Option<NodeId>,
}

impl Node {
    fn now(&self) -> UnixTime {
        let micros = self.system().env().wall_clock.now_unix_micros();
        UnixTime::since_unix_epoch(Duration::from_micros(micros))
    }

    /// Makes a token that lets one node join this cluster, as `role`, within `ttl`.
    ///
    /// # Errors
    /// If the ledger does not answer or is full of tokens, or this node's certificate does not allow
    /// it.
    pub async fn create_token(&self, role: Role, ttl: Duration) -> Result<Token> {
        if role == Role::Node {
            return Err(Error::other("no token gives the role `node`"));
        }
        let now = self.now();
        let kept = self.sweep_tokens(now).await?;
        if kept >= MAX_TOKENS {
            return Err(Error::other(format!(
                "there are {kept} tokens: revoke some (`footlight token list`, `token revoke ID`)"
            )));
        }
        let token =
            Token::new(role, self.network().keyring.anchor().hash()).map_err(Error::other)?;
        let value = TokenRecord::new(&token, ttl, now).encode().map_err(Error::other)?;
        self.ledger().put(&tokens::key_of(&token.id()), value, Expect::Absent, None).await?;
        Ok(token)
    }

    /// Forgets tokens that ended long ago; how many there still are.
    async fn sweep_tokens(&self, now: UnixTime) -> Result<usize> {
        let mut kept = 0;
        for (key, there) in self.ledger().list(tokens::PREFIX).await? {
            match TokenRecord::decode(&there.value) {
                Ok(record) if record.is_forgotten(now) => {
                    // Somebody else may have done it.
                    let _ = self.ledger().delete(&key, Expect::Version(there.version)).await;
                }
                _ => kept += 1,
            }
        }
        Ok(kept)
    }

    /// The tokens of this cluster, those that were used or have ended in the last day included.
    ///
    /// # Errors
    /// If the ledger does not answer.
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>> {
        let now = self.now();
        let listed = self.ledger().list(tokens::PREFIX).await?;
        Ok(listed.iter().filter_map(|(key, there)| info(key, there, now)).collect())
    }

    /// Makes a token invalid; nodes that it has let in stay. `id` may be the beginning of the
    /// token's id.
    ///
    /// # Errors
    /// If there is not exactly one such token, or the ledger does not answer.
    pub async fn revoke_token(&self, id: &str) -> Result<TokenInfo> {
        if id.len() < MIN_PREFIX {
            let why = format!("give at least {MIN_PREFIX} characters of the token's id");
            return Err(Error::other(why));
        }
        let tokens = self.tokens().await?;
        let mut found = tokens.into_iter().filter(|token| token.id.as_str().starts_with(id));
        let (Some(token), None) = (found.next(), found.next()) else {
            let why = format!(
                "not exactly one token's id begins with `{id}`: `footlight token list` shows all"
            );
            return Err(Error::other(why));
        };
        self.ledger().delete(&tokens::key_of(&token.id), Expect::Any).await?;
        Ok(token)
    }

    /// Throws a node out for good: all nodes end their connections with it and take its certificate
    /// no more, and membership counts it as down. Gives back what should be known besides, if
    /// anything.
    ///
    /// A node that holds the authority's key (`ca.key`) can make itself another certificate: it can't
    /// be kept out by this.
    ///
    /// # Errors
    /// If it is this node, or the ledger does not answer.
    pub async fn revoke(&self, node: NodeId) -> Result<Option<String>> {
        let network = self.network();
        if node == self.id() {
            let why = "a node does not revoke itself: ask another one, or use `footlight leave`";
            return Err(Error::other(why));
        }
        let role = network
            .peer(node)
            .and_then(|peer| peer.session())
            .map(|session| session.identity().role);
        let value = self.now().as_secs().to_string().into_bytes();
        self.ledger().put(&revoked_key(node), value, Expect::Any, None).await?;
        Ok(match role {
            Some(Role::Node) => Some(format!(
                "node {node} holds the authority's key (ca.key) and can make itself another \
                 certificate: take the key from it, or begin a new cluster"
            )),
            Some(_) => None,
            None => Some(format!("node {node} is not connected with the node that was asked")),
        })
    }
}

fn info(key: &str, there: &Versioned, now: UnixTime) -> Option<TokenInfo> {
    let id = TokenId::parse(key.strip_prefix(tokens::PREFIX)?)?;
    let record = TokenRecord::decode(&there.value).ok()?;
    let TokenRecord { role, made, expires, used_by, .. } = record;
    (!record.is_forgotten(now)).then_some(TokenInfo { id, role, made, expires, used_by })
}

/// Carries out an order where nobody who asks something else waits for it.
fn carry_out<R, F>(
    reply: ReplyTo<std::result::Result<R, String>>,
    context: &Context<NodeActor>,
    order: impl FnOnce(Node) -> F,
) where
    R: Serialize + DeserializeOwned + Send + 'static,
    F: Future<Output = Result<R>> + Send + 'static,
{
    let Some(node) = Node::of(context.system()) else { return };
    let done = order(node);
    context.system().env().spawner.spawn(async move {
        reply.send(done.await.map_err(|error| error.to_string()));
    });
}

impl DeferredHandler<CreateToken> for NodeActor {
    async fn handle(
        &mut self,
        order: CreateToken,
        reply: ReplyTo<<CreateToken as Message>::Reply>,
        context: &Context<Self>,
    ) {
        carry_out(reply, context, |node| async move {
            Ok(node.create_token(order.role, order.ttl).await?.to_string())
        });
    }
}

impl DeferredHandler<ListTokens> for NodeActor {
    async fn handle(
        &mut self,
        _: ListTokens,
        reply: ReplyTo<<ListTokens as Message>::Reply>,
        context: &Context<Self>,
    ) {
        carry_out(reply, context, |node| async move { node.tokens().await });
    }
}

impl DeferredHandler<RevokeToken> for NodeActor {
    async fn handle(
        &mut self,
        order: RevokeToken,
        reply: ReplyTo<<RevokeToken as Message>::Reply>,
        context: &Context<Self>,
    ) {
        carry_out(reply, context, |node| async move { node.revoke_token(&order.id).await });
    }
}

impl DeferredHandler<RevokeNode> for NodeActor {
    async fn handle(
        &mut self,
        order: RevokeNode,
        reply: ReplyTo<<RevokeNode as Message>::Reply>,
        context: &Context<Self>,
    ) {
        carry_out(reply, context, |node| async move { node.revoke(order.node).await });
    }
}
