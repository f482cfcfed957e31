//! What must hold when all is whole again.

use std::{collections::BTreeMap, time::Duration};

use footlight::{cluster::singleton::SingletonState, prelude::*};

use crate::support::{self, Tally, Who};

/// After a fault has ended, all must be whole again within this time.
pub(crate) const RECOVERY: Duration = Duration::from_secs(10);
/// A question about how it is may take so long.
const ASK: Duration = Duration::from_secs(2);

/// What there is to be.
pub(crate) struct Whole {
    /// Members, this node included.
    pub(crate) members: usize,
    /// Names of the supervised actors.
    pub(crate) children: Vec<String>,
    pub(crate) singletons: Vec<String>,
}

impl Whole {
    /// Whether all is whole now.
    pub(crate) async fn look(&self, node: &Node) -> Result<(), String> {
        let view = support::view_of_all(node, self.members).await;
        view.map_err(|seen| format!("no one view of the members: {seen}"))?;
        self.children(node).await?;
        self.singletons(node).await
    }

    /// Every supervised actor is alive exactly once, whoever may think otherwise.
    async fn children(&self, node: &Node) -> Result<(), String> {
        // Counted at each node first: `find` leaves out those that do not answer.
        let mut count = 0;
        for member in node.members().iter().filter(|member| member.is_up()) {
            let status = node.status_of(member.id).await.map_err(|error| error.to_string())?;
            let tallies = status.actors.iter().find(|(name, _)| name == Tally::NAME);
            count += tallies.map_or(0, |(_, count)| *count);
        }
        let found = node.find::<Tally>().await;
        let names = found.iter().map(async |tally| (tally, tally.call_within(Who, ASK).await));
        let mut places = BTreeMap::<String, Vec<String>>::new();
        for (tally, name) in futures::future::join_all(names).await {
            let name = name.map_err(|error| error.to_string())?;
            places.entry(name).or_default().push(tally.addr().to_string());
        }
        let twice: Vec<_> = places.iter().filter(|(_, places)| places.len() > 1).collect();
        let nowhere: Vec<_> =
            self.children.iter().filter(|name| !places.contains_key(*name)).collect();
        if !twice.is_empty() || !nowhere.is_empty() {
            return Err(format!(
                "supervised actors that run more than once: {twice:?}; nowhere: {nowhere:?}"
            ));
        }
        if count != self.children.len() as u64 {
            let wanted = self.children.len();
            return Err(format!("{count} supervised actors are counted, not {wanted}"));
        }
        Ok(())
    }

    /// Every singleton runs.
    async fn singletons(&self, node: &Node) -> Result<(), String> {
        for name in &self.singletons {
            let state = tokio::time::timeout(ASK, node.find_singleton(name)).await;
            match state {
                Ok(Ok(SingletonState::Running { actor, .. })) => {
                    let up = |member: &Member| {
                        member.is_up()
                            && member.id == actor.node
                            && member.incarnation == actor.incarnation
                    };
                    if !node.members().iter().any(up) {
                        return Err(format!("singleton {name} is said to run at {actor}"));
                    }
                }
                Ok(Ok(other)) => return Err(format!("singleton {name}: {other:?}")),
                Ok(Err(error)) => return Err(format!("singleton {name}: {error}")),
                Err(_) => return Err(format!("singleton {name}: the ledger does not answer")),
            }
        }
        Ok(())
    }
}
