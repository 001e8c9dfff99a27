//! The program: parses the command line, runs one verb, sets the exit code. The rest is in the library.

use clap::Parser;
use esxi_otel_agent::cli::{Cli, Verb};
use esxi_otel_agent::commands;
use esxi_otel_agent::config::{Config, Loaded};
use esxi_otel_agent::telemetry::{Console, Verbosity};
use esxi_otel_agent::{open_files, process_setup};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

/// A fleet's sessions come and go: memory has to be given back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The configuration, the inventory or a port is not usable.
const UNUSABLE: u8 = 2;
/// Where hosts are unless somebody says otherwise.
const SSH_PORT: u16 = 22;

fn main() -> ExitCode {
    let cli = Cli::parse();
    process_setup::no_core_dumps();
    process_setup::no_huge_pages();
    open_files::raise_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return unusable(&format!("starting the runtime: {error}")),
    };
    let code = runtime.block_on(run(cli));
    // Look-ups and file reads that hang in the blocking pool must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    code
}

async fn run(cli: Cli) -> ExitCode {
    let verbosity = cli.global.verbosity();
    let stop = match stop_on_signals() {
        Ok(stop) => stop,
        Err(error) => return unusable(&format!("listening for signals: {error}")),
    };
    let load = || Config::load(&cli.global.sources());
    let done = match cli.verb.unwrap_or(Verb::Run) {
        Verb::Run => match load() {
            Ok(loaded) => commands::run::run(loaded, cli.global.sources(), verbosity, stop).await,
            Err(error) => return unusable(&error),
        },
        Verb::Once(args) => match load() {
            Ok(Loaded { config, .. }) => {
                // What failed stands in the result: it need not be said twice.
                let console = (verbosity > Verbosity::Quiet).then(|| Console::stderr(verbosity).dispatch());
                let once = commands::once::once(Arc::new(config), &args, stop);
                once.with_subscriber(console.unwrap_or_default()).await
            }
            Err(error) => return unusable(&error),
        },
        Verb::Check(args) => match load() {
            Ok(loaded) => {
                // What failed stands in the report: it need not be said twice.
                let console = (verbosity > Verbosity::Quiet).then(|| Console::stderr(verbosity).dispatch());
                let check = commands::check::check(&loaded, &args, stop);
                check.with_subscriber(console.unwrap_or_default()).await
            }
            Err(error) => return unusable(&error),
        },
        Verb::Guard(args) => match load() {
            Ok(Loaded { config, .. }) => commands::guard::guard(&config, &args).await,
            Err(error) => return unusable(&error),
        },
        Verb::HostKeys(args) => match &args.known_hosts {
            // With a file of its own it needs no configuration.
            Some(file) => commands::host_keys::host_keys(file, SSH_PORT, &args),
            None => match load() {
                Ok(Loaded { config, .. }) => {
                    commands::host_keys::host_keys(&config.ssh.known_hosts, config.ssh.port, &args)
                }
                Err(error) => return unusable(&error),
            },
        },
        Verb::Demo(args) => commands::demo::demo(&args, verbosity, stop).await,
        Verb::Simulate(args) => commands::simulate::simulate(args, stop).await,
    };
    done.unwrap_or_else(|error| unusable(&error))
}

fn unusable(error: &dyn std::fmt::Display) -> ExitCode {
    commands::output::complain(error);
    ExitCode::from(UNUSABLE)
}

/// SIGTERM and SIGINT end the agent in an orderly way; a second one ends it at once.
fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A file that may not grow is an error of that file. Its signal would end the process; a handler stays for ever.
    drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
    let stopped = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if stopped.is_cancelled() {
                std::process::exit(130);
            }
            stopped.cancel();
        }
    });
    Ok(stop)
}
