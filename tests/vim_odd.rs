//! Stories of vCenters that answer oddly or badly, and of hosts in unusual states.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story may fail")]

mod vim_support;

use esxi_otel_agent::collectors::VcenterCollector;
use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::config::{HostReport, OverallStateConfig};
use esxi_otel_agent::inventory::{Host, Inventory};
use esxi_otel_agent::outcome::FailureReason;
use esxi_otel_agent::poller::poll::VcenterPoller;
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::simulator::vcenter::{Status, VcenterFault, VcenterHandle, VcenterSim, VcenterSpec};
use std::sync::Arc;
use std::time::Duration;
use tracing::instrument::WithSubscriber;
use vim_support::Setup;
use vim_support::watch::Watch;

fn poller(setup: &Setup) -> VcenterPoller {
    let (interval, stale_after) = (Duration::from_secs(30), Duration::from_secs(90));
    let config = OverallStateConfig { interval, stale_after, report: HostReport::default() };
    let collectors: Vec<Arc<dyn VcenterCollector>> = vec![Arc::new(OverallState::new(&config))];
    let vcenter = Arc::new(setup.vcenter.clone());
    VcenterPoller::new(vcenter, setup.config.clone(), collectors, setup.access(), Arc::clone(&setup.stats))
}

async fn poll(poller: &mut VcenterPoller, readings: &Readings) -> Result<(), FailureReason> {
    let polled = poller.poll(&Inventory::default()).await;
    polled.reports.into_iter().for_each(|report| readings.record(report));
    polled.outcome.map_err(|failure| failure.reason)
}

/// `host state value` of each series of a metric whose value is not 0, sorted.
fn set(readings: &Readings, metric: &str) -> Vec<String> {
    let snapshot = readings.snapshot();
    let own = snapshot.samples().filter(|sample| sample.def.name == metric && sample.value != 0.0);
    let line = |sample: &esxi_otel_agent::metric::Sample| {
        let get = |key| sample.attributes.get(key).unwrap_or("-").to_owned();
        format!("{} {} {}", get("hostsystem"), get("state"), sample.value)
    };
    let mut lines: Vec<String> = own.map(line).collect();
    lines.sort();
    lines
}

async fn fleet(hosts: usize) -> VcenterHandle {
    VcenterSim::start(VcenterSpec::new("vc1").fleet(hosts)).await.unwrap()
}

#[tokio::test]
async fn hosts_that_are_away_at_rest_or_under_repair_are_each_told_as_they_are() {
    let sim = fleet(6).await;
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let mut poller = poller(&setup);
    sim.set_connection("esx0001.vc1", "disconnected");
    sim.set_connection("esx0002.vc1", "notResponding");
    sim.set_status("esx0002.vc1", &Status::Gray);
    sim.set_power("esx0002.vc1", "unknown");
    sim.set_power("esx0003.vc1", "poweredOff");
    sim.unset("esx0003.vc1", "runtime.bootTime");
    sim.set_power("esx0004.vc1", "standBy");
    sim.set_maintenance("esx0005.vc1", true);
    sim.set_quarantine("esx0006.vc1", true);
    poll(&mut poller, &readings).await.unwrap();
    let connection = set(&readings, "esxi.host.connection_state");
    assert_eq!(
        connection[..3],
        ["esx0001.vc1 disconnected 1", "esx0002.vc1 notResponding 1", "esx0003.vc1 connected 1"]
    );
    assert_eq!(
        set(&readings, "esxi.host.power_state"),
        [
            "esx0001.vc1 poweredOn 1",
            "esx0002.vc1 unknown 1",
            "esx0003.vc1 poweredOff 1",
            "esx0004.vc1 standBy 1",
            "esx0005.vc1 poweredOn 1",
            "esx0006.vc1 poweredOn 1",
        ]
    );
    assert_eq!(set(&readings, "esxi.host.maintenance_mode"), ["esx0005.vc1 - 1"]);
    assert_eq!(set(&readings, "esxi.host.quarantine_mode"), ["esx0006.vc1 - 1"]);
    assert_eq!(set(&readings, "esxi.host.boot.timestamp").len(), 5, "what was never booted has no time");
    assert_eq!(set(&readings, "esxi.overall_status")[1], "esx0002.vc1 - -1");
    poller.logout().await;
}

