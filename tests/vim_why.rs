//! Stories of hosts that are not well: what the vCenter says of *why* reaches the readings, at which price.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story may fail")]

mod vim_support;

use esxi_otel_agent::collectors::VcenterCollector;
use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::config::{HostReport, OverallStateConfig};
use esxi_otel_agent::inventory::{Endpoint, Host, Inventory};
use esxi_otel_agent::poller::poll::{PollSetup, VcenterPoller};
use esxi_otel_agent::readings::{Following, Readings};
use esxi_otel_agent::simulator::vcenter::{Status, VcenterFault, VcenterHandle, VcenterSim, VcenterSpec};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::instrument::WithSubscriber;
use vim_support::Setup;
use vim_support::watch::Watch;

fn collector(report: HostReport, interval: Duration) -> Arc<dyn VcenterCollector> {
    Arc::new(OverallState::new(&OverallStateConfig { interval, stale_after: interval * 3, report }))
}

/// A vCenter, its poller, and what came of the polls.
struct Story {
    sim: VcenterHandle,
    poller: VcenterPoller,
    readings: Arc<Readings>,
    changes: Following,
    inventory: Inventory,
    setup: Setup,
}

impl Story {
    async fn begin(spec: VcenterSpec, report: HostReport) -> Self {
        let sim = VcenterSim::start(spec).await.unwrap();
        Self::polling(sim, report, Duration::from_secs(30))
    }

    fn polling(sim: VcenterHandle, report: HostReport, interval: Duration) -> Self {
        let setup = Setup::of(&sim);
        let collectors = vec![collector(report, interval)];
        let vcenter = Arc::new(setup.vcenter.clone());
        let stats = Arc::clone(&setup.stats);
        let poller = VcenterPoller::new(vcenter, setup.config.clone(), collectors, setup.access(), stats);
        let (readings, inventory) = (Readings::new(), Inventory::default());
        let changes = readings.follow();
        Self { sim, poller, readings, changes, inventory, setup }
    }

    async fn of(hosts: usize) -> Self {
        Self::begin(VcenterSpec::new("vc1").fleet(hosts), HostReport::default()).await
    }

    /// Another configuration is taken over.
    async fn reload(&mut self, report: HostReport) {
        let interval = Duration::from_secs(30);
        let collectors = vec![collector(report, interval)];
        self.poller.adapt(&PollSetup { collectors, ..self.setup.polls(interval) }).await;
    }

    /// The poll alone: what is urgent.
    async fn poll(&mut self) {
        let polled = self.poller.poll(&self.inventory).await;
        polled.outcome.unwrap();
        polled.reports.into_iter().for_each(|report| self.readings.record(report));
    }

    /// A poll and what follows it.
    async fn round(&mut self) {
        self.poll().await;
        self.details().await;
    }

    async fn details(&mut self) {
        let details = self.poller.poll_details(&self.inventory).await;
        details.into_iter().for_each(|report| self.readings.record(report));
    }

    /// The series of a metric as `host label… value`, sorted; the vCenter and the site left out.
    fn series(&self, metric: &str) -> Vec<String> {
        let snapshot = self.readings.snapshot();
        let own = snapshot.samples().filter(|sample| sample.def.name == metric);
        let line = |sample: &esxi_otel_agent::metric::Sample| {
            let is_own = |key: &str| !["vcenter", "site", "hostsystem"].contains(&key);
            let labels: Vec<String> = sample
                .attributes
                .iter()
                .filter(|(key, _)| is_own(key))
                .map(|(_, value)| value.to_string())
                .collect();
            let host = sample.attributes.get("hostsystem").unwrap_or("-");
            format!("{host} {} {}", labels.join(" | "), sample.value)
        };
        let mut lines: Vec<String> = own.map(line).collect();
        lines.sort();
        lines
    }

    async fn end(mut self) {
        self.poller.logout().await;
        assert_eq!(self.sim.open_sessions(), 0);
    }
}

