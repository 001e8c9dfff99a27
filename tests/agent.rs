//! The agent from end to end, against simulated peers: what is true arrives, and one target's trouble is
//! that target's alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use esxi_otel_agent::simulator::faults::{HostFault, ServiceState};
use esxi_otel_agent::simulator::sink::Fault;
use esxi_otel_agent::simulator::vcenter::{Status, VcenterFault};
use harness::estate::Estate;
use harness::{LIMIT, until};
use std::io::{Read, Write};
use std::time::Duration;

const SERVICE: &str = "esxi.critical_service.status";
const PROBLEM: &str = "esxi.critical_service.problem";
const SSH_UP: &str = "esxi.host.ssh.up";
const SSH_FAILURE: &str = "esxi.host.ssh.failure";
const STATUS: &str = "esxi.overall_status";
const VCENTER_UP: &str = "esxi.vcenter.up";

fn page(address: std::net::SocketAddr) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_true_arrives_at_the_collector_and_stands_on_the_page() {
    let estate = Estate::new(3, 1).await;
    estate.fleet.set_service(1, "ntpd", ServiceState::Stopped);
    estate.fleet.set_service(2, "vvold", ServiceState::Missing);
    estate.fleet.set_service(2, "vpxa", ServiceState::Noisy);
    estate.vcenters[0].set_status(&estate.host(0), &Status::Yellow);
    estate.vcenters[0].set_status(&estate.host(1), &Status::Red);
    estate.vcenters[0].set_status(&estate.host(2), &Status::Gray);
    let vcenter = estate.vcenters[0].address().to_string();
    let agent = estate.agent(&[]).await;

    for host in 0..3 {
        let hostsystem = estate.host(host);
        let of_host =
            |service| [("hostsystem", hostsystem.as_str()), ("service", service), ("site", "eu-de-1a")];
        estate.arrives(SSH_UP, &[("hostsystem", &hostsystem)], 1.0).await;
        for service in ["hostd", "vpxa", "opsAgent"] {
            estate.arrives(SERVICE, &of_host(service), 1.0).await;
        }
        estate.arrives(SERVICE, &of_host("ntpd"), if host == 1 { 0.0 } else { 1.0 }).await;
        estate.arrives(SERVICE, &of_host("vvold"), if host == 2 { 0.0 } else { 1.0 }).await;
        let status = [1.0, 0.0, -1.0][host];
        let of_status = [("hostsystem", hostsystem.as_str()), ("site", "eu-de-1a"), ("vcenter", &vcenter)];
        estate.arrives(STATUS, &of_status, status).await;
        estate.arrives("esxi.host.info", &[("address", &hostsystem), ("cluster", "cluster")], 1.0).await;
    }
    let missing = [("hostsystem", &*estate.host(2)), ("reason", "not_installed"), ("service", "vvold")];
    estate.arrives(PROBLEM, &missing, 1.0).await;

    let page = page(agent.handle.web.unwrap());
    let host = estate.host(1);
    for line in [
        format!("esxi_critical_service_status{{hostsystem=\"{host}\",service=\"ntpd\",site=\"eu-de-1a\"}} 0"),
        format!(
            "esxi_critical_service_status{{hostsystem=\"{host}\",service=\"opsAgent\",site=\"eu-de-1a\"}} 1"
        ),
        format!("esxi_overall_status{{hostsystem=\"{host}\",site=\"eu-de-1a\",vcenter=\"{vcenter}\"}} 0"),
    ] {
        assert!(page.contains(&line), "{line}\nis not on\n{page}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_are_one_agent_together() {
    let estate = Estate::new(8, 2).await;
    let shards = ["0/2", "1/2"];
    let agents = [
        estate.agent(&[("inventory.shard", shards[0])]).await,
        estate.agent(&[("inventory.shard", shards[1])]).await,
    ];
    for host in 0..8 {
        let hostsystem = estate.host(host);
        estate.arrives(SSH_UP, &[("hostsystem", &hostsystem)], 1.0).await;
        estate.arrives("esxi.host.info", &[("address", &hostsystem)], 1.0).await;
    }
    let count = |metric: &str, kind: &str| -> Vec<f64> {
        let value = |samples: Vec<esxi_otel_agent::metric::Sample>| {
            let of_kind =
                samples.iter().filter(|s| s.def.name == metric && s.attributes.get("kind") == Some(kind));
            of_kind.map(|sample| sample.value).sum::<f64>()
        };
        agents.iter().map(|agent| value(agent.handle.stats.samples())).collect()
    };
    let targets = count("esxi.agent.targets", "host");
    assert!(targets.iter().all(|own| *own < 8.0) && targets.iter().sum::<f64>() == 8.0, "{targets:?}");
    assert_eq!(count("esxi.agent.visits", "host"), targets, "nobody is visited by both");
    assert_eq!(count("esxi.agent.targets", "vcenter").iter().sum::<f64>(), 2.0);
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_exported_without_waiting_for_the_interval() {
    let estate = Estate::new(1, 1).await;
    let agent = estate.agent(&[]).await;
    let host = estate.host(0);
    estate.arrives(SERVICE, &[("service", "ntpd")], 1.0).await;
    estate.arrives(STATUS, &[("hostsystem", &host)], 2.0).await;

    estate.fleet.set_service(0, "ntpd", ServiceState::Stopped);
    estate.vcenters[0].set_status(&host, &Status::Red);
    agent.handle.now.everybody();
    estate.arrives(SERVICE, &[("service", "ntpd")], 0.0).await;
    estate.arrives(STATUS, &[("hostsystem", &host)], 0.0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_leaves_the_inventory_ends_its_series() {
    let estate = Estate::new(2, 0).await;
    let agent = estate.agent(&[]).await;
    let (stays, leaves) = (estate.host(0), estate.host(1));
    estate.arrives(SSH_UP, &[("hostsystem", &leaves)], 1.0).await;
    estate.arrives(SSH_UP, &[("hostsystem", &stays)], 1.0).await;

    estate.write_atlas([0]);
    let gone = |metric: &'static str| {
        let leaves = leaves.clone();
        move |seen: &esxi_otel_agent::simulator::sink::Seen| seen.ended(metric, &[("hostsystem", &leaves)])
    };
    estate.sink.wait_until(gone(SSH_UP), LIMIT).await.unwrap();
    estate.sink.wait_until(gone(SERVICE), LIMIT).await.unwrap();
    until("the session's end", || (estate.fleet.sessions(1) == 0).then_some(())).await;
    assert_eq!(estate.sink.seen(|seen| seen.value(SSH_UP, &[("hostsystem", &stays)])), Some(1.0));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_its_vcenter_finds_again_is_visited_at_once() {
    let estate = Estate::new(2, 1).await;
    let (away, there) = (estate.host(0), estate.host(1));
    estate.fleet.set_fault(0, HostFault::RefuseConnection);
    estate.vcenters[0].set_connection(&away, "notResponding");
    let agent = estate.agent(&[("collectors.overall_state_collector.interval", "1s")]).await;
    estate.arrives(SSH_FAILURE, &[("hostsystem", &away), ("reason", "connect_refused")], 1.0).await;
    let lost = [("address", away.as_str()), ("state", "notResponding")];
    estate.arrives("esxi.host.connection_state", &lost, 1.0).await;
    let in_backoff = "esxi_agent_targets_lane{lane=\"backoff\"} 1";
    until(in_backoff, || page(agent.handle.web.unwrap()).contains(in_backoff).then_some(())).await;

    estate.arrives(SSH_UP, &[("hostsystem", &there)], 1.0).await;
    let before = visits(&agent.handle.stats, "host");
    estate.fleet.clear_fault(0);
    estate.vcenters[0].set_connection(&away, "connected");
    // Visits are an hour apart.
    estate.arrives(SSH_UP, &[("hostsystem", &away)], 1.0).await;
    assert_eq!(visits(&agent.handle.stats, "host"), before + 1.0, "its neighbour is not bothered");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_script_is_that_services_problem_alone() {
    let estate = Estate::new(1, 0).await;
    estate.fleet.set_service(0, "vvold", ServiceState::Hung);
    let agent = estate.agent(&[("ssh.timeouts.command", "2s")]).await;
    estate.arrives(PROBLEM, &[("service", "vvold"), ("reason", "command_timeout")], 1.0).await;
    estate.arrives(SERVICE, &[("service", "hostd")], 1.0).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    assert_eq!(estate.sink.seen(|seen| seen.value(SERVICE, &[("service", "vvold")])), None);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_script_is_found_in_the_trace_of_its_visit() {
    let estate = Estate::new(1, 0).await;
    estate.fleet.set_service(0, "vpxa", ServiceState::Slow(Duration::from_millis(1500)));
    let agent = estate.agent(&[]).await;
    estate.arrives(SERVICE, &[("service", "vpxa")], 1.0).await;
    agent.stop().await;
    estate.sink.seen(|seen| {
        let slow = seen.spans.iter().filter(|span| span.name.starts_with("service "));
        let slowest = slow.max_by_key(|span| span.took).expect("spans of services");
        assert_eq!(slowest.name, "service vpxa");
        assert!(slowest.took >= Duration::from_millis(1500), "{slowest:?}");
        let root = seen.spans.iter().find(|span| span.ids[0] == slowest.ids[0] && span.ids[2].is_empty());
        assert_eq!(root.expect("its root").name, "visit");
        for step in ["ssh.dial", "ssh.kex", "ssh.authenticate", "ssh.exec"] {
            assert!(seen.spans_named(step).any(|span| span.ids[0] == slowest.ids[0]), "no span {step}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_costs_three_tries_on_the_whole_fleet() {
    let estate = Estate::new(20, 1).await;
    let wrong = [("$ESXI_PASSWORD", "wrong"), ("$VCENTER_PASSWORD", "wrong, too")];
    let agent = estate.agent(&wrong).await;
    for host in 0..20 {
        estate.arrives(SSH_UP, &[("hostsystem", &estate.host(host))], 0.0).await;
    }
    estate.arrives(VCENTER_UP, &[], 0.0).await;
    for _ in 0..3 {
        let visits = || visits(&agent.handle.stats, "host");
        let before = visits();
        agent.handle.now.everybody();
        until("another round", || (visits() >= before + 20.0).then_some(())).await;
    }
    let tries: u64 = (0..20).map(|host| estate.fleet.failed_logins(host)).sum();
    assert!((1..=3).contains(&tries), "{tries} tries");
    assert!((0..20).all(|host| !estate.fleet.locked(host)));
    assert_eq!(estate.vcenters[0].failed_logins(), 1);
    let guarded = [("reason", "auth_guarded")];
    let seen = estate.sink.seen(|seen| seen.series(SSH_FAILURE, &guarded).count());
    assert!(seen >= 17, "{seen} hosts say that they are guarded");
    agent.stop().await;
}

fn visits(stats: &esxi_otel_agent::stats::Stats, kind: &str) -> f64 {
    let samples = stats.samples();
    let of_kind = samples.iter().filter(|s| s.def.name == "esxi.agent.visits");
    of_kind.filter(|s| s.attributes.get("kind") == Some(kind)).map(|s| s.value).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_host_has_its_word_and_no_neighbour_notices() {
    let faults = [
        (HostFault::RefuseConnection, "connect_refused"),
        (HostFault::NotSsh, "protocol_error"),
        (HostFault::HangAtKex, "login_timeout"),
        (HostFault::NoCommonAlgorithm, "no_common_algorithm"),
        (HostFault::ChannelRefused, "session_limit"),
        (HostFault::CommandRefused, "command_failed"),
        (HostFault::HangAtCommand, "command_timeout"),
        (HostFault::KillSession, "connection_lost"),
        (HostFault::Flood(50_000_000), "answer_too_large"),
        (HostFault::Binary, "answer_unreadable"),
        (HostFault::NoMarkers, "answer_unreadable"),
    ];
    let estate = Estate::new(faults.len() + 1, 0).await;
    for (host, (fault, _)) in faults.iter().enumerate() {
        estate.fleet.set_fault(host, *fault);
    }
    let agent = estate.agent(&[("ssh.timeouts.login", "3s"), ("ssh.timeouts.command", "3s")]).await;
    for (host, (fault, reason)) in faults.iter().enumerate() {
        let host = estate.host(host);
        let failed = |seen: &esxi_otel_agent::simulator::sink::Seen| {
            let of_host = [("hostsystem", host.as_str())];
            let mut series = seen.series(SSH_FAILURE, &of_host);
            series.next().map(|(series, _)| series["reason"].clone())
        };
        let seen = estate.sink.wait_for(failed, LIMIT).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert_eq!(seen, *reason, "{fault:?}");
        estate.arrives(SSH_UP, &[("hostsystem", &host)], 0.0).await;
    }
    estate.arrives(SSH_UP, &[("hostsystem", &estate.host(faults.len()))], 1.0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_gets_no_password() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    agent.stop().await;

    estate.fleet.set_fault(0, HostFault::HostKeyChanged);
    let logins = estate.fleet.logins(0) + estate.fleet.failed_logins(0);
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_FAILURE, &[("reason", "host_key_changed")], 1.0).await;
    assert_eq!(estate.fleet.logins(0) + estate.fleet.failed_logins(0), logins);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcenter_that_is_down_is_down_alone_and_its_last_word_stands() {
    let estate = Estate::new(2, 2).await;
    let addresses: Vec<String> = estate.vcenters.iter().map(|vc| vc.address().to_string()).collect();
    let agent = estate.agent(&[]).await;
    for address in &addresses {
        estate.arrives(VCENTER_UP, &[("vcenter", address)], 1.0).await;
    }
    for _ in 0..4 {
        estate.vcenters[0].fail_next(VcenterFault::Http503Text);
    }
    let host = estate.host(0);
    estate.vcenters[1].set_status(&host, &Status::Red);
    agent.handle.now.everybody();
    estate.arrives(VCENTER_UP, &[("vcenter", &addresses[0])], 0.0).await;
    let reason = [("reason", "vcenter_unavailable"), ("vcenter", addresses[0].as_str())];
    estate.arrives("esxi.vcenter.failure", &reason, 1.0).await;
    estate.arrives(STATUS, &[("hostsystem", &host), ("vcenter", &addresses[1])], 0.0).await;
    let stands = [("hostsystem", host.as_str()), ("vcenter", &addresses[0])];
    assert_eq!(estate.sink.seen(|seen| seen.value(STATUS, &stands)), Some(2.0));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_quick_and_leaves_no_session_behind() {
    let estate = Estate::new(3, 2).await;
    let agent = estate.agent(&[]).await;
    for host in 0..3 {
        estate.arrives(SSH_UP, &[("hostsystem", &estate.host(host))], 1.0).await;
    }
    for vcenter in &estate.vcenters {
        estate.arrives(VCENTER_UP, &[("vcenter", &vcenter.address().to_string())], 1.0).await;
        assert_eq!(vcenter.open_sessions(), 1);
    }
    // Even if the Collector hangs and a vCenter does not answer any more.
    estate.sink.set_fault(Some(Fault::Hang));
    estate.fleet.set_fault(0, HostFault::HangAtCommand);
    agent.handle.now.everybody();
    let took = agent.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    for vcenter in &estate.vcenters {
        assert_eq!(vcenter.open_sessions(), 0);
    }
    for host in 0..3 {
        until("the end of the sessions", || (estate.fleet.sessions(host) == 0).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_the_collector_is_away_arrives_later_in_order() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SERVICE, &[("service", "ntpd")], 1.0).await;
    estate.sink.set_fault(Some(Fault::Unavailable));
    let ntpd = |agent: &harness::estate::RunningAgent| {
        let snapshot = agent.handle.readings.snapshot();
        let mut all = snapshot.samples().filter(|sample| sample.def.name == SERVICE);
        all.find(|sample| sample.attributes.get("service") == Some("ntpd")).map(|sample| sample.value)
    };
    for (state, value) in [(ServiceState::Stopped, 0.0), (ServiceState::Running, 1.0)] {
        estate.fleet.set_service(0, "ntpd", state);
        agent.handle.now.everybody();
        until("the visit", || (ntpd(&agent) == Some(value)).then_some(())).await;
        agent.handle.exporter.as_ref().unwrap().export_now().await.unwrap();
    }
    estate.sink.set_fault(None);
    let all = |seen: &esxi_otel_agent::simulator::sink::Seen| {
        let values = seen.values(SERVICE, &[("service", "ntpd")]);
        let distinct: Vec<f64> = values.into_iter().flatten().collect();
        distinct.windows(2).any(|pair| pair == [0.0, 1.0])
    };
    estate.sink.wait_until(all, LIMIT).await.unwrap();
    agent.stop().await;
}