#[tokio::test]
async fn a_host_that_moves_to_another_cluster_leaves_no_old_series() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").host("DC", "a", "esx1").host("DC", "b", "esx2"))
        .await
        .unwrap();
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let following = readings.follow();
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    following.take();
    sim.move_host("esx1", "b");
    assert!(poller.poll_hosts(&[sim.id("esx1").into()], &Inventory::default()).await.is_whole);
    poll(&mut poller, &readings).await.unwrap();
    let snapshot = readings.snapshot();
    let mut clusters: Vec<_> = snapshot
        .samples()
        .filter(|sample| sample.def.name == "esxi.host.info")
        .map(|sample| {
            (sample.attributes.get("hostsystem").unwrap(), sample.attributes.get("cluster").unwrap())
        })
        .collect();
    clusters.sort();
    assert_eq!(clusters, [("esx1", "b"), ("esx2", "b")]);
    let changes = following.take();
    assert_eq!((changes.updated.len(), changes.ended.len()), (1, 1), "{changes:?}");
    poller.logout().await;
}

#[tokio::test]
async fn two_vcenters_may_have_a_host_of_the_same_name() {
    let (one, two) = (fleet(1).await, fleet(1).await);
    two.set_status("esx0001.vc1", &Status::Red);
    let readings = Readings::new();
    for sim in [&one, &two] {
        let setup = Setup::of(sim);
        let mut poller = poller(&setup);
        poll(&mut poller, &readings).await.unwrap();
        poller.logout().await;
    }
    let snapshot = readings.snapshot();
    let status = snapshot.samples().filter(|sample| sample.def.name == "esxi.overall_status");
    let mut status: Vec<_> =
        status.map(|s| (s.attributes.get("vcenter").unwrap().to_owned(), s.value)).collect();
    status.sort_by(|a, b| a.1.total_cmp(&b.1));
    assert_eq!(status, [(two.address().to_string(), 0.0), (one.address().to_string(), 2.0)]);
}

#[tokio::test]
async fn everything_comes_in_one_answer_where_that_is_asked_for() {
    let spec = VcenterSpec { odd_prefixes: true, ..VcenterSpec::new("vc1").fleet(250) };
    let sim = VcenterSim::start(spec).await.unwrap();
    let (mut setup, readings) = (Setup::of(&sim), Readings::new());
    setup.config.unpaged = true;
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    assert_eq!(set(&readings, "esxi.overall_status").len(), 250);
    assert_eq!((sim.calls("RetrieveProperties"), sim.calls("RetrievePropertiesEx")), (1, 0));
    sim.expire_sessions();
    poll(&mut poller, &readings).await.unwrap();
    assert_eq!((sim.calls("RetrieveProperties"), sim.logins()), (3, 2));
    sim.fail_next(VcenterFault::CutXml);
    assert_eq!(poll(&mut poller, &readings).await, Err(FailureReason::AnswerUnreadable));
    assert_eq!(set(&readings, "esxi.overall_status").len(), 250, "half a fleet is never published");
    poller.logout().await;
    assert_eq!(sim.open_sessions(), 0);
}

#[tokio::test]
async fn a_bad_answer_fails_the_poll_by_its_reason_and_the_next_poll_is_good() {
    use FailureReason::{
        AnswerTooLarge, AnswerUnreadable, CommandFailed, ConnectionLost, PermissionDenied, ProtocolError,
        VcenterUnavailable,
    };
    let sim = fleet(150).await;
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let following = readings.follow();
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    for (call, fault, reason) in [
        ("RetrievePropertiesEx", VcenterFault::XmlBomb, AnswerUnreadable),
        ("RetrievePropertiesEx", VcenterFault::NotXml, AnswerUnreadable),
        ("RetrievePropertiesEx", VcenterFault::Html, AnswerUnreadable),
        ("RetrievePropertiesEx", VcenterFault::Redirect, ProtocolError),
        ("RetrievePropertiesEx", VcenterFault::NoPermission, PermissionDenied),
        ("RetrievePropertiesEx", VcenterFault::FaultWith200, PermissionDenied),
        ("RetrievePropertiesEx", VcenterFault::Http502Text, VcenterUnavailable),
        ("RetrievePropertiesEx", VcenterFault::Oversize, AnswerTooLarge),
        ("ContinueRetrievePropertiesEx", VcenterFault::CutBody, ConnectionLost),
        ("ContinueRetrievePropertiesEx", VcenterFault::CutXml, AnswerUnreadable),
        ("ContinueRetrievePropertiesEx", VcenterFault::SpentToken, CommandFailed),
        ("ContinueRetrievePropertiesEx", VcenterFault::Close, ConnectionLost),
    ] {
        following.take();
        sim.fail_next_call(call, fault);
        assert_eq!(poll(&mut poller, &readings).await, Err(reason), "{fault:?}");
        assert!(following.take().is_empty(), "{fault:?}: nothing is published");
        assert_eq!(poll(&mut poller, &readings).await, Ok(()), "after {fault:?}");
    }
    assert_eq!((sim.logins(), sim.failed_logins()), (1, 0), "none of these is a matter of the session");
    poller.logout().await;
}