#[tokio::test]
async fn a_red_host_says_by_which_alarm_and_whether_somebody_knows() {
    let mut story = Story::of(3).await;
    story.round().await;
    assert!(story.series("esxi.host.alarm").is_empty());
    story.sim.set_status("esx0002.vc1", &Status::Red);
    story.sim.trigger_alarm("esx0002.vc1", "Host memory status", "red");
    story.sim.trigger_alarm("esx0002.vc1", "Host CPU usage", "yellow");
    story.sim.trigger_alarm_below("esx0002.vc1", "Virtual machine CPU usage", "red");
    let before = story.sim.requests();
    story.poll().await;
    assert_eq!(
        story.series("esxi.host.alarm"),
        ["esx0002.vc1 Host CPU usage | yellow 1", "esx0002.vc1 Host memory status | red 1"],
        "and not what is triggered on a virtual machine"
    );
    assert_eq!(story.series("esxi.host.alarm.acknowledged").len(), 2);
    assert_eq!(story.sim.requests() - before, 2, "the hosts, and the names of both alarms");
    story.sim.acknowledge_alarm("esx0002.vc1", "Host memory status");
    story.sim.trigger_alarm("esx0001.vc1", "Host CPU usage", "yellow");
    let before = story.sim.requests();
    story.changes.take();
    story.poll().await;
    assert_eq!(story.sim.requests() - before, 1, "the names are known");
    assert_eq!(
        story.series("esxi.host.alarm.acknowledged"),
        ["esx0001.vc1 Host CPU usage 0", "esx0002.vc1 Host CPU usage 0", "esx0002.vc1 Host memory status 1"]
    );
    assert!(story.changes.take().ended.is_empty(), "a click makes no new series");
    story.sim.clear_alarms("esx0002.vc1");
    story.poll().await;
    assert_eq!(story.series("esxi.host.alarm"), ["esx0001.vc1 Host CPU usage | yellow 1"]);
    assert_eq!(story.changes.take().ended.len(), 4);
    story.end().await;
}

#[tokio::test]
async fn a_renamed_alarm_gets_its_new_name_after_a_while() {
    let mut story = Story::of(1).await;
    story.sim.trigger_alarm("esx0001.vc1", "Host memory status", "red");
    story.round().await;
    story.sim.rename_alarm("Host memory status", "Memory is broken");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(901)).await;
    tokio::time::resume();
    story.round().await;
    story.poll().await;
    assert_eq!(story.series("esxi.host.alarm"), ["esx0001.vc1 Memory is broken | red 1"]);
    story.end().await;
}

#[tokio::test]
async fn an_alarm_without_a_readable_name_has_its_id_and_the_status_does_not_wait_for_it() {
    let mut story = Story::of(1).await;
    story.round().await;
    story.sim.set_status("esx0001.vc1", &Status::Red);
    story.sim.trigger_alarm("esx0001.vc1", "Host memory status", "red");
    let watch = Watch::default();
    async {
        for fault in [VcenterFault::NoPermission, VcenterFault::Http503Text] {
            // The first request is that of the hosts.
            story.sim.fail_nth_call("RetrievePropertiesEx", 2, fault);
            story.poll().await;
            let alarms = story.series("esxi.host.alarm");
            assert!(alarms.len() == 1 && alarms[0].contains("alarm-"), "{alarms:?}");
            assert_eq!(story.series("esxi.overall_status"), ["esx0001.vc1  0"]);
        }
    }
    .with_subscriber(watch.subscriber())
    .await;
    assert_eq!(watch.lines_with("reading Alarm failed").len(), 1, "{:?}", watch.lines_with(""));
    story.end().await;
}

#[tokio::test]
async fn configuration_issues_are_named_by_their_kind_and_their_message_is_for_the_log() {
    let mut story = Story::of(2).await;
    let watch = Watch::default();
    story.sim.set_issues(
        "esx0001.vc1",
        &[
            ("esx.problem.net.redundancy.lost", "Lost uplink redundancy on vSwitch0"),
            ("RemoteTSMEnabledEvent", "SSH for the host esx0001 has been enabled"),
        ],
    );
    async {
        story.round().await;
        story.round().await;
    }
    .with_subscriber(watch.subscriber())
    .await;
    assert_eq!(
        story.series("esxi.host.config_issue"),
        ["esx0001.vc1 RemoteTSMEnabledEvent 1", "esx0001.vc1 esx.problem.net.redundancy.lost 1"]
    );
    assert_eq!(watch.lines_with("Lost uplink redundancy on vSwitch0").len(), 1, "once");
    story.sim.set_issues("esx0001.vc1", &[]);
    story.poll().await;
    assert!(story.series("esxi.host.config_issue").is_empty());
    story.end().await;
}

