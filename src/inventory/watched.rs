//! The sources that are looked at again and again, and the inventory that is kept up to date by them.

use super::atlas::Atlas;
use super::file::AtlasFile;
use super::http_sd::HttpSd;
use super::look::{Found, Look};
use super::origin::Origin;
use super::sources::Sources;
use super::{Discovery, Inventory, InventoryConfig, InventoryError};
use crate::stats::Stats;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

/// A source, and where what it lists goes.
struct Watched<L> {
    source: L,
    sources: Arc<Sources>,
    /// Where its content is kept.
    memory: Option<PathBuf>,
}

/// The inventory, kept up to date by tasks of its own.
#[derive(Debug)]
pub struct InventoryWatch {
    sources: Arc<Sources>,
    cancel: CancellationToken,
    watching: Watching,
}

/// The tasks that look at the sources of one configuration.
#[derive(Debug, Default)]
struct Watching {
    stop: CancellationToken,
    poll_now: Vec<mpsc::Sender<oneshot::Sender<()>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// The sources of a configuration, looked at for the first time.
struct Looked {
    file: Option<(AtlasFile, Found)>,
    server: Option<FirstFetch>,
}

/// The first look at a server.
struct FirstFetch {
    source: HttpSd,
    /// Where its list is kept.
    memory: Option<PathBuf>,
    result: Result<Found, Away>,
}

/// There is no list now.
struct Away {
    why: String,
    /// What was listed before the start.
    kept: Option<Atlas>,
}

impl InventoryWatch {
    /// Reads the inventory for the first time and begins to watch it, until `cancel`. A server that is away
    /// does not keep the agent from starting: what it listed last counts, as far as that was kept.
    ///
    /// # Errors
    /// The atlas file can't be read, is larger than 50 MB, is no JSON array, or holds none of our
    /// targets; or the certificates for `http_sd` can't be used.
    pub async fn start(
        config: &InventoryConfig,
        stats: Arc<Stats>,
        cancel: CancellationToken,
    ) -> Result<Self, InventoryError> {
        let sources = Arc::new(Sources::new(config.clone(), stats)?);
        let looked = Looked::at(&sources, config).await.map_err(InventoryError)?;
        let mut watch = Self { sources, cancel, watching: Watching::default() };
        watch.watch(looked);
        Ok(watch)
    }

    /// Goes over to another configuration. Whoever has subscribed stays subscribed, and what vCenters have
    /// listed stands if they still list their hosts.
    ///
    /// # Errors
    /// As [`Self::start`]; everything stays as it was then.
    pub async fn reconfigure(&mut self, config: &InventoryConfig) -> Result<(), InventoryError> {
        let looked = Looked::at(&self.sources, config).await.map_err(InventoryError)?;
        std::mem::take(&mut self.watching).end().await;
        self.sources.reconfigure(config.clone())?;
        self.watch(looked);
        Ok(())
    }

    fn watch(&mut self, looked: Looked) {
        let Looked { file, server } = looked;
        let mut watching = Watching { stop: self.cancel.child_token(), ..Watching::default() };
        if let Some((source, found)) = file {
            let watched = Watched { source, sources: Arc::clone(&self.sources), memory: None };
            watched.accept(found);
            watching.spawn(watched);
        }
        if let Some(FirstFetch { source, memory, result }) = server {
            let watched = Watched { source, sources: Arc::clone(&self.sources), memory };
            match result {
                Ok(found) => watched.accept(found),
                Err(Away { why, kept }) => {
                    if let Some(atlas) = kept {
                        self.sources.recall(&Origin::HttpSd, atlas);
                    }
                    self.sources.trouble(&Origin::HttpSd, why, 1);
                }
            }
            watching.spawn(watched);
        }
        self.sources.begin();
        if self.sources.keeps() {
            let (sources, stop) = (Arc::clone(&self.sources), watching.stop.clone());
            let keeping = async move { sources.memory().run(stop).await };
            watching.tasks.push(tokio::spawn(keeping.with_current_subscriber()));
        }
        self.watching = watching;
    }

    /// What there is to say about it, a line each: rows that can't be used, sources that are away,
    /// contradictions. The log has it as well.
    pub fn notes(&self) -> Vec<String> {
        self.sources.notes()
    }

