//! Where the inventory comes from: the targets of the configuration and the watched atlas file, added up.

use super::{Host, Inventory, InventoryConfig, StaticTarget, Vcenter, atlas};
use crate::file_stamp::FileStamp;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::stats::Stats;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

/// Pause between two looks at the file. Polled, not notified: that works with swapped symbolic links,
/// network file systems and files that are replaced, alike.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The largest file that is read: about 60,000 rows.
const FILE_LIMIT: u64 = 50_000_000;
/// A file system that does not answer for this long counts as an error.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Before the list of rows that can't be used.
const SKIPPED: &str = "inventory: rows of the atlas that can't be used: ";

/// Number of targets.
pub static TARGETS: MetricDef = MetricDef {
    name: "esxi.agent.targets",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "Number of targets that this agent asks, its shard of the inventory, by kind (host, vcenter).",
    attributes: &["kind"],
};
/// When the atlas file was last found to be good.
pub static LAST_SUCCESS: MetricDef = MetricDef {
    name: "esxi.agent.inventory.last_success.timestamp",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "Unix time at which the inventory file was last found to be good.",
    attributes: &[],
};
/// Whether the atlas file is bad at present.
pub static ERROR: MetricDef = MetricDef {
    name: "esxi.agent.inventory.error",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "1 while the inventory file can't be used, so that the last good inventory stands.",
    attributes: &[],
};
/// What this room counts.
pub static METRICS: &[&MetricDef] = &[&TARGETS, &LAST_SUCCESS, &ERROR];

/// Why there is no inventory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("inventory: {0}")]
pub struct InventoryError(String);

/// The inventory, kept up to date by a task of its own.
#[derive(Debug)]
pub struct InventoryWatch {
    skipped: Option<String>,
    inventory: watch::Receiver<Arc<Inventory>>,
    poll_now: mpsc::Sender<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl InventoryWatch {
    /// Reads the inventory for the first time and begins to watch it, until `cancel`.
    ///
    /// # Errors
    /// The atlas file can't be read, is larger than 50 MB, is no JSON array, or holds none of our
    /// targets.
    pub async fn start(
        config: &InventoryConfig,
        stats: Arc<Stats>,
        cancel: CancellationToken,
    ) -> Result<Self, InventoryError> {
        let mut watcher = Watcher::new(config.clone(), stats)?;
        let atlas = match &config.atlas {
            Some(_) => watcher.look().await.map_err(InventoryError)?.unwrap_or_default(),
            None => atlas::Atlas::default(),
        };
        let first = watcher.accept(atlas);
        let skipped = watcher.skipped.clone();
        let (sender, inventory) = watch::channel(Arc::new(first));
        let (poll_now, requests) = mpsc::channel(1);
        let task = config.atlas.is_some().then(|| {
            let watching = watcher.watch(sender, requests, cancel);
            tokio::spawn(watching.with_current_subscriber())
        });
        Ok(Self { skipped, inventory, poll_now, task })
    }

    /// Which rows of the atlas could not be used when it was read first: by reason, how many and an
    /// example. The log has it as well.
    pub fn skipped(&self) -> Option<&str> {
        self.skipped.as_deref()
    }

    /// The inventory of now and all later ones. A new one is sent only when its meaning has changed.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Inventory>> {
        self.inventory.clone()
    }

    /// Looks at the atlas file now, and returns when that is done.
    pub async fn poll_now(&self) {
        let (done, is_done) = oneshot::channel();
        if self.poll_now.send(done).await.is_ok() {
            // An error means that the watcher has ended: nothing to wait for any more.
            let _ = is_done.await;
        }
    }

    /// Returns when the task has ended after its cancellation.
    pub async fn stopped(self) {
        if let Some(task) = self.task
            && let Err(e) = task.await
        {
            tracing::error!("inventory: the watcher ended badly: {e}");
        }
    }
}

struct Watcher {
    config: InventoryConfig,
    hosts: Vec<Host>,
    vcenters: Vec<Vcenter>,
    stats: Arc<Stats>,
    /// Of the content that was read last.
    stamp: Option<FileStamp>,
    /// A read that has not come back within its time-out. No second one is started beside it.
    reading: Option<JoinHandle<Look>>,
    skipped: Option<String>,
}

/// What one look at the file brought; `None`: it has not changed.
type Look = Result<Option<(FileStamp, Result<atlas::Atlas, atlas::Unreadable>)>, String>;

impl Watcher {
    fn new(config: InventoryConfig, stats: Arc<Stats>) -> Result<Self, InventoryError> {
        let endpoint = |target: &StaticTarget| {
            target.address.parse().map_err(|e| InventoryError(format!("inventory of the configuration: {e}")))
        };
        let hosts = config.hosts.iter().map(|target| {
            Ok(Host {
                address: target.address.as_str().into(),
                endpoint: endpoint(target)?,
                site: target.site.as_str().into(),
                labels: target.labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect(),
            })
        });
        let hosts = hosts.collect::<Result<_, _>>()?;
        let vcenters = config.vcenters.iter().map(|target| {
            let (address, site) = (target.address.as_str().into(), target.site.as_str().into());
            Ok(Vcenter { address, endpoint: endpoint(target)?, site, labels: BTreeMap::new() })
        });
        let vcenters = vcenters.collect::<Result<_, _>>()?;
        Ok(Self { config, hosts, vcenters, stats, stamp: None, reading: None, skipped: None })
    }

