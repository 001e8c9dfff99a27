//! `simulate`: a simulated estate for trying one's own pipeline, for tests and for benchmarks. Writes the
//! files that an agent needs to visit it, and serves until it is told to end.

use super::{VerbError, output};
use crate::accounts::Secret;
use crate::simulator::faults::FaultShare;
use crate::simulator::host::{FleetError, FleetSpec, HostKeys};
use crate::simulator::lab::{self, HostSource, LabFile};
use crate::simulator::scenario::{Scenario, ScenarioSpec};
use crate::simulator::scenario_vcenters::{self, VcentersSpec};
use crate::simulator::sink::{Signal, Sink, SinkOptions};
use clap::builder::RangedU64ValueParser;
use rand::distr::{Alphanumeric, SampleString as _};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Flags of `simulate`.
#[derive(Debug, Clone, clap::Args)]
pub struct SimulateArgs {
    /// Number of ESXi hosts.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_most(65_000))]
    pub hosts: usize,
    /// Number of vCenters.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_most(1_000))]
    pub vcenters: usize,
    /// Same seed, same estate: names, host keys, faults and incidents.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Time that is added to each step of a visit, such as `300ms`.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = duration)]
    pub latency: Duration,
    /// Share of the hosts that has a fault, such as `wrong-password=0.01`. May be given several times; an
    /// unknown name lists the known ones.
    #[arg(long = "fault", value_name = "NAME=SHARE")]
    pub faults: Vec<FaultShare>,
    /// Let incidents come and go, a new one about this often, such as `10s`.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub incidents: Option<Duration>,
    /// Which host keys the hosts have.
    #[arg(long, value_enum, default_value = "ecdsa")]
    pub host_keys: HostKeys,
    /// Port of all hosts; 0 = any free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,
    /// OTLP endpoint to write into the configuration.
    #[arg(long, value_name = "URL", default_value = "http://localhost:4317")]
    pub otlp_endpoint: String,
    /// Be the Collector, too: take what the agent pushes, and say at the end how much that was.
    #[arg(long, conflicts_with = "otlp_endpoint")]
    pub collector: bool,
    /// Write a configuration that takes the hosts from the vCenters, without an inventory file.
    #[arg(long)]
    pub discover: bool,
    /// Folder for the inventory, the configuration and the environment.
    #[arg(long, value_name = "DIR", default_value = "lab")]
    pub out: PathBuf,
}

/// Why the simulation could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// `--discover --vcenters 0`.
    #[error("--discover: without a vCenter there is nobody to list the hosts")]
    NobodyLists,
    /// The hosts.
    #[error("simulate hosts: {0}")]
    Fleet(#[from] FleetError),
    /// The vCenters.
    #[error("simulate vCenters: {0}")]
    Vcenters(io::Error),
    /// A file of the lab.
    #[error("write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The Collector.
    #[error("simulate a Collector: {0}")]
    Collector(io::Error),
    /// Signals.
    #[error("wait for signals: {0}")]
    Signal(io::Error),
}

