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
    let inventory = discovered(config, watch, &access, &stats, stop).await;
    let (hosts, vcenters) = targets(&inventory, only)?;
    let host_collectors = collectors::host_collectors(config);
    let hosts = if host_collectors.is_empty() { Vec::new() } else { hosts };
    let vcenters = if config.overall_state.is_none() { Vec::new() } else { vcenters };

    let host_keys = HostKeys::load(&config.ssh, Arc::clone(&stats)).map_err(StartError::from)?;
    let ssh = SshConfig { reuse_sessions: false, ..config.ssh.clone() };
    let guard = Arc::clone(&access.guard);
    let connector = Connector::new(ssh, Arc::new(host_keys.without_recording()), guard, Arc::clone(&stats));
    let checker = Checker {
        connector: connector.allowing(Arc::clone(&access.allow)),
        access,
        stats,
        progress: crate::commands::progress_bar(hosts.len() + vcenters.len(), "connecting".to_owned()),
        stop: stop.clone(),
    };
    let most = config.critical_service.as_ref().map_or(1, |critical| critical.max_in_flight);
    let visits = hosts.iter().map(|host| checker.host(&host_collectors, host));
    let visits = futures::stream::iter(visits).buffered(most).collect::<Vec<_>>();
    let vcenter_collectors = collectors::vcenter_collectors(config);
    let polls = vcenters.iter().map(|vcenter| checker.vcenter(&config.vcenter, &vcenter_collectors, vcenter));
    let (hosts, vcenters) = tokio::join!(visits, futures::future::join_all(polls));
    checker.progress.finish_and_clear();
    // A login whose verdict is not written down counts as lost.
    checker.access.guard.flush().await;
    Ok(Connections { hosts, vcenters })
}

/// The inventory with the hosts that vCenters list, each of which is logged in to for that.
async fn discovered(
    config: &Config,
    watch: &InventoryWatch,
    access: &Access,
    stats: &Arc<Stats>,
    stop: &CancellationToken,
) -> Arc<Inventory> {
    let inventory = watch.subscribe();
    let known = Arc::clone(&inventory.borrow());
    if config.critical_service.is_some() {
        let setup = agent::lists_alone(config, access.clone(), watch.discovery());
        let (_keep, setup) = tokio::sync::watch::channel(Arc::new(setup));
        let lists = HostLists::new(setup, Arc::clone(stats), tokio::sync::watch::Sender::new(false));
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = lists.read_all(&known) => {}
        }
        lists.logout_all().await;
    }
    Arc::clone(&inventory.borrow())
}

/// Those that are named, or all.
#[expect(clippy::type_complexity, reason = "two lists of two kinds")]
fn targets(inventory: &Inventory, only: &[String]) -> Result<(Vec<Arc<Host>>, Vec<Arc<Vcenter>>), VerbError> {
    let is = |name: &String, address: &str, host: &str| {
        name.eq_ignore_ascii_case(address) || name.eq_ignore_ascii_case(host)
    };
    let host = |name: &String, host: &Host| is(name, &host.address, &host.endpoint.host);
    let vcenter = |name: &String, vcenter: &Vcenter| is(name, &vcenter.address, &vcenter.endpoint.host);
    let nobody = only.iter().find(|name| {
        !inventory.hosts.iter().any(|h| host(name, h)) && !inventory.vcenters.iter().any(|v| vcenter(name, v))
    });
    if let Some(name) = nobody {
        return Err(VerbError::NoSuchTarget(name.clone()));
    }
    let named = |fits: &dyn Fn(&String) -> bool| only.is_empty() || only.iter().any(fits);
    let hosts = inventory.hosts.iter().filter(|h| named(&|name| host(name, h))).cloned().collect();
    let vcenters = inventory.vcenters.iter().filter(|v| named(&|name| vcenter(name, v))).cloned().collect();
    Ok((hosts, vcenters))
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