    /// How many sources can't be used at present.
    pub fn sources_in_trouble(&self) -> usize {
        self.sources.in_trouble()
    }

    /// The inventory of now and all later ones. A new one is sent only when its meaning has changed.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Inventory>> {
        self.sources.subscribe()
    }

    /// For whoever asks vCenters: what they list goes there.
    pub fn discovery(&self) -> Discovery {
        Discovery::new(Arc::clone(&self.sources))
    }

    /// Looks at file and server now, and returns when that is done.
    pub async fn poll_now(&self) {
        for poll_now in &self.watching.poll_now {
            let (done, is_done) = oneshot::channel();
            if poll_now.send(done).await.is_ok() {
                // An error means that the watcher has ended: nothing to wait for any more.
                let _ = is_done.await;
            }
        }
    }

    /// Ends the watch: what it knows stays, and what is to be kept for the next start is written.
    pub async fn end(&mut self) {
        std::mem::take(&mut self.watching).end().await;
    }

    /// Returns when the tasks have ended after their cancellation.
    pub async fn stopped(self) {
        self.watching.join().await;
    }
}

impl Watching {
    fn spawn<L: Look>(&mut self, watched: Watched<L>) {
        let (poll_now, requests) = mpsc::channel(1);
        self.poll_now.push(poll_now);
        let watching = watched.watch(requests, self.stop.clone());
        self.tasks.push(tokio::spawn(watching.with_current_subscriber()));
    }

    async fn end(self) {
        self.stop.cancel();
        self.join().await;
    }

    async fn join(self) {
        for task in self.tasks {
            if let Err(e) = task.await {
                tracing::error!("inventory: a watcher ended badly: {e}");
            }
        }
    }
}

impl Looked {
    /// Looks at file and server. At the server only if the file is good: a version that is refused is looked at again
    /// and again.
    async fn at(sources: &Sources, config: &InventoryConfig) -> Result<Self, String> {
        let file = match &config.atlas {
            Some(path) => {
                let mut file = AtlasFile::new(path.clone(), config);
                file.look().await?.map(|found| (file, found))
            }
            None => None,
        };
        let server = match &config.http_sd {
            Some(settings) => {
                let memory = sources.memory().file("http_sd", settings.url.exposed());
                let source = HttpSd::new(settings.clone(), config)?;
                Some(FirstFetch::of(source, memory, sources).await)
            }
            None => None,
        };
        Ok(Self { file, server })
    }
}

impl FirstFetch {
    async fn of(mut source: HttpSd, memory: Option<PathBuf>, sources: &Sources) -> Self {
        let why = match source.look().await {
            Ok(Some(found)) => return Self { source, memory, result: Ok(found) },
            Ok(None) => "http_sd: \"not modified\" although nothing was asked before".to_owned(),
            Err(why) => why,
        };
        let content = match &memory {
            Some(file) => sources.memory().read(file).await,
            None => None,
        };
        let kept = match content {
            Some(content) => source.parse(content).await.ok().map(|(atlas, _)| atlas),
            None => None,
        };
        Self { source, memory, result: Err(Away { why, kept }) }
    }
}

impl<L: Look> Watched<L> {
    async fn watch(mut self, mut requests: mpsc::Receiver<oneshot::Sender<()>>, stop: CancellationToken) {
        let pace = self.source.pace();
        let mut ticks = tokio::time::interval_at(Instant::now() + pace, pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => None,
                Some(request) = requests.recv() => Some(request),
            };
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.source.look() => looked,
            };
            match looked {
                Ok(Some(found)) => self.accept(found),
                Ok(None) => self.sources.still_good(&self.source.origin()),
                Err(why) => self.sources.trouble(&self.source.origin(), why, self.source.patience()),
            }
            if let Some(done) = request {
                // Whoever asked may have gone away.
                let _ = done.send(());
            }
        }
    }

    fn accept(&self, found: Found) {
        self.sources.accept(&self.source.origin(), found.atlas);
        if let (Some(file), Some(content)) = (&self.memory, found.content) {
            self.sources.memory().keep(file.clone(), content);
        }
    }
}