#[tokio::test]
async fn hardware_that_is_not_well_is_told_and_sensors_of_hosts_that_are_not_green_alone() {
    let mut story = Story::of(40).await;
    story.sim.set_hardware("esx0001.vc1", "memory", "Memory Device 2", "Yellow");
    story.sim.set_hardware("esx0001.vc1", "storage", "Disk 1", "Unknown");
    story.sim.set_sensor("esx0001.vc1", "Power Supply 2 Status", "power", "red");
    story.round().await;
    assert_eq!(
        story.series("esxi.host.hardware.health"),
        ["esx0001.vc1 Memory Device 2 | memory | yellow 1"],
        "it is green, so its sensors are not asked for"
    );
    let before = story.sim.requests();
    story.round().await;
    assert_eq!(story.sim.requests() - before, 1, "hardware was read a moment ago");

    story.sim.set_status("esx0001.vc1", &Status::Red);
    story.sim.set_hardware("esx0001.vc1", "memory", "Memory Device 2", "Red");
    let before = story.sim.requests();
    story.round().await;
    assert_eq!(story.sim.requests() - before, 3, "hardware and sensors of the one host, at once");
    assert_eq!(
        story.series("esxi.host.hardware.health"),
        [
            "esx0001.vc1 Memory Device 2 | memory | red 1",
            "esx0001.vc1 Power Supply 2 Status | power_sensor | red 1",
        ]
    );
    let before = story.sim.requests();
    story.round().await;
    assert_eq!(story.sim.requests() - before, 1, "and not again while it stays red");

    story.sim.set_status("esx0001.vc1", &Status::Green);
    story.poll().await;
    assert_eq!(
        story.series("esxi.host.hardware.health"),
        ["esx0001.vc1 Memory Device 2 | memory | red 1"],
        "what sensors said ends, and the summary is read in its turn"
    );
    story.end().await;
}

#[tokio::test]
async fn services_are_reported_if_they_are_asked_for_and_not_of_hosts_that_are_away() {
    let report = HostReport { services: true, ..HostReport::default() };
    let mut story = Story::begin(VcenterSpec::new("vc1").fleet(2), report).await;
    story.sim.set_service("esx0001.vc1", "ntpd", false, "off");
    story.sim.set_connection("esx0002.vc1", "notResponding");
    story.round().await;
    let services = story.series("esxi.host.service.running");
    assert_eq!(services.len(), 12);
    assert!(services.contains(&"esx0001.vc1 off | ntpd 0".to_owned()), "{services:?}");
    assert!(services.contains(&"esx0001.vc1 automatic | vpxa 1".to_owned()), "{services:?}");
    story.sim.set_power("esx0001.vc1", "standBy");
    story.poll().await;
    assert!(story.series("esxi.host.service.running").is_empty(), "a host at rest runs nothing");
    story.end().await;

    let mut story = Story::of(2).await;
    story.round().await;
    assert!(story.series("esxi.host.service.running").is_empty());
    story.end().await;
}

#[tokio::test]
async fn details_of_a_large_fleet_come_in_portions_and_their_failure_is_none_of_the_poll() {
    let mut story = Story::begin(
        VcenterSpec { page_size: 5000, ..VcenterSpec::new("vc1").fleet(1500) },
        HostReport::default(),
    )
    .await;
    story.poll().await;
    story.sim.fail_next(VcenterFault::NoPermission);
    let watch = Watch::default();
    story.details().with_subscriber(watch.subscriber()).await;
    assert_eq!(watch.lines_with("reading hardware failed").len(), 1);
    assert_eq!(watch.span("poll.detail").error_type.as_deref(), Some("permission_denied"));
    let asked = |story: &Story| story.sim.calls("RetrievePropertiesEx");
    let before = asked(&story);
    story.details().await;
    assert_eq!(asked(&story) - before, 1, "the other 500; those that failed wait for a minute");
    story.details().await;
    assert_eq!(asked(&story) - before, 1);
    assert_eq!(story.sim.logins(), 1);
    story.end().await;
}

#[tokio::test]
async fn a_host_that_is_renamed_or_gone_takes_its_details_along() {
    let mut story = Story::of(3).await;
    for host in ["esx0001.vc1", "esx0002.vc1"] {
        story.sim.set_hardware(host, "cpu", "CPU 2", "Red");
    }
    story.round().await;
    story.sim.rename("esx0001.vc1", "esx0001b.vc1");
    story.sim.remove_host("esx0002.vc1");
    story.poll().await;
    assert!(story.series("esxi.host.hardware.health").is_empty());
    story.details().await;
    story.round().await;
    assert_eq!(story.series("esxi.host.hardware.health"), ["esx0001b.vc1 CPU 2 | cpu | red 1"]);
    story.end().await;
}

fn known(address: &str) -> Host {
    let endpoint = Endpoint { host: address.into(), port: None };
    Host { address: address.into(), endpoint, site: "eu-1a".into(), labels: BTreeMap::new() }
}

