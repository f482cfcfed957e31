//! The singletons that this node may run, as the ledger says.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use footlight_runtime::System;
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    spec::{At, KEYS, Spec},
    tenure::Tenure,
};
use crate::ledger::Ledger;

/// Both kinds of keys begin so.
const PREFIX: &str = "singleton";
/// A node that leaves hands its singletons over within this time.
const HAND_OVER: Duration = Duration::from_secs(7);

/// Runs this node's part of the cluster's singletons, on the control thread.
pub(crate) struct Manager {
    leave: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Manager {
    pub(crate) fn start(system: System, ledger: Ledger, control: &Handle) -> Self {
        let leave = CancellationToken::new();
        let task = control.spawn(follow(system, ledger, leave.clone(), control.clone()));
        Manager { leave, task: Mutex::new(Some(task)) }
    }

    /// Stops the singletons that run here and gives their leases up: other nodes start them at once.
    pub(crate) async fn leave(&self) {
        self.leave.cancel();
        let task = self.task.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        if let Some(task) = task {
            let _ = tokio::time::timeout(HAND_OVER, task).await;
        }
    }
}

/// One name: what is done for it on this node.
struct Place {
    at: watch::Sender<Option<At>>,
    running: Option<(u64, CancellationToken)>,
    /// The latest tenure, to be waited for before the next one begins.
    task: Option<JoinHandle<()>>,
}

async fn follow(system: System, ledger: Ledger, leave: CancellationToken, control: Handle) {
    let mut places: HashMap<String, Place> = HashMap::new();
    let mut changes = ledger.watch(PREFIX);
    loop {
        let event = tokio::select! {
            biased;
            () = leave.cancelled() => break,
            event = changes.next() => event,
        };
        let Some((key, value)) = event else { break };
        let (is_spec, name) = match key.strip_prefix(KEYS) {
            Some(name) => (true, name),
            None => match key.split_once('/') {
                Some((_, name)) => (false, name),
                None => continue,
            },
        };
        let place = places.entry(name.to_owned()).or_insert_with(|| Place {
            at: watch::Sender::new(None),
            running: None,
            task: None,
        });
        if !is_spec {
            let at = value.and_then(|value| At::decode(&value.value).ok());
            place.at.send_replace(at);
        } else if let Some(value) = value {
            match Spec::decode(&value.value) {
                Ok(spec) if place.running.as_ref().is_some_and(|(s, _)| *s == spec.submission) => {}
                Ok(spec) => {
                    let over = leave.child_token();
                    if let Some((_, before)) =
                        place.running.replace((spec.submission, over.clone()))
                    {
                        before.cancel();
                    }
                    let tenure = Tenure {
                        system: system.clone(),
                        ledger: ledger.clone(),
                        name: name.to_owned(),
                        spec,
                        version: value.version,
                        at: place.at.subscribe(),
                        over,
                    };
                    let before = place.task.take();
                    place.task = Some(control.spawn(async move {
                        if let Some(before) = before {
                            let _ = before.await;
                        }
                        tenure.run().await;
                    }));
                }
                Err(error) => tracing::error!(name, %error, "a singleton can't be read"),
            }
        } else if let Some((_, over)) = place.running.take() {
            over.cancel();
        }
        places.retain(|_, place| {
            place.running.is_some()
                || place.at.borrow().is_some()
                || place.task.as_ref().is_some_and(|task| !task.is_finished())
        });
    }
    leave.cancel();
    for place in places.into_values() {
        if let Some(task) = place.task {
            let _ = task.await;
        }
    }
}
