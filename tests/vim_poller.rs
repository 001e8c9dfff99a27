//! Stories of polls: what reaches the readings, and what the traces and the log say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story may fail")]

mod vim_support;

use esxi_otel_agent::collectors::VcenterCollector;
use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::config::{HostReport, OverallStateConfig};
use esxi_otel_agent::inventory::{Endpoint, Host, Inventory};
use esxi_otel_agent::outcome::FailureReason;
use esxi_otel_agent::poller::poll::{Polled, VcenterPoller};
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::simulator::vcenter::{
    HostSpec, Status, VcenterFault, VcenterHandle, VcenterSim, VcenterSpec,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::instrument::WithSubscriber;
use vim_support::Setup;
use vim_support::watch::Watch;

fn poller(setup: &Setup) -> VcenterPoller {
    poller_each(setup, Duration::from_secs(30))
}

fn poller_each(setup: &Setup, interval: Duration) -> VcenterPoller {
    let config =
        OverallStateConfig { interval, stale_after: Duration::from_secs(90), report: HostReport::default() };
    let collectors: Vec<Arc<dyn VcenterCollector>> = vec![Arc::new(OverallState::new(&config))];
    let vcenter = Arc::new(setup.vcenter.clone());
    VcenterPoller::new(vcenter, setup.config.clone(), collectors, setup.access(), Arc::clone(&setup.stats))
}

/// Polls, and stores what came of it.
async fn poll(poller: &mut VcenterPoller, readings: &Readings) -> Result<(), FailureReason> {
    let Polled { reports, outcome, .. } = poller.poll(&Inventory::default()).await;
    reports.into_iter().for_each(|report| readings.record(report));
    outcome.map_err(|failure| failure.reason)
}

/// `host value` of each series of a metric, sorted.
fn values(readings: &Readings, metric: &str) -> Vec<String> {
    let snapshot = readings.snapshot();
    let own = snapshot.samples().filter(|sample| sample.def.name == metric);
    let mut lines: Vec<String> =
        own.map(|s| format!("{} {}", s.attributes.get("hostsystem").unwrap_or("-"), s.value)).collect();
    lines.sort();
    lines
}

async fn three_hosts() -> VcenterHandle {
    let spec = VcenterSpec::new("vc1")
        .host("eu/DC1", "prod/cluster 1", "esx1.example.org")
        .host("eu/DC1", "prod/cluster 1", "esx2.example.org")
        .standalone("eu/DC1", "esx3/lab");
    VcenterSim::start(spec).await.unwrap()
}

#[tokio::test]
async fn a_status_that_nobody_announces_is_seen_at_the_next_poll() {
    let sim = three_hosts().await;
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    assert_eq!(
        values(&readings, "esxi.overall_status"),
        ["esx1.example.org 2", "esx2.example.org 2", "esx3/lab 2"]
    );
    sim.set_status("esx1.example.org", &Status::Red);
    sim.set_status("esx2.example.org", &Status::Gray);
    poll(&mut poller, &readings).await.unwrap();
    assert_eq!(
        values(&readings, "esxi.overall_status"),
        ["esx1.example.org 0", "esx2.example.org -1", "esx3/lab 2"]
    );
    assert_eq!(sim.calls("RetrievePropertiesEx"), 2, "one request a poll");
    poller.logout().await;
    assert_eq!(sim.open_sessions(), 0);
}

#[tokio::test]
async fn the_tree_names_cluster_and_datacenter_and_the_inventory_the_address() {
    let sim = three_hosts().await;
    let setup = Setup::of(&sim);
    let mut poller = poller(&setup);
    let host = |address: &str| Host {
        address: address.into(),
        endpoint: Endpoint { host: address.into(), port: None },
        site: "eu-1a".into(),
        labels: BTreeMap::new(),
    };
    let inventory =
        Inventory::new(vec![host("esx1.cc.example.org"), host("esx9.cc.example.org")], Vec::new());
    let polled = poller.poll(&inventory).await;
    let info: Vec<String> = polled.reports[0]
        .readings
        .iter()
        .flat_map(|reading| &reading.samples)
        .filter(|sample| sample.def.name == "esxi.host.info")
        .map(|s| {
            let get = |key| s.attributes.get(key).unwrap_or("-");
            format!("{}: {} {} {}", get("hostsystem"), get("address"), get("datacenter"), get("cluster"))
        })
        .collect();
    assert_eq!(
        info,
        [
            "esx1.example.org: esx1.cc.example.org DC1 cluster 1",
            "esx2.example.org: - DC1 cluster 1",
            "esx3/lab: - DC1 -",
        ]
    );
    poller.logout().await;
}

#[tokio::test]
async fn hosts_that_come_go_and_change_their_names_leave_no_series_behind() {
    let sim = three_hosts().await;
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let following = readings.follow();
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    following.take();
    sim.remove_host("esx1.example.org");
    sim.rename("esx2.example.org", "esx2b.example.org");
    sim.add_host(&HostSpec { name: "esx4".into(), datacenter: "DC2".into(), cluster: Some("c".into()) });
    poll(&mut poller, &readings).await.unwrap();
    assert_eq!(values(&readings, "esxi.overall_status"), ["esx2b.example.org 2", "esx3/lab 2", "esx4 2"]);
    let changes = following.take();
    let mut ended: Vec<_> = changes
        .ended
        .iter()
        .filter(|(def, _)| def.name == "esxi.overall_status")
        .map(|(_, attributes)| attributes.get("hostsystem").unwrap().to_owned())
        .collect();
    ended.sort();
    assert_eq!(ended, ["esx1.example.org", "esx2.example.org"], "their end is said");
    poller.logout().await;
}

#[tokio::test]
async fn half_a_fleet_is_never_published() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(250)).await.unwrap();
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let mut poller = poller(&setup);
    sim.fail_next_call("ContinueRetrievePropertiesEx", VcenterFault::CutXml);
    assert_eq!(poll(&mut poller, &readings).await, Err(FailureReason::AnswerUnreadable));
    assert!(readings.snapshot().is_empty());
    poll(&mut poller, &readings).await.unwrap();
    assert_eq!(values(&readings, "esxi.overall_status").len(), 250);
    poller.logout().await;
}

