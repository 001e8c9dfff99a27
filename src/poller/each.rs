//! One task for each vCenter, begun and ended as the inventory and the configuration say.

use super::poll::PollSetup;
use crate::inventory::{Inventory, Vcenter};
use crate::target::TargetId;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

/// What has a say in whose tasks there are.
pub(super) struct Signals {
    pub inventory: watch::Receiver<Arc<Inventory>>,
    pub setup: watch::Receiver<Arc<PollSetup>>,
    /// Passed on to every task.
    pub now: Arc<Notify>,
    pub cancel: CancellationToken,
}

/// A task that was begun.
struct Running {
    vcenter: Arc<Vcenter>,
    stop: CancellationToken,
    now: Arc<Notify>,
}

/// Keeps a task for each vCenter of `wanted` until cancelled, and returns when all of them have ended. `begin` makes
/// one, which ends soon after its token is cancelled; its `Notify` says that it is due.
pub(super) async fn keep_one_each<Task: Future<Output = ()> + Send + 'static>(
    signals: Signals,
    wanted: impl Fn(&Inventory) -> Vec<Arc<Vcenter>>,
    begin: impl Fn(Arc<Vcenter>, Arc<Notify>, CancellationToken) -> Task,
) {
    let Signals { mut inventory, mut setup, now, cancel } = signals;
    let mut tasks = JoinSet::new();
    let mut running: HashMap<TargetId, Running> = HashMap::new();
    // A vCenter whose labels have changed is asked anew when its old session has ended, not before.
    let mut turns: HashMap<TargetId, Arc<AsyncMutex<()>>> = HashMap::new();
    loop {
        setup.mark_unchanged();
        let present = Arc::clone(&inventory.borrow_and_update());
        let wanted: HashMap<TargetId, Arc<Vcenter>> =
            wanted(&present).into_iter().map(|vcenter| (vcenter.id(), vcenter)).collect();
        running.retain(|id, Running { vcenter, stop, .. }| {
            let stays = wanted.get(id).is_some_and(|wanted| wanted == vcenter);
            if !stays {
                stop.cancel();
            }
            stays
        });
        turns.retain(|id, turn| running.contains_key(id) || Arc::strong_count(turn) > 1);
        for (id, vcenter) in wanted {
            running.entry(id.clone()).or_insert_with(|| {
                let (stop, now) = (cancel.child_token(), Arc::new(Notify::new()));
                let turn = Arc::clone(turns.entry(id).or_default());
                let task = begin(Arc::clone(&vcenter), Arc::clone(&now), stop.clone());
                let in_turn = async move {
                    let _turn = turn.lock().await;
                    task.await;
                };
                tasks.spawn(in_turn.with_current_subscriber());
                Running { vcenter, stop, now }
            });
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            changed = inventory.changed() => if changed.is_err() { cancel.cancelled().await },
            Ok(()) = setup.changed() => {}
            () = now.notified() => running.values().for_each(|task| task.now.notify_one()),
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}
