//! How nodes are let into the cluster, and stay in it: joining by a token, and renewal.
//!
//! ```text
//! joiner  ── connection in the joiners' protocol, no certificate; the authority is pinned ──► any member
//!         ── Join { the token's id, role, signing request, proof } ──►
//!         ◄── Certificate │ Refused(why) ──                     (the member may pass it to a voter)
//! member  ── the same protocol, with its certificate ──► an issuer
//!         ── Renew { signing request } ──►
//!         ◄── Certificate │ Refused(why) │ Elsewhere(where the authority's key is) ──
//! ```
//!
//! * `wire`: the words of this protocol, and their limits.
//! * `tokens`: what the ledger keeps of tokens, and what it says to a joiner.
//! * `entry`: from a node's options to what it can show.
//! * `joiner`: asking.
//! * `issuer`: answering.
//! * `renewal`: when a certificate is renewed, as a state machine without I/O.
//! * `keyring`: what a node shows and whom it believes, as it changes.
//! * `upkeep`: the tasks that keep it so: renewal, the authority's key, revocations.
//!
//! A token's secret never leaves the joiner: it proves that it has it. So a member that passes a
//! request on, or plays the cluster, can let nobody in but the joiner itself. The authority's key is
//! with the ledger's voters, and wherever it was copied by hand.
//!
//! Promises that the tests cite:
//! - **EN-1** A token lets in one key, once: whoever is first in the ledger. The same key may ask
//!   again, as a joiner does whose answer got lost.
//! - **EN-2** Who has no valid token learns that, and nothing else.
//! - **EN-3** A certificate names the node that its key names; a renewal gives the same node the same
//!   role.
//! - **EN-4** What strangers can take up is bounded: connections, bytes, time, and attempts a second.

pub(crate) mod entry;
pub(crate) mod issuer;
pub(crate) mod joiner;
pub(crate) mod keyring;
mod orders;
pub(crate) mod renewal;
pub(crate) mod tokens;
pub(crate) mod upkeep;
pub(crate) mod wire;

pub(crate) use issuer::Issuer;
pub use keyring::Certificate;
pub(crate) use keyring::Keyring;
pub use orders::{CreateToken, ListTokens, RevokeNode, RevokeToken, TokenInfo};
