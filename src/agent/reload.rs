//! Another configuration while the agent runs: read, compared, taken over room by room, or refused as a
//! whole. What a room does not hear of goes on as it was: sessions, readings, what is queued.

use super::rounds::Controls;
use super::{StartError, web};
use crate::config::watch::{self, ConfigWatch, Contents, Outcome, Version};
use crate::config::{Config, OtlpConfig};
use crate::outcome::chain;
use crate::stats::Stats;
use crate::telemetry::{Telemetry, events};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Asks a running agent to read its configuration again, as SIGHUP does.
#[derive(Debug, Clone)]
pub struct Reload(mpsc::Sender<oneshot::Sender<Result<(), String>>>);

impl Reload {
    pub(super) fn new() -> (Self, Requests) {
        let (sender, requests) = mpsc::channel(4);
        (Self(sender), requests)
    }

    /// Returns when that is done: with what is wrong with the new version, in one line, if it was refused.
    pub async fn now(&self) -> Result<(), String> {
        let (answer, done) = oneshot::channel();
        let gone = |()| Err("the agent has ended".to_owned());
        match self.0.send(answer).await {
            Ok(()) => done.await.unwrap_or_else(|_| gone(())),
            Err(_) => gone(()),
        }
    }
}

pub(super) type Requests = mpsc::Receiver<oneshot::Sender<Result<(), String>>>;

/// Who hears of another configuration.
pub(super) struct Reloader<'a> {
    controls: Controls,
    web: web::Changing,
    telemetry: &'a Telemetry,
    stats: Arc<Stats>,
    /// `None`: the configuration does not come from files.
    files: Option<ConfigWatch>,
    contents: Contents,
    /// What was wrong with the last version, and told.
    told: Option<String>,
    /// What was told to take effect at the next start.
    later: Vec<&'static str>,
    /// A version was bad when the files were looked at without having been asked to. Told when it is bad a second
    /// time: a file that is not written atomically may be met half-way.
    suspected: bool,
    /// It was told that there are too few files for the hosts.
    told_of_files: bool,
}

impl<'a> Reloader<'a> {
    pub(super) fn new(
        controls: Controls,
        web: web::Changing,
        telemetry: &'a Telemetry,
        stats: Arc<Stats>,
        files: Option<ConfigWatch>,
    ) -> Self {
        let (contents, told, later, suspected) = Default::default();
        // That was said at the start.
        let told_of_files = controls.shortage_of_files().is_some();
        Self { controls, web, telemetry, stats, files, contents, told, later, suspected, told_of_files }
    }