#[tokio::test]
async fn a_clock_that_is_hours_off_changes_nothing_but_the_times_it_tells() {
    let sim = fleet(2).await;
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let mut poller = poller(&setup);
    sim.set_boot_time("esx0001.vc1", "2199-01-01T00:00:00+14:00");
    sim.set_boot_time("esx0002.vc1", "yesterday");
    poll(&mut poller, &readings).await.unwrap();
    assert_eq!(set(&readings, "esxi.host.boot.timestamp"), ["esx0001.vc1 - 7226532000"]);
    assert_eq!(set(&readings, "esxi.overall_status").len(), 2);
    poller.logout().await;
}

#[tokio::test]
async fn huge_and_hostile_names_stay_what_they_are_and_harm_no_neighbour() {
    let (huge, hostile) = ("x".repeat(100_000), "a\"b\n<&>\u{202e}%2F%zz");
    let spec = VcenterSpec::new("vc1").fleet(1).host("DC", "c", huge).host("DC", "c", "y".repeat(2000));
    let sim = VcenterSim::start(spec.host("DC", "c", hostile)).await.unwrap();
    let (setup, readings) = (Setup::of(&sim), Readings::new());
    let mut poller = poller(&setup);
    poll(&mut poller, &readings).await.unwrap();
    let names = set(&readings, "esxi.overall_status");
    assert_eq!(names.len(), 3, "the huge one has no readable name: {names:?}");
    assert!(names.contains(&format!("{hostile} - 2")), "{names:?}");
    assert!(names.contains(&format!("{} - 2", "y".repeat(256))));
    poller.logout().await;
}

/// The attribute `address` of each host's series, sorted.
fn addresses(readings: &Readings) -> Vec<String> {
    let snapshot = readings.snapshot();
    let own = snapshot.samples().filter(|sample| sample.def.name == "esxi.host.info");
    let line = |sample: &esxi_otel_agent::metric::Sample| {
        let get = |key| sample.attributes.get(key).unwrap_or("-").to_owned();
        format!("{} {}", get("hostsystem"), get("address"))
    };
    let mut lines: Vec<String> = own.map(line).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn an_address_that_several_hosts_could_have_is_nobodys_which_is_said_when_it_changes() {
    let spec = ["esx1.a.org", "esx1.b.org", "esx2.a.org", "esx2.b.org", "esx3.c.org"]
        .into_iter()
        .fold(VcenterSpec::new("vc1"), |spec, host| spec.host("DC", "c", host));
    let sim = VcenterSim::start(spec).await.unwrap();
    let (setup, readings, watch) = (Setup::of(&sim), Readings::new(), Watch::default());
    let host = |address: &str| Host {
        address: address.into(),
        endpoint: address.parse().unwrap(),
        site: "eu-1a".into(),
        labels: Default::default(),
    };
    let hosts = ["esx1", "esx2.a.org", "esx3.d.org", "esx3.e.org"].map(host);
    let inventory = Inventory::new(hosts.into(), Vec::new());
    let said = || watch.lines_with("without the attribute address");
    let story = async {
        let mut poller = poller(&setup);
        for _ in 0..2 {
            let polled = poller.poll(&inventory).await;
            polled.reports.into_iter().for_each(|report| readings.record(report));
        }
        assert_eq!(
            addresses(&readings),
            ["esx1.a.org -", "esx1.b.org -", "esx2.a.org esx2.a.org", "esx2.b.org -", "esx3.c.org -"],
            "of those that are like it in their first label the one of that very name has it"
        );
        assert_eq!(said().len(), 1, "{:?}", said());
        let names =
            r#""esx1" may be "esx1.a.org" or "esx1.b.org"; several of the inventory may be "esx3.c.org""#;
        assert!(said()[0].contains(names), "{:?}", said());

        sim.rename("esx1.b.org", "esx4.b.org");
        let polled = poller.poll(&inventory).await;
        polled.reports.into_iter().for_each(|report| readings.record(report));
        assert_eq!(addresses(&readings)[0], "esx1.a.org esx1");
        assert!(said().len() == 2 && !said()[1].contains("esx1"), "{:?}", said());
        poller.logout().await;
    };
    story.with_subscriber(watch.subscriber()).await;
}
