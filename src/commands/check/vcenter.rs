//! One vCenter, looked at for `check --connect`: its certificate, the privileges, what can be read, whether
//! it tells what changes, its clock.

mod properties;

use super::connect::{Checker, stopped};
use super::connections::Connection;
use crate::collectors::VcenterCollector;
use crate::config::VcenterConfig;
use crate::inventory::Vcenter;
use crate::outcome::Failure;
use crate::steps::Steps;
use crate::vim::VimClient;
use crate::vim::listener::Listener;
use crate::vim::model::ManagedObject;
use crate::vim::tls::{Certificate, Trust};
use jiff::Timestamp;
use properties::Unreadable;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Properties of hosts that are read: every version has them, and each needs the privilege that all need.
const PROPERTIES: [&str; 3] = ["name", "parent", "overallStatus"];
/// What the built-in role Read-only grants, and the agent needs.
const PRIVILEGES: [&str; 2] = ["System.View", "System.Read"];
/// Limit of what is asked beside the tree.
const ASIDE: Duration = Duration::from_secs(10);

impl Checker {
    /// Login, one reading of the tree and a look around, logout.
    pub(super) async fn vcenter(
        &self,
        config: &VcenterConfig,
        collectors: &[Arc<dyn VcenterCollector>],
        vcenter: &Arc<Vcenter>,
    ) -> Connection {
        let (steps, started) = (Steps::wanted(), Instant::now());
        let outcome = self.look(config, collectors, vcenter, &steps).await;
        self.progress.inc(1);
        Connection::new(&vcenter.address, &vcenter.site, outcome.err(), started.elapsed(), steps.taken())
    }

    async fn look(
        &self,
        config: &VcenterConfig,
        collectors: &[Arc<dyn VcenterCollector>],
        vcenter: &Arc<Vcenter>,
        steps: &Steps,
    ) -> Result<(), Failure> {
        let (access, stats) = (self.access.clone(), Arc::clone(&self.stats));
        let mut client = VimClient::new(config, Arc::clone(vcenter), access, stats)?.telling(steps.clone());
        let deadline = Instant::now() + config.connect_timeout + config.call_timeout * 2;
        let mut unreadable = Unreadable::default();
        let read = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(stopped()),
            read = async {
                let hosts = hosts_of(client.read_tree(&PROPERTIES, deadline).await?);
                steps.fact("hosts", hosts.len().to_string());
                unreadable.add(&hosts);
                // What is found beside the tree fails nobody.
                let _ = tokio::time::timeout(ASIDE, look_aside(config, &client, steps)).await;
                // The steps are those of the one read.
                client.tell(Steps::default());
                unreadable.look(&mut client, collectors, &hosts, config.call_timeout).await;
                unreadable.tell(steps);
                Ok(())
            } => read,
        };
        client.tell(steps.clone());
        steps.fact("tls_verified", (client.trust() != Trust::Unverified).to_string());
        steps.fact("tls_trust", client.trust().word());
        if let Some(proxy) = client.proxy() {
            steps.fact("proxy", proxy.to_string());
        }
        if let Some(certificate) = client.certificate() {
            tell_certificate(&certificate, steps);
        }
        client.logout().await;
        read
    }
}

async fn look_aside(config: &VcenterConfig, client: &VimClient, steps: &Steps) {
    let asked = SystemTime::now();
    if let Ok(theirs) = client.server_time().await {
        let took = asked.elapsed().unwrap_or_default();
        let ours = (asked + took / 2).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // The sum makes no difference but to a negative zero.
        let ahead = ((theirs - ours) * 10.0).round() / 10.0 + 0.0;
        steps.fact("clock_ahead_seconds", format!("{ahead:.1}"));
    }
    match client.privileges(&PRIVILEGES).await {
        Ok(Some(privileges)) => {
            let of = |wanted: bool| {
                let own = privileges.iter().filter(|(_, granted)| *granted == wanted);
                own.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
            };
            steps.fact("privileges", of(true));
            steps.fact("privileges_missing", of(false));
        }
        Ok(None) => {}
        Err(error) => steps.fact("privileges_unknown", error.to_string()),
    }
    if !config.hints {
        steps.fact("hints", "off");
        return;
    }
    let Some(live) = client.live() else { return };
    let hints = steps.timed("hints", async {
        let mut listener = Listener::open(&live).await?;
        let heard = listener.next().await;
        let events = match (listener.hears_events(), listener.without_events()) {
            (true, _) => "changes of hosts and alarms".to_owned(),
            (false, None) => "changes of hosts; it has no events".to_owned(),
            (false, Some(why)) => format!("changes of hosts, no events: {why}"),
        };
        listener.close().await;
        heard.map(|_| events)
    });
    steps.fact(
        "hints",
        match hints.await {
            Ok(events) => events,
            Err(error) => format!("none: {error}"),
        },
    );
}

fn tell_certificate(certificate: &Certificate, steps: &Steps) {
    steps.fact("certificate_sha256", certificate.thumbprint.to_string());
    for (name, value) in
        [("certificate_subject", &certificate.subject), ("certificate_issuer", &certificate.issuer)]
    {
        steps.fact(name, value.as_deref().unwrap_or("not readable"));
    }
    if !certificate.chain.is_empty() {
        steps.fact("certificate_chain", certificate.chain.join(" ← "));
    }
    let expires = certificate.expires.and_then(|at| Timestamp::from_second(at as i64).ok());
    if let Some(expires) = expires {
        steps.fact("certificate_expires", expires.to_string());
        let left = expires.duration_since(Timestamp::now()).as_hours() / 24;
        steps.fact("certificate_days_left", left.to_string());
    }
}

fn hosts_of(objects: Vec<ManagedObject>) -> Vec<ManagedObject> {
    objects.into_iter().filter(|object| &*object.kind == "HostSystem").collect()
}