#[tokio::test]
async fn a_host_is_recognized_by_the_address_that_it_is_managed_by() {
    let mut story = Story::of(3).await;
    for (host, address) in
        [("esx0001.vc1", "10.0.0.1"), ("esx0002.vc1", "10.0.0.2"), ("esx0003.vc1", "10.0.0.9")]
    {
        story.sim.set_management_address(host, address);
    }
    story.inventory =
        Inventory::new(vec![known("esx0001.cc"), known("10.0.0.2"), known("192.0.2.1")], Vec::new());
    story.round().await;
    story.poll().await;
    assert_eq!(
        story.series("esxi.host.maintenance_mode"),
        ["esx0001.vc1 esx0001.cc 0", "esx0002.vc1 10.0.0.2 0", "esx0003.vc1  0"],
        "vmk1 has 192.0.2.1, and is not for management"
    );
    assert_eq!(story.readings.snapshot().samples().filter(|s| s.def.name == "esxi.host.info").count(), 3);
    story.end().await;

    let mut story = Story::of(3).await;
    story.inventory = Inventory::new(vec![known("esx0001.cc")], Vec::new());
    story.round().await;
    assert_eq!(
        story.sim.calls("RetrievePropertiesEx"),
        2,
        "where no host is known by an IP address, nobody asks"
    );
    story.end().await;
}

#[tokio::test]
async fn a_reload_asks_nothing_anew_and_knows_who_is_who() {
    let mut story = Story::of(2).await;
    story.sim.set_management_address("esx0001.vc1", "10.0.0.1");
    story.sim.trigger_alarm("esx0002.vc1", "Host memory status", "red");
    story.inventory = Inventory::new(vec![known("10.0.0.1")], Vec::new());
    // The address is found in the first, counts in the second, and details carry it from the third on.
    for _ in 0..3 {
        story.round().await;
    }
    let joined = ["esx0001.vc1 10.0.0.1 0", "esx0002.vc1  0"];
    assert_eq!(story.series("esxi.host.maintenance_mode"), joined);
    let before = story.sim.requests();
    story.reload(HostReport::default()).await;
    story.round().await;
    assert_eq!(story.series("esxi.host.maintenance_mode"), joined);
    assert_eq!(story.series("esxi.host.alarm"), ["esx0002.vc1 Host memory status | red 1"]);
    assert_eq!(story.sim.requests() - before, 1, "the poll: neither details nor names of alarms");
    story.end().await;
}

#[tokio::test]
async fn details_that_are_switched_off_end_with_the_next_poll() {
    let report = HostReport { services: true, ..HostReport::default() };
    let mut story = Story::begin(VcenterSpec::new("vc1").fleet(2), report).await;
    story.round().await;
    assert!(!story.series("esxi.host.service.running").is_empty());
    story.reload(HostReport::default()).await;
    story.sim.fail_next(VcenterFault::Http503Text);
    assert!(story.poller.poll(&story.inventory).await.outcome.is_err());
    story.poll().await;
    assert!(story.series("esxi.host.service.running").is_empty());
    story.end().await;
}

#[tokio::test]
async fn a_login_that_hangs_holds_details_up_no_longer_than_the_poll_may_take() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(2)).await.unwrap();
    let mut story = Story::polling(sim, HostReport::default(), Duration::from_secs(2));
    story.poll().await;
    story.sim.expire_sessions();
    story.sim.fail_next_call("Login", VcenterFault::Hang);
    let began = std::time::Instant::now();
    story.details().await;
    // A call may take half a minute.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(story.sim.calls("Login"), 2);
    story.poller.logout().await;
}

#[tokio::test]
async fn properties_that_an_older_api_does_not_have_are_left_out_of_details_too() {
    let unknown = vec!["runtime.healthSystemRuntime.hardwareStatusInfo".to_owned(), "configIssue".to_owned()];
    let spec = VcenterSpec { unknown_properties: unknown, ..VcenterSpec::new("vc1").fleet(2) };
    let mut story = Story::begin(spec, HostReport::default()).await;
    let watch = Watch::default();
    async {
        story.round().await;
        story.round().await;
    }
    .with_subscriber(watch.subscriber())
    .await;
    assert_eq!(watch.lines_with("has no property").len(), 2);
    assert_eq!(story.series("esxi.overall_status").len(), 2);
    assert_eq!(story.sim.calls("RetrievePropertiesEx"), 4);
    story.end().await;
}
