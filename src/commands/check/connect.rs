//! `check --connect`: one login at every host and vCenter, by the agent's own client, which takes down its
//! steps. Records no host key and keeps no session.

use super::connections::{Connection, Connections};
use crate::agent::{self, StartError};
use crate::collectors::{self, HostCollector};
use crate::commands::VerbError;
use crate::commands::report::services;
use crate::config::{Config, SshConfig};
use crate::inventory::{Host, Inventory, InventoryWatch, Vcenter};
use crate::outcome::{Failure, FailureReason};
use crate::poller::HostLists;
use crate::poller::visit::Visitor;
use crate::span::PastSpans;
use crate::ssh::{Connector, HostKeys};
use crate::stats::Stats;
use crate::steps::Steps;
use crate::vim::client::Access;
use futures::StreamExt as _;
use indicatif::ProgressBar;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What all logins share.
pub(super) struct Checker {
    pub(super) access: Access,
    connector: Connector,
    pub(super) stats: Arc<Stats>,
    pub(super) progress: ProgressBar,
    pub(super) stop: CancellationToken,
}

/// Connects to everybody who is asked by a collector, or of them to `only`. After `stop` nobody else is
/// asked, and whoever is asked just then is logged out.
pub(super) async fn connect(
    config: &Config,
    watch: &InventoryWatch,
    only: &[String],
    stop: &CancellationToken,
) -> Result<Connections, VerbError> {
    let stats = Stats::new();
    let access = agent::access(config, &stats).await;
    let known = Arc::clone(&watch.subscribe().borrow());
    if let (_, Some(nobody)) = named_hosts(&known, only)
        && !watch.discovery().is_on()
    {
        return Err(VerbError::NoSuchTarget(nobody));
    }
    let vcenters = if config.overall_state.is_some() { named_vcenters(&known, only) } else { Vec::new() };

    let host_keys = HostKeys::load(&config.ssh, Arc::clone(&stats)).map_err(StartError::from)?;
    let ssh = SshConfig { reuse_sessions: false, ..config.ssh.clone() };
    let guard = Arc::clone(&access.guard);
    let connector = Connector::new(ssh, Arc::new(host_keys.without_recording()), guard, Arc::clone(&stats));
    let checker = Checker {
        connector: connector.allowing(Arc::clone(&access.allow)),
        access,
        stats,
        progress: crate::commands::progress_bar(vcenters.len(), "connecting".to_owned()),
        stop: stop.clone(),
    };
    // First the vCenters, step by step: a login that fails there is not tried again for the list of hosts.
    let vcenter_collectors = collectors::vcenter_collectors(config);
    let polls = vcenters.iter().map(|vcenter| checker.vcenter(&config.vcenter, &vcenter_collectors, vcenter));
    let vcenters = futures::future::join_all(polls).await;
    let inventory = discovered(config, watch, &checker, &vcenters).await;
    let (hosts, nobody) = named_hosts(&inventory, only);
    let host_collectors = collectors::host_collectors(config);
    let hosts = if host_collectors.is_empty() || nobody.is_some() { Vec::new() } else { hosts };
    checker.progress.inc_length(hosts.len() as u64);
    let most = config.critical_service.as_ref().map_or(1, |critical| critical.max_in_flight);
    let visits = hosts.iter().map(|host| checker.host(&host_collectors, host));
    let hosts = futures::stream::iter(visits).buffered(most).collect::<Vec<_>>().await;
    checker.progress.finish_and_clear();
    // A login whose verdict is not written down counts as lost.
    checker.access.guard.flush().await;
    if let Some(nobody) = nobody {
        return Err(VerbError::NoSuchTarget(nobody));
    }
    Ok(Connections { hosts, vcenters })
}

/// The inventory with the hosts that vCenters list, each of which is logged in to for that, unless it was `seen` to
/// fail.
async fn discovered(
    config: &Config,
    watch: &InventoryWatch,
    checker: &Checker,
    seen: &[Connection],
) -> Arc<Inventory> {
    let inventory = watch.subscribe();
    let known = Arc::clone(&inventory.borrow());
    if config.critical_service.is_some() {
        let setup = agent::lists_alone(config, checker.access.clone(), watch.discovery());
        let (_keep, setup) = tokio::sync::watch::channel(Arc::new(setup));
        let stats = Arc::clone(&checker.stats);
        let lists = HostLists::new(setup, stats, tokio::sync::watch::Sender::new(false));
        let failure = |vcenter: &Vcenter| seen.iter().find_map(|seen| seen.failure_of(&vcenter.address));
        let reading = async {
            lists.read_all(&known, |vcenter| failure(vcenter).is_some()).await;
            for vcenter in known.vcenters_of_all_shards() {
                if let Some(failure) = failure(vcenter) {
                    // What it listed last stands.
                    watch.discovery().failed(vcenter, failure).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = checker.stop.cancelled() => {}
            () = reading => {}
        }
        lists.logout_all().await;
    }
    Arc::clone(&inventory.borrow())
}

/// Whether an address is one of those that are named; nobody is named: all are meant.
fn is_named(only: &[String], address: &str, host: &str) -> bool {
    only.is_empty() || only.iter().any(|name| is(name, address, host))
}

fn is(name: &str, address: &str, host: &str) -> bool {
    name.eq_ignore_ascii_case(address) || name.eq_ignore_ascii_case(host)
}

fn named_vcenters(inventory: &Inventory, only: &[String]) -> Vec<Arc<Vcenter>> {
    let all = inventory.vcenters.iter();
    all.filter(|vcenter| is_named(only, &vcenter.address, &vcenter.endpoint.host)).cloned().collect()
}

/// The hosts that are named, or all; and a name that is nobody's, neither a host's nor a vCenter's.
fn named_hosts(inventory: &Inventory, only: &[String]) -> (Vec<Arc<Host>>, Option<String>) {
    let exists = |name: &&String| {
        inventory.hosts.iter().any(|host| is(name, &host.address, &host.endpoint.host))
            || inventory.vcenters.iter().any(|vcenter| is(name, &vcenter.address, &vcenter.endpoint.host))
    };
    let all = inventory.hosts.iter();
    let hosts = all.filter(|host| is_named(only, &host.address, &host.endpoint.host)).cloned().collect();
    (hosts, only.iter().find(|name| !exists(name)).cloned())
}

impl Checker {
    /// One visit with everything that the collectors ask.
    async fn host(&self, collectors: &[Arc<dyn HostCollector>], host: &Arc<Host>) -> Connection {
        let (steps, ssh) = (Steps::wanted(), self.connector.config());
        let limit = ssh.connect_timeout + ssh.login_timeout + ssh.command_timeout + Duration::from_secs(1);
        let (connector, accounts) =
            (self.connector.telling(steps.clone()), Arc::clone(&self.access.accounts));
        let visitor = Visitor::new(connector, accounts, Arc::clone(&self.stats), PastSpans::default());
        let started = Instant::now();
        let visited = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            visited = visitor.visit(host, collectors, limit) => Some(visited),
        };
        self.progress.inc(1);
        let (outcome, reports) = match visited {
            Some(visited) => (visited.outcome, visited.reports),
            None => (Err(stopped()), Vec::new()),
        };
        let samples = reports.iter().flat_map(|report| &report.readings).flat_map(|r| &r.samples);
        Connection::new(&host.address, &host.site, outcome.err(), started.elapsed(), steps.taken())
            .with_services(services(samples))
    }
}

pub(super) fn stopped() -> Failure {
    Failure::new(FailureReason::CommandTimeout, "stopped before it ended")
}
