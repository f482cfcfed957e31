//! What the other ends of connections may do, and what this one shows them.

use std::sync::{Arc, atomic::Ordering};

use footlight_runtime::{Down, NodeId};

use super::Network;
use crate::{
    Node,
    transport::{endpoint::EndpointError, frame::Header, handshake::Purpose, session::Session},
    trust::{
        Credentials, PeerIdentity, Right,
        rights::needed_by,
        tls::{self, Shown},
    },
};

/// A connection outlives its peer's certificate by so much, in seconds: clocks differ.
const GRACE: i64 = 5;

impl Network {
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Whether a node's certificate gives a right, as far as is known here: by its present connection.
    pub(crate) fn has_right(&self, node: NodeId, right: Right) -> bool {
        if node == self.node() {
            return self.keyring.role().may(right);
        }
        let session = self.peer(node).and_then(|peer| peer.connection());
        session.is_some_and(|session| session.identity().role.may(right))
    }

    /// Whether a frame may be heeded; one that may not is answered or ends the session.
    pub(super) fn is_allowed(&self, session: &Arc<Session>, header: &Header) -> bool {
        let Some(right) = needed_by(header) else { return true };
        let Err(denied) = session.standing().check(right) else { return true };
        let node = session.identity().node;
        match header {
            // A program that only asks may have tried it in good faith.
            Header::Watch { id, .. } => {
                session.control(Header::Down { id: *id, down: Down::Refused(denied.to_string()) });
            }
            Header::Unwatch { .. } => {}
            Header::End { actor, .. } => {
                tracing::warn!(%node, %actor, %denied, "an actor was not ended");
            }
            _ => session.close_soon(format!("node {node}: {denied}")),
        }
        false
    }

    /// Shows other credentials from the next handshake on, and to those that are connected.
    ///
    /// # Errors
    /// If TLS can't use them; then nothing changes.
    pub(crate) fn show(&self, credentials: Arc<Credentials>) -> Result<(), EndpointError> {
        self.endpoint.set_credentials(&credentials)?;
        self.messages.set_credentials(&credentials)?;
        self.bulk.set_credentials(&credentials)?;
        self.keyring.show(credentials);
        self.sessions().iter().for_each(|session| self.show_newer(session));
        Ok(())
    }

    /// A session may have begun with a certificate that was renewed meanwhile.
    pub(super) fn show_newer(&self, session: &Session) {
        if self.keyring.was_renewed() {
            session.show(&self.keyring.shown(), self.keyring.tls());
        }
    }

    pub(super) fn heed_certificate(&self, session: &Arc<Session>, shown: &Shown) {
        let (anchor, tls) = (self.keyring.anchor(), self.keyring.tls());
        if let Err(why) = session.is_shown(shown, &anchor, tls) {
            let node = session.identity().node;
            session
                .close_soon(format!("node {node} showed a certificate that does not count: {why}"));
        }
    }

    /// Ends the sessions whose peers' certificates have ended and who have shown no newer one.
    pub(crate) fn close_expired(&self) {
        let Ok(now) = self.keyring.now() else { return };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        for session in self.sessions() {
            let identity = session.identity();
            if identity.expires.saturating_add(GRACE) < now {
                tracing::warn!(node = %identity.node, "its certificate has ended: it is not heard any more");
                session.close(format!("the certificate of node {} has ended", identity.node));
            }
        }
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        let observers = self.observers.iter().map(|session| session.clone());
        let peers = self.peers().into_iter().filter_map(|peer| peer.connection());
        observers.chain(peers).collect()
    }

    /// Ends all connections of a node that was revoked, whether as a member or to ask.
    pub(crate) fn close_revoked(&self, node: NodeId) {
        let of_it = self.sessions().into_iter();
        for session in of_it.filter(|session| session.identity().node == node) {
            session.throw_out();
        }
    }

    /// A peer says that this node was revoked. Whoever may hold the authority's key is believed: it
    /// could shut this node out anyway. The word of others ends nothing.
    pub(super) fn heed_revocation(&self, by: PeerIdentity) {
        match Node::of(&self.system) {
            Some(node) if by.role.may(Right::Vote) && self.purpose == Purpose::Member => {
                node.fail(format!("{}, says node {}", tls::Refusal::ThrownOut, by.node));
            }
            _ => tracing::warn!(by = %by.node, "a node says that this one was revoked"),
        }
    }
}
