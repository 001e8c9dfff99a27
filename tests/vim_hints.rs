//! Stories of an agent and its vCenters: what they tell of their own accord, and sessions that end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a story may fail"
)]

mod harness;
mod vim_support;

use esxi_otel_agent::inventory::{Inventory, Vcenter};
use esxi_otel_agent::poller::VcenterPolls;
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::simulator::vcenter::{
    HostSpec, Pushes, Status, VcenterFault, VcenterHandle, VcenterSim, VcenterSpec,
};
use esxi_otel_agent::stats::Stats;
use harness::estate::{Estate, RunningAgent};
use harness::{until, until_equal};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

const HOURLY: (&str, &str) = ("collectors.overall_state_collector.interval", "1h");
const EVERY_SECOND: (&str, &str) = ("collectors.overall_state_collector.interval", "1s");
const ONLY_VCENTERS: (&str, &str) = ("collectors.critical_service_collector.enabled", "false");

fn counted(stats: &Stats, outcome: &str) -> f64 {
    let samples = stats.samples();
    let own = samples.iter().filter(|sample| sample.def.name == "esxi.agent.vcenter.hints");
    own.filter(|sample| sample.attributes.get("outcome") == Some(outcome)).map(|sample| sample.value).sum()
}

/// Most reads of a host that turns red: its state, its hardware and its sensors.
const WHY: u64 = 3;

/// An agent that listens at vCenter 0.
async fn listening(estate: &Estate, interval: (&str, &str)) -> RunningAgent {
    let agent = estate.agent(&[interval, ONLY_VCENTERS]).await;
    until_listening(&agent, 1.0).await;
    agent
}

/// So many times it has begun to listen, and read what may have changed before: from now on a change is
/// news.
async fn until_listening(agent: &RunningAgent, times: f64) {
    until("the listener", || (counted(&agent.handle.stats, "read") >= times).then_some(())).await;
}

