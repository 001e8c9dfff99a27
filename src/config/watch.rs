//! The files of a configuration, watched: the file itself, and the secrets, keys and certificates that it
//! names. A new version is read as a whole and checked like the first one; whether it is taken over is
//! decided by whoever runs with the old one.

use super::{Config, Loaded, Sources};
use crate::accounts::{Account, Proof, SecretSource};
use crate::file_stamp::{Digest, FileStamp};
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::stats::Stats;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;

/// Pause between two looks at the files. Polled, not notified: that works with swapped symbolic links,
/// network file systems and files that are replaced, alike.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A file system that does not answer for this long counts as an error.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Reloads by what became of them.
static RELOADS: MetricDef = MetricDef {
    name: "esxi.agent.config.reloads",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "New versions of the configuration by outcome: applied; refused, so that the old one goes on; unchanged, asked for by a signal though nothing differs.",
    attributes: &["outcome"],
};

/// Whether the last one was good.
static SUCCESS: MetricDef = MetricDef {
    name: "esxi.agent.config.last_reload.success",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "0 while the configuration's files hold a version that was refused, else 1.",
    attributes: &[],
};

/// When a good one was taken over.
static TIMESTAMP: MetricDef = MetricDef {
    name: "esxi.agent.config.last_success.timestamp",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "Unix time at which the configuration that is in use was taken over.",
    attributes: &[],
};

/// What this room counts.
pub static METRICS: &[&MetricDef] = &[&RELOADS, &SUCCESS, &TIMESTAMP];

/// What became of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// In use, from the start on.
    Started,
    /// In use in place of another one.
    Applied,
    /// The same as the one that is in use.
    Unchanged,
    /// It can't be used.
    Refused,
}

/// Counts what became of a version.
pub fn count(stats: &Stats, outcome: Outcome) {
    let word = match outcome {
        Outcome::Started => None,
        Outcome::Applied => Some("applied"),
        Outcome::Unchanged => Some("unchanged"),
        Outcome::Refused => Some("refused"),
    };
    if let Some(word) = word {
        stats.add(&RELOADS, Attributes::new([("outcome", word)]), 1.0);
    }
    let none = || Attributes::new::<&str, &str>([]);
    stats.set(&SUCCESS, none(), f64::from(u8::from(outcome != Outcome::Refused)));
    if matches!(outcome, Outcome::Started | Outcome::Applied) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        stats.set(&TIMESTAMP, none(), now.as_secs_f64());
    }
}

/// A version of the configuration and of the files that it names.
#[derive(Debug)]
pub struct Version {
    /// The configuration.
    pub loaded: Loaded,
    /// What stands in the files.
    pub contents: Contents,
    stamps: Stamps,
}

/// Of each file; `None`: it was not there.
type Stamps = BTreeMap<PathBuf, Option<FileStamp>>;

/// What stands in the files that a configuration names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<PathBuf, Digest>);

impl Contents {
    /// Reads the files; blocks for that time.
    pub fn of(config: &Config) -> Self {
        let digest = |path: PathBuf| (path.clone(), Digest::of([path.as_path()]));
        Self(files(config).into_iter().map(digest).collect())
    }

    /// Those that differ, or that only one of the two has.
    pub fn differing<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a Path> {
        let all = self.0.keys().chain(other.0.keys());
        all.filter(|path| self.0.get(*path) != other.0.get(*path)).map(PathBuf::as_path).collect()
    }

    /// Whether one of these files is another one than in `other`.
    pub fn differ_in<'a>(&self, other: &Self, files: impl IntoIterator<Item = Option<&'a PathBuf>>) -> bool {
        files.into_iter().flatten().any(|path| self.0.get(path) != other.0.get(path))
    }
}

/// Watches the files of the configuration that is in use.
#[derive(Debug)]
pub struct ConfigWatch {
    sources: Sources,
    /// Of the files when they were last read.
    stamps: Stamps,
    /// What was read last can't be used: it is read anew at each look, since that may be due to a file that is
    /// not known here.
    bad: bool,
    /// A read that has not come back within its time-out. No second one is started beside it.
    reading: Option<JoinHandle<Result<Version, String>>>,
}