    /// Passes on what changes until `stop`: the inventory, and the configuration.
    pub(super) async fn run(mut self, mut requests: Requests, stop: CancellationToken) -> Controls {
        watch::count(&self.stats, Outcome::Started);
        if self.files.is_some() {
            let config = Arc::clone(&self.controls.config);
            let contents = tokio::task::spawn_blocking(move || Contents::of(&config)).await;
            self.contents = contents.unwrap_or_default();
        }
        loop {
            let changed = async {
                match &self.files {
                    Some(files) => files.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return self.controls,
                () = self.controls.inventory_changed() => self.publish(),
                Some(answer) = requests.recv() => {
                    let read = stop.run_until_cancelled(self.read(true)).await;
                    let Some(result) = read else { return self.controls };
                    // Whoever asked may have lost interest.
                    let _ = answer.send(result);
                }
                () = changed => {
                    // What is wrong is told there.
                    let _ = stop.run_until_cancelled(self.read(false)).await;
                }
            }
        }
    }

    /// The hosts that vCenters list are known only by and by.
    fn publish(&mut self) {
        self.controls.publish();
        self.telemetry.make_room(self.controls.hosts());
        if let Some(shortage) = self.controls.shortage_of_files()
            && !std::mem::replace(&mut self.told_of_files, true)
        {
            warn!("{shortage}");
        }
    }

    /// Reads the files, and takes over what stands there.
    async fn read(&mut self, asked: bool) -> Result<(), String> {
        let Some(files) = &mut self.files else { return Err("there is no file to read again".to_owned()) };
        let taken = match files.read().await {
            Ok(version) => self.take(version, asked).await.map_err(|error| chain(&error)),
            Err(why) => Err(why),
        };
        if let Some(files) = &mut self.files {
            files.conclude(taken.is_ok());
        }
        match &taken {
            Ok(()) => {
                self.suspected = false;
                if self.told.take().is_some() {
                    info!(
                        name: "esxi.agent.config_good", target: events::TARGET,
                        "configuration: it is good again"
                    );
                }
            }
            Err(why) if asked || self.suspected => self.refuse(why, asked),
            Err(_) => self.suspected = true,
        }
        taken
    }

    /// Counted once for each version; whoever asks gets an answer each time.
    fn refuse(&mut self, why: &str, asked: bool) {
        self.suspected = true;
        if self.told.as_deref() == Some(why) {
            if asked {
                warn!("configuration: still refused, the old one goes on: {why}");
            }
            return;
        }
        self.told = Some(why.to_owned());
        watch::count(&self.stats, Outcome::Refused);
        warn!(
            name: "esxi.agent.config_refused", target: events::TARGET,
            "configuration refused, the old one goes on: {why}"
        );
    }

    async fn take(&mut self, version: Version, asked: bool) -> Result<(), StartError> {
        let Version { loaded, contents, .. } = version;
        let old = Arc::clone(&self.controls.config);
        let mut new = loaded.config;
        let later = keep_what_is_fixed(&old, &mut new);
        let files: Vec<String> =
            self.contents.differing(&contents).iter().map(|path| path.display().to_string()).collect();
        if new == *old && files.is_empty() {
            if asked && later.is_empty() && self.told.is_none() {
                info!("configuration: nothing has changed");
            }
            if asked || self.told.is_some() {
                watch::count(&self.stats, Outcome::Unchanged);
            }
            self.tell_later(later);
            return Ok(());
        }
        let listener = self.web.prepare(&old, &new).await?;
        let sections = sections(&old, &new);
        let new = Arc::new(new);
        let otlp = new
            .otlp
            .as_ref()
            .filter(|otlp| new.otlp != old.otlp || self.contents.differ_in(&contents, files_of(otlp)));
        let peers = otlp.map(Telemetry::peers).transpose()?;
        let server = new.inventory.http_sd.as_ref();
        let looks_anew = new.inventory != old.inventory
            || self.contents.differ_in(&contents, server.map(|server| server.ca_file.as_ref()));
        let prepared = self.controls.prepare(Arc::clone(&new), looks_anew).await?;
        if let Some((otlp, peers)) = otlp.zip(peers) {
            self.telemetry.reconfigure(otlp, peers);
        }
        self.controls.apply(prepared);
        self.telemetry.make_room(self.controls.hosts());
        self.web.apply(listener).await;
        self.contents = contents;
        self.told = None;
        watch::count(&self.stats, Outcome::Applied);
        info!(
            name: "esxi.agent.config_applied", target: events::TARGET,
            changed = (!sections.is_empty()).then(|| sections.join(", ")),
            files = (!files.is_empty()).then(|| files.join(", ")),
            "configuration taken over"
        );
        for note in loaded.notes {
            warn!("{note}");
        }
        self.tell_later(later);
        Ok(())
    }

    fn tell_later(&mut self, later: Vec<&'static str>) {
        if !later.is_empty() && later != self.later {
            warn!("configuration: {} changed, which takes effect at the next start", later.join(", "));
        }
        self.later = later;
    }
}

/// Puts the old values back where a running agent can't change. Returns their keys.
fn keep_what_is_fixed(old: &Config, new: &mut Config) -> Vec<&'static str> {
    let mut fixed = Vec::new();
    let mut keep = |key: &'static str, differs: bool| {
        if differs {
            fixed.push(key);
        }
        differs
    };
    if keep("state_dir", old.state_dir != new.state_dir) {
        if new.ssh.known_hosts.starts_with(&new.state_dir) {
            new.ssh.known_hosts.clone_from(&old.ssh.known_hosts);
        }
        new.state_dir.clone_from(&old.state_dir);
    }
    if keep("lockout", old.lockout != new.lockout) {
        new.lockout.clone_from(&old.lockout);
    }
    // It is a part of the agent's name at the Collector.
    if keep("inventory.shard", old.inventory.shard != new.inventory.shard) {
        new.inventory.shard = old.inventory.shard;
        if let (Some(old), Some(new)) = (&old.otlp, &mut new.otlp) {
            new.resource.clone_from(&old.resource);
        }
    }
    match (&old.otlp, &mut new.otlp) {
        (Some(old), Some(new)) => {
            let can_be = changed_while_running(old, new);
            if keep("otlp (the queue, the spool, the resource, or which signals are sent)", can_be != *new) {
                *new = can_be;
            }
        }
        (old, new) => {
            if keep("otlp.enabled", old.is_some() != new.is_some()) {
                new.clone_from(old);
            }
        }
    }
    fixed
}

/// `old` with what of `new` the ways out can take over.
fn changed_while_running(old: &OtlpConfig, new: &OtlpConfig) -> OtlpConfig {
    let new = new.clone();
    OtlpConfig {
        endpoint: new.endpoint,
        failover: new.failover,
        compression: new.compression,
        headers: new.headers,
        ca_file: new.ca_file,
        cert_file: new.cert_file,
        key_file: new.key_file,
        interval: new.interval,
        timeout: new.timeout,
        max_points: new.max_points,
        traces: old.traces.as_ref().and(new.traces).or_else(|| old.traces.clone()),
        ..old.clone()
    }
}

fn files_of(otlp: &OtlpConfig) -> [Option<&PathBuf>; 3] {
    [otlp.ca_file.as_ref(), otlp.cert_file.as_ref(), otlp.key_file.as_ref()]
}

/// The sections that differ, for people.
fn sections(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("inventory", old.inventory != new.inventory),
        ("accounts", old.accounts != new.accounts),
        (
            "collectors",
            old.overall_state != new.overall_state || old.critical_service != new.critical_service,
        ),
        ("ssh", old.ssh != new.ssh),
        ("vcenter", old.vcenter != new.vcenter),
        ("otlp", old.otlp != new.otlp),
        ("prometheus", old.prometheus != new.prometheus),
    ];
    differs.into_iter().filter_map(|(section, differs)| differs.then_some(section)).collect()
}