#[tokio::test]
async fn no_host_after_many_is_suspect_and_the_old_readings_stand() {
    let sim = three_hosts().await;
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    for host in sim.hosts() {
        sim.remove_host(&host);
    }
    assert_eq!(poll(&mut poller, &readings).await, Err(FailureReason::AnswerUnreadable));
    assert_eq!(values(&readings, "esxi.overall_status").len(), 3);
    poller.logout().await;
}

#[tokio::test]
async fn a_vcenter_without_hosts_is_fine() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1")).await.unwrap();
    let setup = Setup::of(&sim);
    let mut poller = poller(&setup);
    assert_eq!(poll(&mut poller, &Readings::new()).await, Ok(()));
    poller.logout().await;
}

#[tokio::test]
async fn what_an_older_api_does_not_know_is_dropped_and_said_once() {
    let unknown = ["runtime.inQuarantineMode", "summary.hardware.model"].map(str::to_owned).to_vec();
    let spec = VcenterSpec {
        unknown_properties: unknown,
        api_version: "6.0".into(),
        ..VcenterSpec::new("vc1").fleet(3)
    };
    let sim = VcenterSim::start(spec).await.unwrap();
    let (setup, readings, watch) = (Setup::of(&sim), Readings::new(), Watch::default());
    let mut poller = poller(&setup);
    async {
        poll(&mut poller, &readings).await.unwrap();
        poll(&mut poller, &readings).await.unwrap();
        poller.logout().await;
    }
    .with_subscriber(watch.subscriber())
    .await;
    assert_eq!(values(&readings, "esxi.overall_status").len(), 3);
    assert_eq!(values(&readings, "esxi.host.quarantine_mode").len(), 0);
    assert_eq!(sim.calls("RetrievePropertiesEx"), 4, "three for the first poll, one for the second");
    assert_eq!(watch.lines_with("has no property").len(), 2, "{:?}", watch.lines_with(""));
}