/// Serves a simulated estate until `cancel`, SIGINT or SIGTERM.
///
/// # Errors
/// When a peer can't be started, a file can't be written, or standard output can't.
pub async fn simulate(args: SimulateArgs, cancel: CancellationToken) -> Result<ExitCode, VerbError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(SimulateError::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(SimulateError::Signal)?;
    if args.discover && args.vcenters == 0 {
        return Err(SimulateError::NobodyLists.into());
    }
    let folder = make_folder(&args.out)?;
    let fleet = FleetSpec {
        hosts: args.hosts,
        seed: args.seed,
        port: args.port,
        password: Secret::new(password(args.seed, "ESXi")),
        latency: args.latency,
        host_keys: args.host_keys,
        ..FleetSpec::default()
    };
    let spec = ScenarioSpec { vcenters: args.vcenters, faults: args.faults.clone(), fleet };
    let vcenters = VcentersSpec {
        user: "monitor@vsphere.local".to_owned(),
        password: Secret::new(password(args.seed, "vCenter")),
        latency: args.latency,
        by_name: args.discover,
    };
    let (scenario, access) =
        scenario_vcenters::start(Scenario::start(spec).map_err(SimulateError::from)?, vcenters)
            .await
            .map_err(SimulateError::Vcenters)?;
    let options = SinkOptions { record: false, ..SinkOptions::default() };
    let collector =
        args.collector.then(|| Sink::start(options)).transpose().map_err(SimulateError::Collector)?;
    let endpoint = collector.as_ref().map_or_else(|| args.otlp_endpoint.clone(), Sink::endpoint);
    let hosts = if args.discover { HostSource::Discovery } else { HostSource::Atlas };
    for file in lab::files(&scenario, &access, &folder, &endpoint, hosts) {
        write(&folder, &file)?;
    }
    // A reader that has gone does not end the simulation.
    let _ = output::print(tell(&args, &scenario, &access.addresses, &folder, &endpoint))?;
    let incidents = async {
        match args.incidents {
            Some(pace) => scenario.play(pace, cancel.clone()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = incidents => cancel.cancelled().await,
        () = cancel.cancelled() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    scenario.shutdown().await;
    if let Some(collector) = collector {
        let printed = output::print(format_args!("{}\n", received(&collector)));
        collector.stop().await;
        let _ = printed?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the Collector has taken, in a line a kind.
fn received(collector: &Sink) -> String {
    collector.seen(|seen| {
        let line = |name: &str, signal: Signal| {
            let of_signal = || seen.messages.iter().filter(|message| message.signal == signal);
            let items: usize = of_signal().map(|message| message.items).sum();
            let largest = of_signal().map(|message| message.bytes).max().unwrap_or_default();
            format!(
                "received {items} {name} in {} messages, the largest of {largest} bytes",
                of_signal().count()
            )
        };
        let (points, spans) = (line("points", Signal::Metrics), line("spans", Signal::Traces));
        format!("{points}\n{spans}\nrefused {} messages", seen.refused)
    })
}

/// A password that a second start with the same seed has, too, so that an agent that still runs is not
/// locked out. It guards nothing: whoever reaches the loopback device may know it.
fn password(seed: u64, whose: &str) -> String {
    use rand::SeedableRng as _;
    let salt = whose.bytes().fold(seed, |salt, byte| salt.rotate_left(8) ^ u64::from(byte));
    Alphanumeric.sample_string(&mut rand::rngs::StdRng::seed_from_u64(salt), 20)
}

fn make_folder(folder: &Path) -> Result<PathBuf, SimulateError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    let absolute = made.and_then(|()| folder.canonicalize());
    absolute.map_err(|source| SimulateError::Write { path: folder.to_owned(), source })
}

/// Writes a file beside its place and moves it there: an agent that watches it sees all of it or nothing.
/// What is secret is never readable for others, not even for a moment.
fn write(folder: &Path, file: &LabFile) -> Result<(), SimulateError> {
    let path = folder.join(file.name);
    let beside = folder.join(format!(".{}.new", file.name));
    let work = || {
        if let Err(error) = std::fs::remove_file(&beside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mode = if file.secret { 0o600 } else { 0o644 };
        let mut new = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        new.write_all(file.text.as_bytes())?;
        std::fs::rename(&beside, &path)
    };
    work().map_err(|source| SimulateError::Write { path: path.clone(), source })
}

fn tell(
    args: &SimulateArgs,
    scenario: &Scenario,
    addresses: &[String],
    folder: &Path,
    endpoint: &str,
) -> String {
    let (fleet, folder) = (&scenario.fleet, folder.display());
    let mut text = String::new();
    let _ = writeln!(text, "{} hosts and {} vCenters are up.", fleet.len(), args.vcenters);
    if let Some(last) = fleet.len().checked_sub(1) {
        let _ = writeln!(text, "  hosts      {} to {}, port {}", fleet.ip(0), fleet.ip(last), fleet.port());
        let (user, _) = scenario.account();
        let _ = writeln!(text, "  by hand    ssh -p {} {user}@{}", fleet.port(), fleet.ip(0));
    }
    let atlas = if args.discover { "" } else { ", atlas.json" };
    for (vcenter, address) in scenario.vcenters.iter().zip(addresses) {
        let _ = writeln!(text, "  vCenter    {address} is {}, site {}", vcenter.full_name, vcenter.site);
    }
    let _ = writeln!(text, "  files      {folder}/config.yaml{atlas}; account in {folder}/env");
    let _ = writeln!(text, "\nIn another shell:");
    let _ = writeln!(text, "  set -a; . '{folder}/env'; set +a");
    let _ = writeln!(text, "  esxi-otel-agent once        # one round, as a table");
    let _ = writeln!(text, "  esxi-otel-agent run         # pushes to {endpoint}");
    let _ = writeln!(text, "\nCtrl-C ends the simulation.");
    text
}

/// One process has no room for more.
fn at_most(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=most)
}

/// `300ms`, `1.5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("`{text}` is no time such as 300ms, 1.5s or 2m");
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(invalid()),
    };
    let number: f64 = number.parse().map_err(|_| invalid())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt as _;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    #[test]
    fn times_are_written_with_their_unit() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "s", "-1s", "1h", "1e400s", "NaNs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_fault_lists_the_known_ones() {
        let error = Line::try_parse_from(["simulate", "--fault", "nonsense=0.1"]).unwrap_err().to_string();
        assert!(error.contains("wrong-password"), "{error}");
    }

    #[tokio::test]
    async fn it_writes_the_lab_serves_and_ends_when_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("lab");
        let line = ["simulate", "--hosts", "3", "--vcenters", "1", "--out", out.to_str().unwrap()];
        let args = Line::try_parse_from(line).unwrap().args;
        let cancel = CancellationToken::new();
        let running = tokio::spawn(simulate(args, cancel.clone()));
        let written = async {
            while !out.join("env").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
        let mode = |name| out.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("env"), 0o600);
        let config: serde_json::Value =
            serde_yaml::from_str(&std::fs::read_to_string(out.join("config.yaml")).unwrap()).unwrap();
        let account = ["ESXI_USER", "ESXI_PASSWORD", "VCENTER_USER", "VCENTER_PASSWORD"];
        let env = account.map(|name| (name.to_owned(), "simulated".into())).into();
        let file = Some(out.join("config.yaml"));
        let loaded = Config::load(&Sources { config: file, env, ..Sources::default() }).unwrap();
        assert!(loaded.config.overall_state.is_some(), "the agent takes the configuration as it is");
        let port = u16::try_from(config["ssh"]["port"].as_u64().unwrap()).unwrap();
        tokio::net::TcpStream::connect(("127.16.0.3", port)).await.unwrap();
        cancel.cancel();
        tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(("127.16.0.3", port)).await.is_err());
    }
}
