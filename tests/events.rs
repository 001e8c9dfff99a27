//! Events, from the fault to the record at the Collector.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use esxi_otel_agent::simulator::faults::{HostFault, ServiceState};
use esxi_otel_agent::simulator::sink::{Log, Seen};
use esxi_otel_agent::simulator::vcenter::{Status, VcenterFault};
use harness::LIMIT;
use harness::estate::{Estate, RunningAgent};

const SERVICE: &str = "esxi.critical_service.status";
const SSH_UP: &str = "esxi.host.ssh.up";

/// The newest record of an event.
async fn event(estate: &Estate, name: &str) -> Log {
    let find = |seen: &Seen| seen.logs.iter().rev().find(|log| log.event == name).cloned();
    estate.sink.wait_for(find, LIMIT).await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// No trace is kept for its own sake.
async fn agent(estate: &Estate) -> RunningAgent {
    let never = [("ratio", "0"), ("errors", "false"), ("slower_than", "1h")];
    let keys = never.map(|(key, value)| (format!("otlp.traces.keep.{key}"), value));
    estate.agent(&keys.each_ref().map(|(key, value)| (key.as_str(), *value))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_is_an_event_that_leads_to_the_trace_of_its_visit() {
    let estate = Estate::new(2, 0).await;
    let agent = agent(&estate).await;
    for host in 0..2 {
        estate.arrives(SSH_UP, &[("hostsystem", &estate.host(host))], 1.0).await;
    }
    estate.fleet.set_service(1, "ntpd", ServiceState::Stopped);
    agent.handle.now.everybody();
    let stopped = event(&estate, "esxi.service.stopped").await;
    let host = estate.host(1);
    assert_eq!(stopped.body, format!("host {host}: service ntpd has stopped"));
    assert_eq!(stopped.severity, "WARN");
    let attributes: Vec<_> = stopped.attributes.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(attributes, [("hostsystem", host.as_str()), ("service", "ntpd"), ("site", "eu-de-1a")]);
    let of_trace =
        |seen: &Seen| seen.spans.iter().any(|span| span.name == "visit" && span.ids[0] == stopped.trace);
    estate.sink.wait_until(of_trace, LIMIT).await.unwrap();

    estate.fleet.set_service(1, "ntpd", ServiceState::Running);
    agent.handle.now.everybody();
    assert_eq!(event(&estate, "esxi.service.running").await.severity, "INFO");
    agent.stop().await;
    estate.sink.seen(|seen| {
        let events = seen.logs.iter().map(|log| log.event.as_str());
        // The disk of a busy machine may be too slow for the guard, which is an event, too.
        let events: Vec<_> = events.filter(|event| !event.starts_with("esxi.agent.guard_")).collect();
        assert_eq!(events, ["esxi.service.stopped", "esxi.service.running"], "and nothing else goes out");
        let visits: Vec<_> = seen.spans_named("visit").collect();
        assert_eq!(visits.len(), 2, "only the traces that saw something: {visits:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_vcenters_that_go_and_come_back_are_told_with_the_reason() {
    let estate = Estate::new(1, 1).await;
    let agent = agent(&estate).await;
    let host = estate.host(0);
    estate.arrives(SSH_UP, &[], 1.0).await;
    estate.arrives("esxi.vcenter.up", &[], 1.0).await;

    estate.vcenters[0].set_status(&host, &Status::Red);
    estate.fleet.set_fault(0, HostFault::HangAtCommand);
    agent.handle.now.everybody();
    let red = event(&estate, "esxi.host.status_changed").await;
    assert_eq!((red.severity.as_str(), red.attributes["status"].as_str()), ("ERROR", "red"));
    let lost = event(&estate, "esxi.host.unreachable").await;
    assert_eq!(lost.attributes["reason"], "command_timeout");
    assert!(!lost.trace.is_empty());

    for _ in 0..4 {
        estate.vcenters[0].fail_next(VcenterFault::Http503Text);
    }
    estate.fleet.clear_fault(0);
    agent.handle.now.everybody();
    assert_eq!(event(&estate, "esxi.vcenter.unreachable").await.attributes["reason"], "vcenter_unavailable");
    event(&estate, "esxi.host.reachable").await;
    while estate.sink.seen(|seen| !seen.logs.iter().any(|log| log.event == "esxi.vcenter.reachable")) {
        // The next poll, or the one after it: the faults may not all be used up.
        let polls = || visits(&agent, "vcenter");
        let before = polls();
        agent.handle.now.everybody();
        harness::until("another poll", || (polls() > before).then_some(())).await;
        if polls() > 20.0 {
            break;
        }
    }
    event(&estate, "esxi.vcenter.reachable").await;
    agent.stop().await;
}

fn visits(agent: &RunningAgent, kind: &str) -> f64 {
    let samples = agent.handle.stats.samples();
    let of_kind = samples.iter().filter(|s| s.def.name == "esxi.agent.visits");
    of_kind.filter(|s| s.attributes.get("kind") == Some(kind)).map(|s| s.value).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_start_are_one_event() {
    let estate = Estate::new(3, 0).await;
    estate.fleet.set_fault(0, HostFault::RefuseConnection);
    estate.fleet.set_fault(2, HostFault::RefuseConnection);
    let agent = agent(&estate).await;
    let first = event(&estate, "esxi.agent.first_failures").await;
    assert!(
        first.body.starts_with("the first visit or poll failed of 2 hosts: 2 connect_refused"),
        "{}",
        first.body
    );
    estate.fleet.clear_fault(0);
    agent.handle.now.everybody();
    assert_eq!(event(&estate, "esxi.host.reachable").await.attributes["hostsystem"], estate.host(0));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_refused_is_an_event_with_its_places() {
    let estate = Estate::new(1, 0).await;
    let agent = agent(&estate).await;
    estate.arrives(SERVICE, &[], 1.0).await;
    estate.edit_config("services:", "servces:");
    agent.handle.reload.now().await.unwrap_err();
    let refused = event(&estate, "esxi.agent.config_refused").await;
    assert!(refused.body.contains("config.yaml:4:"), "{}", refused.body);
    estate.edit_config("servces: [hostd,", "services: [hostd, nsx-proxy,");
    agent.handle.reload.now().await.unwrap();
    event(&estate, "esxi.agent.config_applied").await;
    agent.stop().await;
}