#[tokio::test]
async fn what_may_not_be_read_is_left_out_and_said_once() {
    let sim = three_hosts().await;
    sim.deny("esx1.example.org", "overallStatus");
    sim.set_status("esx2.example.org", &Status::Other("purple".into()));
    let (setup, readings, watch) = (Setup::of(&sim), Readings::new(), Watch::default());
    let mut poller = poller(&setup);
    async {
        for _ in 0..3 {
            poll(&mut poller, &readings).await.unwrap();
        }
        poller.logout().await;
    }
    .with_subscriber(watch.subscriber())
    .await;
    assert_eq!(values(&readings, "esxi.overall_status"), ["esx2.example.org -1", "esx3/lab 2"]);
    assert_eq!(values(&readings, "esxi.host.maintenance_mode").len(), 3, "the host stays");
    assert_eq!(watch.lines_with("can't be read").len(), 1);
    assert_eq!(watch.lines_with("purple").len(), 1);
}

#[tokio::test]
async fn a_poll_never_outlasts_its_interval_and_the_session_survives_that() {
    let sim = three_hosts().await;
    let setup = Setup::of(&sim);
    let (mut poller, watch) = (poller_each(&setup, Duration::from_secs(2)), Watch::default());
    poll(&mut poller, &Readings::new()).await.unwrap();
    sim.fail_next(VcenterFault::Hang);
    let failed = poll(&mut poller, &Readings::new()).with_subscriber(watch.subscriber()).await;
    assert_eq!(failed, Err(FailureReason::CommandTimeout));
    for span in ["RetrievePropertiesEx", "poll"] {
        assert_eq!(watch.span(span).error_type.as_deref(), Some("command_timeout"), "{span}");
    }
    assert_eq!(poll(&mut poller, &Readings::new()).await, Ok(()));
    assert_eq!(sim.logins(), 1);
    poller.logout().await;
    assert_eq!(sim.open_sessions(), 0);
}

#[tokio::test]
async fn a_vcenter_whose_every_call_nearly_takes_too_long_is_read_all_the_same_where_nobody_waits() {
    let sim = three_hosts().await;
    let setup = Setup::of(&sim).call_timeout(Duration::from_millis(4000));
    sim.set_latency(Duration::from_millis(1500));
    let vcenter = Arc::new(setup.vcenter.clone());
    let mut poller =
        VcenterPoller::new(vcenter, setup.config.clone(), vec![], setup.access(), Arc::clone(&setup.stats));
    assert_eq!(poll(&mut poller, &Readings::new()).await, Ok(()));
    poller.logout().await;
    assert_eq!((sim.logins(), sim.open_sessions()), (1, 0));
}

#[tokio::test]
async fn a_trace_shows_each_call_of_a_poll() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(150)).await.unwrap();
    let (setup, watch) = (Setup::of(&sim), Watch::default());
    let mut poller = poller(&setup);
    poll(&mut poller, &Readings::new()).with_subscriber(watch.subscriber()).await.unwrap();
    let names: Vec<String> = watch.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(
        names,
        ["RetrieveServiceContent", "Login", "RetrievePropertiesEx", "ContinueRetrievePropertiesEx", "poll"]
    );
    let root = watch.span("poll");
    assert_eq!(root.attribute("vim.objects"), "158");
    assert_eq!((root.attribute("esxi.site"), root.parent), ("eu-1a".to_owned(), None));
    let page = watch.span("ContinueRetrievePropertiesEx");
    assert_eq!(page.parent, Some(root.id));
    assert_eq!(page.kind, "Client");
    for (key, value) in [
        ("rpc.system.name", "soap"),
        ("rpc.method", "VimPort/ContinueRetrievePropertiesEx"),
        ("server.address", "127.0.0.1"),
        ("server.port", &sim.address().port().to_string()),
        ("http.response.status_code", "200"),
        ("vim.page", "2"),
    ] {
        assert_eq!(page.attribute(key), value, "{key}");
    }
    assert!(page.attribute("http.response.body.size").parse::<usize>().unwrap() > 1000);
    assert!(!watch.everything().contains("p<&>w"), "no secret in spans and log");

    sim.fail_next(VcenterFault::NoPermission);
    poll(&mut poller, &Readings::new()).with_subscriber(watch.subscriber()).await.unwrap_err();
    let failed = watch.span("RetrievePropertiesEx");
    assert_eq!(failed.attribute("vim.fault"), "NoPermission");
    assert_eq!(failed.attribute("http.response.status_code"), "500");
    assert_eq!(failed.error_type.as_deref(), Some("permission_denied"));
    assert_eq!(watch.span("poll").error_type.as_deref(), Some("permission_denied"));
    poller.logout().await;
}

