//! Two ledgers that meet become one: that founded first stays, and the other goes up in it.
//!
//! Two halves of a cluster that formed apart may have founded a ledger each. When they meet, the
//! leader of the younger one closes it (no change after that), then carries over what must not be
//! lost, and ends; its other voters learn from the older one that they are none any more.
//!
//! Carried over are tokens, revocations and the authority: what is there in the older one stays as
//! it is. Leases are not: who held one in the younger ledger learns that it is lost. The older one
//! grants greater generations from then on than the younger did, and who holds a lease there that
//! was held in both must take it anew: receivers may know the younger's generation (LE-10). Names
//! are registered again by the nodes that own them, if they are free.

use super::{
    LedgerId,
    client::Client,
    command::{Command, Expect, Outcome},
    message::PROTECTED,
    voter::Voter,
};

/// Leases that are told of by one entry.
const LEASES: usize = 512;

/// Closes the ledger that this voter leads, and carries over what must not be lost. May be done
/// again from the start.
pub(super) async fn carry_over(
    client: &Client,
    voter: &Voter,
    other: LedgerId,
) -> Result<(), String> {
    match voter.lead(Command::Close { into: other }).await {
        Ok(_) => {}
        Err(error) => return Err(error.to_string()),
    }
    let (keys, leases, generation) = voter.view.read(|state| {
        let keys: Vec<_> = PROTECTED
            .iter()
            .flat_map(|prefix| state.with_prefix(prefix))
            .map(|(key, now)| (key.clone(), now.clone()))
            .collect();
        let leases: Vec<String> = state.leases().keys().cloned().collect();
        (keys, leases, state.generation())
    });
    for (key, now) in keys {
        let (value, owner) = (now.value, now.owner);
        let command = Command::Put { key, value, expect: Expect::Absent, owner };
        match client.tell(other, command).await? {
            Outcome::Written(_) | Outcome::Conflict(_) => {}
            outcome => return Err(format!("a key could not be carried over: {outcome:?}")),
        }
    }
    let mut pieces: Vec<Vec<String>> = leases.chunks(LEASES).map(<[_]>::to_vec).collect();
    if pieces.is_empty() {
        pieces.push(Vec::new());
    }
    let last = pieces.len() - 1;
    for (number, leases) in pieces.into_iter().enumerate() {
        let from = voter.deed.ledger;
        let command = Command::Absorb { from, generation, leases, all: number == last };
        match client.tell(other, command).await? {
            Outcome::Done => {}
            outcome => return Err(format!("the leases could not be told of: {outcome:?}")),
        }
    }
    Ok(())
}
