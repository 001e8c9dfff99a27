//! The command line.

use crate::commands::simulate::SimulateArgs;
use crate::config::Sources;
use crate::inventory::Endpoint;
use crate::telemetry::Verbosity;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 a visit or poll of `once` failed, 2 configuration, inventory or a port is \
unusable: one line for each problem, on standard error.";

/// OpenTelemetry push agent for VMware ESXi.
///
/// Visits ESXi hosts by SSH (are the critical services running?) and polls vCenters by SOAP (which host is
/// green, yellow or red?), pushes what it finds over OTLP and serves it to Prometheus. Without a verb it is
/// the agent (`run`).
#[derive(Debug, Parser)]
#[command(name = "esxi-otel-agent", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Flags of every verb.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do; nothing said: `run`.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// Flags of every verb. They win over the environment, which wins over the file.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every verb")]
pub struct GlobalArgs {
    /// Configuration file (YAML) [environment: CONFIG_FILE]
    #[arg(long, global = true, value_name = "FILE", display_order = 900)]
    pub config: Option<PathBuf>,
    /// Inventory file (Prometheus file_sd JSON) [environment: ATLAS_FILE]
    #[arg(long, global = true, value_name = "FILE", display_order = 901)]
    pub atlas: Option<PathBuf>,
    /// This agent's part of the fleet: 0/3, 1/3, 2/3, or auto/3 in a StatefulSet
    #[arg(long, global = true, value_name = "I/N")]
    pub shard: Option<String>,
    /// Say more: -v what happens, -vv why
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 902)]
    pub verbose: u8,
}

impl GlobalArgs {
    /// Where the configuration comes from: these flags and the environment of the process.
    pub fn sources(&self) -> Sources {
        let (config, atlas) = (self.config.clone(), self.atlas.clone());
        let mut sources = Sources { config, atlas, ..Sources::of_process() };
        if let Some(shard) = &self.shard {
            sources.overrides.set("inventory.shard", "--shard", shard);
        }
        sources
    }

    /// How much stands on the console.
    pub fn verbosity(&self) -> Verbosity {
        match self.verbose {
            0 => Verbosity::Quiet,
            1 => Verbosity::Info,
            _ => Verbosity::Debug,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The agent: visit, poll, push, until SIGTERM (the default)
    Run,
    /// One round over everything, printed; exit code 1 when a visit or poll failed
    Once(OnceArgs),
    /// Check configuration and inventory; with --connect log in everywhere once and report
    Check(CheckArgs),
    /// What the guard against locked accounts remembers, and opening by hand
    Guard(GuardArgs),
    /// List or forget SSH host keys
    HostKeys(HostKeysArgs),
    /// Everything simulated in one process: needs no file, no account, no network
    Demo(DemoArgs),
    /// Only the simulated fleet, for trying one's own pipeline
    Simulate(SimulateArgs),
}

/// How `once` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnceFormat {
    /// A table of hosts and services
    #[default]
    Table,
    /// One JSON object
    Json,
    /// The Prometheus text format
    Prometheus,
}

/// Flags of `once`.
#[derive(Debug, Clone, Default, Args)]
pub struct OnceArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: OnceFormat,
    /// Rounds to make; from the second one on the kept sessions are used, the last one is printed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Print the time and CPU time of each round to standard error
    #[arg(long)]
    pub timings: bool,
}

/// How `check` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CheckFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object
    Json,
}

/// Flags of `check`.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: CheckFormat,
    /// Log in to every host and vCenter once, and report each step; exit code 1 when anything failed
    #[arg(long)]
    pub connect: bool,
    /// Only this host or vCenter, as the inventory writes it; may be given again
    #[arg(long, value_name = "HOST", requires = "connect")]
    pub host: Vec<String>,
}

/// Flags of `host-keys`.
#[derive(Debug, Clone, Args)]
pub struct HostKeysArgs {
    /// The known_hosts file; without it the one of the configuration
    #[arg(long, global = true, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub verb: HostKeysVerb,
}

/// What to do with host keys.
#[derive(Debug, Clone, Subcommand)]
pub enum HostKeysVerb {
    /// List the known keys
    List {
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: CheckFormat,
    },
    /// Forget the keys of a host, so that the next one is new; exit code 1 when none was known
    Forget {
        /// Name or address; without a port that of the configuration (ssh.port)
        #[arg(value_name = "HOST[:PORT]")]
        host: Endpoint,
    },
}

/// What `guard` does.
#[derive(Debug, Clone, Default, Args)]
pub struct GuardArgs {
    /// Nothing said: `list`
    #[command(subcommand)]
    pub verb: Option<GuardVerb>,
}

/// What `guard` does.
#[derive(Debug, Clone, Subcommand)]
pub enum GuardVerb {
    /// Credentials, and the hosts and vCenters that wait (the default)
    List(GuardListArgs),
    /// Let a login be tried again; an agent that runs notices within a second
    Release(GuardReleaseArgs),
}

impl Default for GuardVerb {
    fn default() -> Self {
        GuardVerb::List(GuardListArgs::default())
    }
}

/// Flags of `guard list`.
#[derive(Debug, Clone, Default, Args)]
pub struct GuardListArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: GuardFormat,
}

/// How `guard list` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum GuardFormat {
    /// For people
    #[default]
    Table,
    /// One JSON object
    Json,
}

/// Flags of `guard release`: exactly one of them.
#[derive(Debug, Clone, Default, Args)]
#[group(required = true, multiple = false)]
pub struct GuardReleaseArgs {
    /// The host or vCenter at this address, for all credentials
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// The credential whose id begins like this, everywhere
    #[arg(long, value_name = "ID")]
    pub credential: Option<String>,
    /// Everything; also begins a damaged memory anew
    #[arg(long)]
    pub all: bool,
}

/// Flags of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Number of simulated hosts
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=3000))]
    pub hosts: u32,
    /// End after this time (90s, 5m); without it: Ctrl-C ends
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Seed of the faults that come and go
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// A duration such as `300ms`, `90s`, `5m`, `1h 30m`.
///
/// # Errors
/// One line that says what is wrong and what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration =
        text.parse().map_err(|_| format!("'{text}' is no duration: write 300ms, 90s, 5m or 1h 30m"))?;
    signed.try_into().map_err(|_| format!("'{text}' is negative"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_verb_it_is_the_agent() {
        let cli = Cli::parse_from(["esxi-otel-agent", "--config", "c.yaml", "-vv"]);
        assert!(cli.verb.is_none());
        assert_eq!(cli.global.verbose, 2);
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        assert_eq!(parse_duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration("5").is_err());
    }
}