#[tokio::test]
async fn a_ca_file_that_is_none_fails_the_poll_and_not_the_agent() {
    let sim = three_hosts().await;
    let setup = Setup::of(&sim).ca("no certificate");
    assert_eq!(poll(&mut poller(&setup), &Readings::new()).await, Err(FailureReason::Tls));
    assert_eq!(sim.requests(), 0);
}

/// Reads some hosts, and stores what came of it: whether all of them were read.
async fn poll_hosts(poller: &mut VcenterPoller, readings: &Readings, ids: &[&str]) -> bool {
    let ids: Vec<Arc<str>> = ids.iter().map(|id| Arc::from(*id)).collect();
    let polled = poller.poll_hosts(&ids, &Inventory::default()).await;
    polled.outcome.unwrap();
    polled.reports.into_iter().for_each(|report| readings.record(report));
    polled.is_whole
}

#[tokio::test]
async fn hosts_of_a_hint_are_read_alone_and_the_series_of_the_others_stand() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(250)).await.unwrap();
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let following = readings.follow();
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    let before = sim.requests();
    sim.set_status("esx0002.vc1", &Status::Red);
    sim.set_status("esx0003.vc1", &Status::Yellow);
    following.take();
    assert!(!poll_hosts(&mut poller, &readings, &[&sim.id("esx0002.vc1")]).await);
    assert_eq!(sim.requests(), before + 1, "one request, without pages");
    let status = values(&readings, "esxi.overall_status");
    assert_eq!(status.len(), 250);
    assert_eq!(status[..4], ["esx0001.vc1 2", "esx0002.vc1 0", "esx0003.vc1 2", "esx0004.vc1 2"]);
    let changes = following.take();
    assert_eq!(
        (changes.updated.len(), changes.ended.len()),
        (1, 0),
        "cluster and datacenter stay: {changes:?}"
    );
    poller.logout().await;
}

#[tokio::test]
async fn a_hint_about_a_host_that_is_new_gone_renamed_or_moved_reads_the_whole_tree() {
    let sim = three_hosts().await;
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let mut poller = poller(&setup);
    let [esx1, esx2, esx3] = ["esx1.example.org", "esx2.example.org", "esx3/lab"].map(|host| sim.id(host));
    assert!(poll_hosts(&mut poller, &readings, &[&esx1]).await, "nothing is known of the tree yet");
    assert!(!poll_hosts(&mut poller, &readings, &[&esx1, &esx3]).await);
    sim.remove_host("esx1.example.org");
    assert!(poll_hosts(&mut poller, &readings, &[&esx1, &esx2]).await);
    assert_eq!(values(&readings, "esxi.overall_status"), ["esx2.example.org 2", "esx3/lab 2"]);
    sim.rename("esx2.example.org", "esx2b.example.org");
    assert!(poll_hosts(&mut poller, &readings, &[&esx2]).await);
    assert_eq!(values(&readings, "esxi.overall_status"), ["esx2b.example.org 2", "esx3/lab 2"]);
    sim.add_host(&HostSpec { name: "esx4".into(), datacenter: "DC2".into(), cluster: Some("c".into()) });
    assert!(poll_hosts(&mut poller, &readings, &[&sim.id("esx4")]).await);
    assert_eq!(values(&readings, "esxi.overall_status").len(), 3);
    assert_eq!(sim.logins(), 1, "an object that is gone is no session that is gone");
    sim.expire_sessions();
    assert!(!poll_hosts(&mut poller, &readings, &[&esx2]).await);
    assert_eq!(sim.logins(), 2);
    poller.logout().await;
}
