//! One task for each vCenter, begun and ended as the inventory and the configuration say.

use crate::inventory::{Inventory, Vcenter};
use crate::target::TargetId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

/// Pause before a task is begun again that has ended by itself; doubles up to [`LONGEST_AGAIN`], since each may leave a
/// session behind.
const AGAIN: Duration = Duration::from_secs(60);
const LONGEST_AGAIN: Duration = Duration::from_secs(3600);

/// What has a say in whose tasks there are.
pub(super) struct Signals<Setup> {
    pub inventory: watch::Receiver<Arc<Inventory>>,
    pub setup: watch::Receiver<Setup>,
    /// Passed on to every task.
    pub now: Arc<Notify>,
    pub cancel: CancellationToken,
}

/// A task that was begun.
struct Running {
    vcenter: Arc<Vcenter>,
    task: Id,
    stop: CancellationToken,
    now: Arc<Notify>,
}

/// Keeps a task for each vCenter of `wanted` until cancelled, and returns when all of them have ended. `begin` makes
/// one, which ends soon after its token is cancelled; its `Notify` says that it is due. One that ends before, as by a
/// defect of ours, is told and begun again after a while: no other one suffers from it.
pub(super) async fn keep_one_each<Setup, Task: Future<Output = ()> + Send + 'static>(
    signals: Signals<Setup>,
    wanted: impl Fn(&Inventory) -> Vec<Arc<Vcenter>>,
    begin: impl Fn(Arc<Vcenter>, Arc<Notify>, CancellationToken) -> Task,
) {
    let Signals { mut inventory, mut setup, now, cancel } = signals;
    let mut tasks = JoinSet::new();
    let mut running: HashMap<TargetId, Running> = HashMap::new();
    // A vCenter whose labels have changed is asked anew when its old session has ended, not before.
    let mut turns: HashMap<TargetId, Arc<AsyncMutex<()>>> = HashMap::new();
    let mut pauses: HashMap<TargetId, Duration> = HashMap::new();
    loop {
        setup.mark_unchanged();
        let present = Arc::clone(&inventory.borrow_and_update());
        let wanted: HashMap<TargetId, Arc<Vcenter>> =
            wanted(&present).into_iter().map(|vcenter| (vcenter.id(), vcenter)).collect();
        pauses.retain(|id, _| wanted.contains_key(id));
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
                let turn = Arc::clone(turns.entry(id.clone()).or_default());
                let pause = pauses.get(&id).copied().unwrap_or_default();
                let task = begin(Arc::clone(&vcenter), Arc::clone(&now), stop.clone());
                let stopped = stop.clone();
                let in_turn = async move {
                    let _turn = turn.lock().await;
                    if stopped.run_until_cancelled(sleep(pause)).await.is_some() {
                        task.await;
                    }
                };
                let task = tasks.spawn(in_turn.with_current_subscriber()).id();
                Running { vcenter, task, stop, now }
            });
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            changed = inventory.changed() => if changed.is_err() { cancel.cancelled().await },
            Ok(()) = setup.changed() => {}
            () = now.notified() => running.values().for_each(|task| task.now.notify_one()),
            Some(ended) = tasks.join_next_with_id() => {
                if let Some((id, why)) = unasked(&mut running, ended) {
                    let pause = pauses.get(&id).map_or(AGAIN, |last| (*last * 2).min(LONGEST_AGAIN));
                    tracing::error!("{id} is asked again in {} s, please report this: {why}", pause.as_secs());
                    pauses.insert(id, pause);
                }
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Whose task that was, if nobody had told it to end, and why it has.
fn unasked(
    running: &mut HashMap<TargetId, Running>,
    ended: Result<(Id, ()), JoinError>,
) -> Option<(TargetId, String)> {
    let (task, why) = match ended {
        Ok((task, ())) => (task, "it has ended".to_owned()),
        Err(error) => (error.id(), error.to_string()),
    };
    let (id, _) = running.iter().find(|(_, of)| of.task == task && !of.stop.is_cancelled())?;
    let id = id.clone();
    running.remove(&id);
    Some((id, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Endpoint;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_begun_again_and_disturbs_no_other_one() {
        let vcenter = |name: &str| {
            let endpoint = Endpoint { host: name.into(), port: None };
            Vcenter { address: name.into(), endpoint, site: "eu-1".into(), labels: Default::default() }
        };
        let present = Inventory::new(vec![], vec![vcenter("ill"), vcenter("well")]);
        let (_inventory, inventory) = watch::channel(Arc::new(present));
        let (_setup, setup) = watch::channel(());
        let cancel = CancellationToken::new();
        let signals = Signals { inventory, setup, now: Arc::default(), cancel: cancel.clone() };
        let (ill, well) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (of_ill, of_well) = (Arc::clone(&ill), Arc::clone(&well));
        let begin = move |vcenter: Arc<Vcenter>, _, stop: CancellationToken| {
            let begun = if &*vcenter.address == "ill" { &of_ill } else { &of_well };
            let begun = Arc::clone(begun);
            async move {
                if begun.fetch_add(1, Ordering::Relaxed) < 2 && &*vcenter.address == "ill" {
                    panic!("a defect");
                }
                stop.cancelled().await;
            }
        };
        let keeping = tokio::spawn(keep_one_each(signals, |present| present.vcenters.clone(), begin));
        sleep(AGAIN / 2).await;
        assert_eq!(ill.load(Ordering::Relaxed), 1, "not in a tight loop");
        sleep(AGAIN * 2).await;
        assert_eq!(ill.load(Ordering::Relaxed), 2, "and more seldom each time");
        sleep(AGAIN * 10).await;
        assert_eq!((ill.load(Ordering::Relaxed), well.load(Ordering::Relaxed)), (3, 1));
        cancel.cancel();
        keeping.await.expect("it ends");
    }
}