async fn turns(estate: &Estate, status: &Status, value: f64) {
    estate.vcenters[0].set_status(&estate.host(0), status);
    estate.arrives("esxi.overall_status", &[("hostsystem", &estate.host(0))], value).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_turns_red_is_at_the_collector_at_once_by_its_property_or_by_an_event() {
    for (pushes, fires_events) in [(Pushes::Everything, false), (Pushes::AllButStatus, true)] {
        let estate = Estate::with_vcenters(3, 1, |_, spec| {
            spec.pushes = pushes;
            spec.fires_events = fires_events;
        })
        .await;
        let agent = listening(&estate, HOURLY).await;
        let reads = estate.vcenters[0].calls("RetrievePropertiesEx");
        // The next poll is an hour away.
        turns(&estate, &Status::Red, 0.0).await;
        let reads = estate.vcenters[0].calls("RetrievePropertiesEx") - reads;
        assert!((1..=WHY).contains(&reads), "the host, and why it is red: {reads} reads");
        assert_eq!(estate.vcenters[0].most_sessions(), 1, "the listener has no session of its own");
        let ends = Instant::now();
        agent.stop().await;
        assert_eq!((estate.vcenters[0].open_sessions(), estate.vcenters[0].collectors()), (0, 0));
        // A vCenter that takes its time for that is logged out of without.
        if ends.elapsed() < Duration::from_millis(500) {
            assert_eq!(estate.vcenters[0].calls("DestroyPropertyCollector"), 1, "before the logout");
            assert_eq!(estate.vcenters[0].calls("DestroyCollector"), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcenter_that_tells_nothing_is_found_out_by_the_poll() {
    let estate = Estate::with_vcenters(2, 1, |_, spec| {
        spec.pushes = Pushes::Nothing;
        spec.fires_events = false;
    })
    .await;
    let agent = listening(&estate, EVERY_SECOND).await;
    turns(&estate, &Status::Red, 0.0).await;
    assert_eq!(counted(&agent.handle.stats, "received"), 1.0, "when it began to listen");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_come_and_go_or_lose_their_vcenter_are_seen_at_once() {
    let estate = Estate::new(3, 1).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, HOURLY).await);
    vcenter.set_connection(&estate.host(1), "notResponding");
    let lost = [("hostsystem", &*estate.host(1)), ("state", "notResponding")];
    estate.arrives("esxi.host.connection_state", &lost, 1.0).await;
    vcenter.set_maintenance(&estate.host(2), true);
    estate.arrives("esxi.host.maintenance_mode", &[("hostsystem", &estate.host(2))], 1.0).await;
    vcenter.add_host(&HostSpec {
        name: "esx9".into(),
        datacenter: "dc".into(),
        cluster: Some("cluster".into()),
    });
    estate.arrives("esxi.overall_status", &[("hostsystem", "esx9")], 2.0).await;
    vcenter.remove_host("esx9");
    let ended = || {
        let snapshot = agent.handle.readings.snapshot();
        let stays = snapshot.samples().any(|sample| sample.attributes.get("hostsystem") == Some("esx9"));
        (!stays).then_some(())
    };
    until("the end of the host that left", ended).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_is_read_once_a_second_and_its_last_word_arrives() {
    let estate = Estate::with_vcenters(60, 1, |_, spec| spec.updates_at_a_time = 7).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, HOURLY).await);
    let (reads, began) = (vcenter.calls("RetrievePropertiesEx"), Instant::now());
    for status in [Status::Yellow, Status::Green, Status::Red] {
        for host in 0..60 {
            vcenter.set_status(&estate.host(host), &status);
        }
        tokio::task::yield_now().await;
    }
    for host in [0, 31, 59] {
        estate.arrives("esxi.overall_status", &[("hostsystem", &estate.host(host))], 0.0).await;
    }
    let most = began.elapsed().as_secs() + 1 + (WHY - 1);
    let reads = vcenter.calls("RetrievePropertiesEx") - reads;
    assert!((1..=most).contains(&reads), "{reads} reads in {:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_events_than_are_shown_at_a_time_are_not_lost() {
    let estate = Estate::with_vcenters(2, 1, |_, spec| spec.latency = Duration::from_millis(300)).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, HOURLY).await);
    vcenter.set_status(&estate.host(0), &Status::Red);
    // They push the host's event out of the page before anybody can have seen it.
    for _ in 0..25 {
        vcenter.fire_alarm_of_a_machine();
    }
    estate.arrives("esxi.overall_status", &[("hostsystem", &estate.host(0))], 0.0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcenter_that_does_not_wait_is_not_asked_without_a_breath() {
    let estate = Estate::with_vcenters(2, 1, |_, spec| spec.impatient = true).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, HOURLY).await);
    let (waits, began) = (vcenter.calls("WaitForUpdatesEx"), Instant::now());
    turns(&estate, &Status::Red, 0.0).await;
    let most = u64::try_from(began.elapsed().as_millis()).unwrap() / 100 + 2;
    let waits = vcenter.calls("WaitForUpdatesEx") - waits;
    assert!((1..=most).contains(&waits), "{waits} waits in {:?}", began.elapsed());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_of_a_virtual_machine_is_no_hint() {
    let estate = Estate::new(2, 1).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, HOURLY).await);
    let reads = vcenter.calls("RetrievePropertiesEx");
    let waits = vcenter.calls("WaitForUpdatesEx");
    vcenter.fire_alarm_of_a_machine();
    until("the next wait", || (vcenter.calls("WaitForUpdatesEx") > waits).then_some(())).await;
    turns(&estate, &Status::Red, 0.0).await;
    let reads = vcenter.calls("RetrievePropertiesEx") - reads;
    assert!((1..=WHY).contains(&reads), "of the host, and why it is red: {reads} reads");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_not_valid_any_more_is_followed_by_a_read_of_everything() {
    let estate = Estate::new(2, 1).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, HOURLY).await);
    let reads = vcenter.calls("RetrievePropertiesEx");
    vcenter.forget_versions();
    until("a read of everything", || (vcenter.calls("RetrievePropertiesEx") > reads).then_some(())).await;
    turns(&estate, &Status::Red, 0.0).await;
    assert_eq!((vcenter.logins(), vcenter.calls("CreatePropertyCollector")), (1, 1), "nothing was made anew");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_breaks_off_goes_on_in_the_same_session() {
    let estate = Estate::new(2, 1).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, HOURLY).await);
    for fault in [VcenterFault::Close, VcenterFault::Http503Text, VcenterFault::CutXml] {
        let lost = counted(&agent.handle.stats, "lost");
        vcenter.fail_next_call("WaitForUpdatesEx", fault);
        // Ends the wait under way, so that the next one fails.
        vcenter.set_maintenance(&estate.host(1), fault != VcenterFault::Http503Text);
        until("the loss", || (counted(&agent.handle.stats, "lost") > lost).then_some(())).await;
    }
    turns(&estate, &Status::Red, 0.0).await;
    assert_eq!((vcenter.logins(), vcenter.open_sessions()), (1, 1));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_expiry_or_a_restart_there_is_one_session_and_hints_go_on() {
    let estate = Estate::new(2, 1).await;
    let (vcenter, agent) = (&estate.vcenters[0], listening(&estate, EVERY_SECOND).await);
    for (round, end) in
        [VcenterHandle::expire_sessions as fn(&VcenterHandle), VcenterHandle::restart].into_iter().enumerate()
    {
        end(vcenter);
        until_equal("logins", round as u64 + 2, || vcenter.logins()).await;
        until_listening(&agent, round as f64 + 2.0).await;
        until_equal("its collectors", 2, || vcenter.collectors()).await;
    }
    turns(&estate, &Status::Red, 0.0).await;
    assert_eq!((vcenter.open_sessions(), vcenter.most_sessions(), vcenter.failed_logins()), (1, 1, 0));
    agent.stop().await;
    assert_eq!(vcenter.open_sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_dies_of_its_age_is_replaced_by_one() {
    let estate = Estate::with_vcenters(1, 1, |_, spec| spec.session_life = Duration::from_millis(2500)).await;
    let agent = estate.agent(&[EVERY_SECOND, ONLY_VCENTERS]).await;
    let vcenter = &estate.vcenters[0];
    until("the third session", || (vcenter.logins() >= 3).then_some(())).await;
    assert_eq!((vcenter.most_sessions(), vcenter.failed_logins()), (1, 0));
    agent.stop().await;
    assert_eq!(vcenter.open_sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_hints_in_the_configuration_nobody_listens() {
    let estate = Estate::new(1, 1).await;
    let agent = estate.agent(&[EVERY_SECOND, ONLY_VCENTERS, ("vcenter.hints", "false")]).await;
    turns(&estate, &Status::Red, 0.0).await;
    assert_eq!(estate.vcenters[0].calls("CreatePropertyCollector"), 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_see_events_still_gets_what_properties_tell() {
    let estate = Estate::with_vcenters(2, 1, |_, spec| spec.pushes = Pushes::Everything).await;
    let vcenter = &estate.vcenters[0];
    vcenter.fail_next_call("CreateCollectorForEvents", VcenterFault::NoPermission);
    let agent = listening(&estate, HOURLY).await;
    turns(&estate, &Status::Red, 0.0).await;
    agent.stop().await;
    assert_eq!((vcenter.calls("CreateCollectorForEvents"), vcenter.open_sessions()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcenter_without_listeners_is_polled_as_ever() {
    let estate = Estate::new(2, 1).await;
    let vcenter = &estate.vcenters[0];
    vcenter.fail_next_call("CreatePropertyCollector", VcenterFault::NoPermission);
    let agent = estate.agent(&[EVERY_SECOND, ONLY_VCENTERS]).await;
    until("a refusal", || (counted(&agent.handle.stats, "refused") > 0.0).then_some(())).await;
    turns(&estate, &Status::Red, 0.0).await;
    assert_eq!((vcenter.calls("CreatePropertyCollector"), vcenter.logins()), (1, 1));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn troubled_vcenters_leave_the_others_alone_and_are_back_after_a_poll() {
    let estate = Estate::with_vcenters(1, 4, |_, _| {}).await;
    let agent = estate.agent(&[EVERY_SECOND, ONLY_VCENTERS, ("vcenter.timeouts.call", "5s")]).await;
    let up = |vcenter: usize, value: f64| {
        let address = estate.vcenters[vcenter].address().to_string();
        let estate = &estate;
        async move { estate.arrives("esxi.vcenter.up", &[("vcenter", &address)], value).await }
    };
    for vcenter in 0..4 {
        up(vcenter, 1.0).await;
    }
    let before = estate.vcenters[3].calls("RetrievePropertiesEx");
    for _ in 0..3 {
        estate.vcenters[0].fail_next(VcenterFault::Hang);
        estate.vcenters[1].fail_next(VcenterFault::Http503Text);
    }
    for vcenter in [0, 1] {
        for _ in 0..3 {
            estate.vcenters[vcenter].fail_next_call("RetrievePropertiesEx", VcenterFault::Http503Text);
        }
    }
    estate.vcenters[2].restart();
    // Both at the same time: they are not down for long.
    tokio::join!(up(0, 0.0), up(1, 0.0));
    for vcenter in 0..3 {
        up(vcenter, 1.0).await;
    }
    let polled = estate.vcenters[3].calls("RetrievePropertiesEx") - before;
    assert!(polled >= 3, "{polled} polls of the healthy one meanwhile");
    agent.stop().await;
    for vcenter in &estate.vcenters {
        assert_eq!((vcenter.open_sessions(), vcenter.most_sessions(), vcenter.failed_logins()), (0, 1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcenter_that_changes_its_site_or_leaves_the_inventory_keeps_no_session_too_many() {
    let sim = VcenterSim::start(VcenterSpec::new("vc1").fleet(2)).await.unwrap();
    let setup = vim_support::Setup::of(&sim);
    let (readings, stats) = (Readings::new(), Arc::clone(&setup.stats));
    let (_setup, poll) = watch::channel(Arc::new(setup.polls(Duration::from_secs(3600))));
    let (first, _) = watch::channel(false);
    let polls = VcenterPolls::new(poll, Arc::clone(&readings), Arc::clone(&stats), first);
    let of_site = |site: &str| {
        let vcenter = Vcenter { site: site.into(), ..setup.vcenter.clone() };
        Arc::new(Inventory::new(Vec::new(), vec![vcenter]))
    };
    let (inventory, present) = watch::channel(of_site("eu-1"));
    let cancel = CancellationToken::new();
    let running = Arc::new(polls).run(present, Arc::new(Notify::new()), cancel.clone());
    let story = async {
        for (round, site) in ["eu-1", "eu-2", "eu-3"].into_iter().enumerate() {
            inventory.send_replace(of_site(site));
            let sites = || {
                let snapshot = readings.snapshot();
                let up = snapshot.samples().filter(|sample| sample.def.name == "esxi.vcenter.up");
                up.map(|sample| sample.attributes.get("site").unwrap().to_owned()).collect::<Vec<_>>()
            };
            until_equal("the site", vec![site.to_owned()], sites).await;
            until_equal("listeners", round as f64 + 1.0, || counted(&stats, "read")).await;
            assert_eq!((sim.open_sessions(), sim.most_sessions()), (1, 1), "{site}");
        }
        inventory.send_replace(Arc::new(Inventory::default()));
        until_equal("sessions", 0, || sim.open_sessions()).await;
        until("the end of its series", || readings.snapshot().is_empty().then_some(())).await;
        cancel.cancel();
    };
    tokio::join!(running, story);
    assert_eq!((sim.logins(), sim.failed_logins(), sim.collectors()), (3, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_its_certificate_expires_is_known_of_every_vcenter() {
    let estate = Estate::with_vcenters(1, 2, |vcenter, spec| spec.self_signed = vcenter == 1).await;
    let agent = estate.agent(&[HOURLY, ONLY_VCENTERS]).await;
    for (vcenter, up) in [(0, 1.0), (1, 0.0)] {
        let address = estate.vcenters[vcenter].address().to_string();
        estate.arrives("esxi.vcenter.up", &[("vcenter", &address)], up).await;
        let snapshot = agent.handle.readings.snapshot();
        let expiry = snapshot.samples().find(|sample| {
            sample.def.name == "esxi.vcenter.certificate.expiry.timestamp"
                && sample.attributes.get("vcenter") == Some(&address)
        });
        assert!(expiry.expect("believed or not").value > 1.7e9);
    }
    agent.stop().await;
}