impl ConfigWatch {
    /// Of the configuration that was loaded from `sources`, and its `file`. Blocks while it reads meta-data.
    pub fn new(sources: Sources, file: Option<&Path>, config: &Config) -> Self {
        Self { sources, stamps: stamps(file, config), bad: false, reading: None }
    }

    /// Waits until there may be another version. To be called again and again.
    pub async fn changed(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if self.bad || self.look().await {
                return;
            }
        }
    }

    async fn look(&self) -> bool {
        let stamps = self.stamps.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let is_still =
                |(path, stamp): (&PathBuf, &Option<FileStamp>)| match (std::fs::metadata(path), stamp) {
                    (Ok(now), Some(stamp)) => stamp.is_still(&now),
                    (Err(_), None) => true,
                    _ => false,
                };
            !stamps.iter().all(is_still)
        });
        // A file system that hangs has nothing new to say.
        tokio::time::timeout(READ_TIMEOUT, looking).await.is_ok_and(|changed| changed.unwrap_or(false))
    }

    /// Reads the version that stands in the files now.
    ///
    /// # Errors
    /// In one line all that is wrong with it, each with its place.
    pub async fn read(&mut self) -> Result<Version, String> {
        let mut reading = self.reading.take().unwrap_or_else(|| {
            let sources = self.sources.clone();
            tokio::task::spawn_blocking(move || {
                let loaded = Config::load(&sources).map_err(|error| error.to_string().replace('\n', "; "))?;
                // Before the content, so that a change in between is seen at the next look.
                let stamps = stamps(loaded.file.as_deref(), &loaded.config);
                let contents = Contents::of(&loaded.config);
                Ok(Version { loaded, contents, stamps })
            })
        });
        let read = match tokio::time::timeout(READ_TIMEOUT, &mut reading).await {
            Ok(read) => read.unwrap_or_else(|e| Err(format!("reading was cut short: {e}"))),
            Err(_) => {
                self.reading = Some(reading);
                Err(format!("the file system did not answer within {READ_TIMEOUT:?}"))
            }
        };
        match &read {
            Ok(version) => self.stamps.clone_from(&version.stamps),
            Err(_) => self.bad = true,
        }
        read
    }

    /// Whether what was read last can be used.
    pub fn conclude(&mut self, is_good: bool) {
        self.bad = !is_good;
    }
}

fn stamps(file: Option<&Path>, config: &Config) -> Stamps {
    let stamp = |path: PathBuf| {
        let metadata = std::fs::metadata(&path).ok();
        (path, metadata.map(|metadata| FileStamp::of(&metadata)))
    };
    files(config).into_iter().chain(file.map(Path::to_owned)).map(stamp).collect()
}

/// The files that a configuration names and that are read once: secrets, keys and certificates. Not those
/// that are watched by others, the inventory and the known hosts.
fn files(config: &Config) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let accounts = &config.accounts;
    let of_rules = accounts.rules.iter().flat_map(|rule| [&rule.esxi, &rule.vcenter]);
    for account in of_rules.chain([&accounts.esxi, &accounts.vcenter]).flatten() {
        files.extend(files_of(account));
    }
    // A folder is one whose entries come and go, and each of its files may be overwritten.
    files.extend(config.vcenter.files());
    files.extend(config.vcenter.ca_file.clone());
    // Its secrets are read at each fetch.
    files.extend(config.inventory.http_sd.as_ref().and_then(|sd| sd.ca_file.clone()));
    if let Some(otlp) = &config.otlp {
        files.extend([&otlp.ca_file, &otlp.cert_file, &otlp.key_file].into_iter().flatten().cloned());
    }
    files
}

fn files_of(account: &Account) -> Vec<PathBuf> {
    let of_secret = |source: &SecretSource| match source {
        SecretSource::Value(_) => None,
        SecretSource::File(path) => Some(path.clone()),
    };
    match &account.proof {
        Proof::Password(source) | Proof::MasterPassword(source) => of_secret(source).into_iter().collect(),
        Proof::Key(key) => {
            let secrets = [&key.passphrase, &key.password].into_iter().flatten().filter_map(of_secret);
            secrets.chain([key.file.clone()]).collect()
        }
    }
}