    async fn watch(
        mut self,
        inventory: watch::Sender<Arc<Inventory>>,
        mut requests: mpsc::Receiver<oneshot::Sender<()>>,
        cancel: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval_at(Instant::now() + POLL_INTERVAL, POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trouble = Trouble::default();
        loop {
            let request = tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => None,
                Some(request) = requests.recv() => Some(request),
            };
            let looked = tokio::select! {
                () = cancel.cancelled() => return,
                looked = self.look() => looked,
            };
            match looked {
                Ok(found) => {
                    trouble.is_over(&self.stats);
                    if let Some(atlas) = found {
                        let new = self.accept(atlas);
                        inventory.send_if_modified(|old| replace_if_different(old, new));
                    } else {
                        self.tell_success();
                    }
                }
                Err(why) => trouble.is(why, &self.stats),
            }
            if let Some(done) = request {
                // Whoever asked may have gone away.
                let _ = done.send(());
            }
        }
    }

    /// Reads the file if it has changed since it was last good or bad. A content that was bad is read
    /// anew at each look.
    async fn look(&mut self) -> Result<Option<atlas::Atlas>, String> {
        let Some(path) = &self.config.atlas else { return Ok(None) };
        let reading = self.reading.take().unwrap_or_else(|| {
            let (path, known) = (path.clone(), self.stamp.clone());
            let (template, only) = (self.config.host_address.clone(), self.config.only.clone());
            tokio::task::spawn_blocking(move || {
                let read = read_if_changed(&path, known.as_ref())?;
                Ok(read.map(|(stamp, content)| (stamp, atlas::parse(&content, &template, &only))))
            })
        });
        let mut reading = reading;
        let read = match tokio::time::timeout(READ_TIMEOUT, &mut reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(e)) => Err(format!("reading was cut short: {e}")),
            Err(_) => {
                self.reading = Some(reading);
                Err(format!("the file system did not answer within {READ_TIMEOUT:?}"))
            }
        };
        let named = |why: String| format!("{}: {why}", path.display());
        let Some((stamp, parsed)) = read.map_err(named)? else { return Ok(None) };
        let atlas = parsed.map_err(|place| format!("{}{place}", path.display()))?;
        if atlas.hosts.is_empty() && atlas.vcenters.is_empty() {
            let skipped = if atlas.skipped.is_empty() { "" } else { "; skipped: " };
            return Err(named(format!(
                "holds no target (no row with the job vmware-esxi or vcenter that is wanted){skipped}{}",
                atlas.skipped
            )));
        }
        self.stamp = Some(stamp);
        Ok(Some(atlas))
    }

    /// Makes the inventory of what the atlas says and the configuration adds, and counts it.
    fn accept(&mut self, atlas: atlas::Atlas) -> Inventory {
        let skipped = (!atlas.skipped.is_empty()).then(|| format!("{SKIPPED}{}", atlas.skipped));
        if let Some(skipped) = skipped.as_ref().filter(|_| skipped != self.skipped) {
            tracing::warn!("{skipped}");
        }
        self.skipped = skipped;
        let hosts = self.hosts.iter().cloned().chain(atlas.hosts).collect();
        let vcenters = self.vcenters.iter().cloned().chain(atlas.vcenters).collect();
        let inventory = Inventory::of_shard(hosts, vcenters, self.config.shard);
        for (kind, count) in [("host", inventory.hosts.len()), ("vcenter", inventory.vcenters.len())] {
            self.stats.set(&TARGETS, Attributes::new([("kind", kind)]), count as f64);
        }
        if self.config.atlas.is_some() {
            self.stats.set(&ERROR, none(), 0.0);
            self.tell_success();
        }
        inventory
    }

    fn tell_success(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.stats.set(&LAST_SUCCESS, none(), now.as_secs_f64());
    }
}

/// What is wrong with the file. Said when it is seen for the second time: a file that is not written
/// atomically may be met half-way.
#[derive(Debug, Default)]
struct Trouble {
    suspected: bool,
    told: Option<String>,
}

impl Trouble {
    fn is(&mut self, why: String, stats: &Stats) {
        if self.suspected && self.told.is_none() {
            tracing::warn!("inventory: {why}; the last good inventory stands");
            stats.set(&ERROR, none(), 1.0);
            self.told = Some(why);
        }
        self.suspected = true;
    }

    fn is_over(&mut self, stats: &Stats) {
        self.suspected = false;
        if self.told.take().is_some() {
            tracing::info!("inventory: the file is good again");
            stats.set(&ERROR, none(), 0.0);
        }
    }
}

fn read_if_changed(path: &Path, known: Option<&FileStamp>) -> Result<Option<(FileStamp, Vec<u8>)>, String> {
    let cannot = |e: std::io::Error| format!("cannot be read: {e}");
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if known.is_some_and(|known| known.is_still(&metadata)) {
        return Ok(None);
    }
    if metadata.is_dir() {
        return Err("is a directory; a JSON file is needed".to_owned());
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_LIMIT + 1).read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 > FILE_LIMIT {
        return Err(format!("is larger than {} MB, the limit of an inventory file", FILE_LIMIT / 1_000_000));
    }
    Ok(Some((FileStamp::of(&metadata), content)))
}

fn replace_if_different(old: &mut Arc<Inventory>, new: Inventory) -> bool {
    let differs = **old != new;
    if differs {
        let (hosts, vcenters) = new.of_all_shards();
        tracing::info!(
            "inventory: {} of {hosts} hosts, {} of {vcenters} vCenters are asked",
            new.hosts.len(),
            new.vcenters.len()
        );
        *old = Arc::new(new);
    }
    differs
}

fn none() -> Attributes {
    Attributes::new::<&str, &str>([])
}
