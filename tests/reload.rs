//! Another configuration while the agent runs: what it changes changes, and nothing else does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;
#[path = "harness/tls.rs"]
mod tls;

use esxi_otel_agent::simulator::faults::ServiceState;
use esxi_otel_agent::simulator::sink::{Fault, Seen, Sink, SinkOptions};
use esxi_otel_agent::simulator::vcenter::Authority;
use harness::estate::{Estate, RunningAgent};
use harness::{LIMIT, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::task::AbortOnDropHandle;

const SERVICE: &str = "esxi.critical_service.status";
const SSH_UP: &str = "esxi.host.ssh.up";
const STATUS: &str = "esxi.overall_status";
const SERVICES: &str = "services: [hostd, vpxa, ntpd, nsx-opsagent, vvold]";

/// What the agent says of its own metric, the sum of all series.
fn own(agent: &RunningAgent, metric: &str, outcome: Option<&str>) -> f64 {
    let samples = agent.handle.stats.samples();
    let of_metric = samples.iter().filter(|sample| sample.def.name == metric);
    of_metric.filter(|s| outcome.is_none() || s.attributes.get("outcome") == outcome).map(|s| s.value).sum()
}

fn reloads(agent: &RunningAgent, outcome: &str) -> f64 {
    own(agent, "esxi.agent.config.reloads", Some(outcome))
}

fn is_good(agent: &RunningAgent) -> bool {
    own(agent, "esxi.agent.config.last_reload.success", None) == 1.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_service_is_asked_for_over_the_kept_sessions() {
    let estate = Estate::new(2, 1).await;
    let agent = estate.agent(&[]).await;
    for host in 0..2 {
        estate.arrives(SSH_UP, &[("hostsystem", &estate.host(host))], 1.0).await;
    }
    estate.arrives("esxi.vcenter.up", &[], 1.0).await;
    estate.edit_config(SERVICES, "services: [hostd, nsx-proxy]");
    agent.handle.reload.now().await.unwrap();
    agent.handle.now.everybody();
    for host in 0..2 {
        let of_host = estate.host(host);
        estate.arrives(SERVICE, &[("hostsystem", &of_host), ("service", "nsx-proxy")], 1.0).await;
        assert_eq!(estate.fleet.logins(host), 1, "the session goes on");
    }
    let ended = |seen: &Seen| seen.ended(SERVICE, &[("service", "vvold")]);
    estate.sink.wait_until(ended, LIMIT).await.expect("what is not asked for any more ends");
    assert!(!estate.sink.seen(|seen| seen.ended(SERVICE, &[("service", "hostd")])));
    assert_eq!(estate.vcenters[0].open_sessions(), 1);
    assert_eq!((reloads(&agent, "applied"), is_good(&agent)), (1.0, true));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_interval_does_not_wait_for_the_end_of_the_long_one() {
    let estate = Estate::new(1, 1).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    estate.arrives("esxi.vcenter.up", &[], 1.0).await;
    let ended = || own(&agent, "esxi.agent.visits", Some("success"));
    let before = ended();
    estate.edit_config("interval: 1h, services", "interval: 1s, services");
    estate.edit_config("timeouts: {connect: 2s, login: 5s, command: 5s}", "reuse_sessions: true");
    agent.handle.reload.now().await.unwrap();
    until("visits", || (ended() >= before + 2.0).then_some(())).await;
    let before = ended();
    estate.edit_config("interval: 1s, services", "interval: 1h, services");
    estate.edit_config("enabled: true, interval: 1h", "enabled: true, interval: 1s");
    agent.handle.reload.now().await.unwrap();
    until("polls", || (ended() >= before + 2.0).then_some(())).await;
    assert_eq!((estate.vcenters[0].logins(), estate.vcenters[0].open_sessions()), (1, 1));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn visits_that_are_switched_on_find_the_hosts_that_a_vcenter_lists() {
    let estate = Estate::new(1, 1).await;
    let discovering = |estate: &Estate, visits: &str| {
        let (file, _) = estate.write_config();
        let text = std::fs::read_to_string(&file).unwrap();
        let (_, rest) = text.split_once("vcenters: ").unwrap();
        let rest = rest
            .replace("critical_service_collector: {", &format!("critical_service_collector: {{{visits}, "));
        let rest = rest.replace("enabled: true, interval: 1h}", "enabled: true, interval: 1s}");
        std::fs::write(file, format!("inventory: {{discover_hosts: true, vcenters: {rest}")).unwrap();
    };
    std::fs::remove_file(estate.folder.path().join("atlas.json")).unwrap();
    let agent = estate.agent_of(|| discovering(&estate, "enabled: false")).await;
    estate.arrives("esxi.vcenter.up", &[], 1.0).await;
    discovering(&estate, "enabled: true");
    agent.handle.reload.now().await.unwrap();
    estate.arrives(SSH_UP, &[], 1.0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_port_is_visited_from_the_next_visit_on_whatever_session_is_kept() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (right, wrong) = (format!("port: {}", estate.fleet.port()), format!("port: {nobody}"));
    estate.edit_config(&right, &wrong);
    agent.handle.reload.now().await.unwrap();
    agent.handle.now.everybody();
    estate.arrives("esxi.host.ssh.failure", &[("reason", "connect_refused")], 1.0).await;
    until("the old session's end", || (estate.fleet.sessions(0) == 0).then_some(())).await;
    estate.edit_config(&wrong, &right);
    agent.handle.reload.now().await.unwrap();
    agent.handle.now.everybody();
    estate.arrives(SSH_UP, &[], 1.0).await;
    assert_eq!(estate.fleet.logins(0), 2);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_refused_and_the_old_configuration_goes_on() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    assert!(is_good(&agent), "a start is a success");
    estate.edit_config(SERVICES, "servces: [hostd]");
    let refused = agent.handle.reload.now().await.unwrap_err();
    assert!(refused.contains("config.yaml:4:") && refused.contains("did you mean services?"), "{refused}");
    assert_eq!((reloads(&agent, "refused"), is_good(&agent)), (1.0, false));
    agent.handle.reload.now().await.unwrap_err();
    assert_eq!(reloads(&agent, "refused"), 1.0, "one version, one refusal");
    agent.handle.now.everybody();
    estate.arrives(SERVICE, &[("service", "vvold")], 1.0).await;

    estate.edit_config("servces: [hostd]", SERVICES);
    // Without having been asked to.
    until("the good one again", || is_good(&agent).then_some(())).await;
    assert_eq!(reloads(&agent, "applied"), 0.0, "it is the one that is in use");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_found_without_a_signal() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    estate.edit_config(SERVICES, "services: [nsx-proxy]");
    until("the change", || (reloads(&agent, "applied") == 1.0).then_some(())).await;
    agent.handle.now.everybody();
    estate.arrives(SERVICE, &[("service", "nsx-proxy")], 1.0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_collector_survives() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    estate.sink.set_fault(Some(Fault::Unavailable));
    let exporter = agent.handle.exporter.clone().unwrap();
    let points = |seen: &Seen| seen.values(SSH_UP, &[]).len();
    let before = estate.sink.seen(points);
    for _ in 0..3 {
        exporter.export_now().await.unwrap();
    }
    estate.edit_config(SERVICES, "services: [nsx-proxy]");
    agent.handle.reload.now().await.unwrap();
    estate.sink.set_fault(None);
    estate.sink.wait_until(|seen| points(seen) >= before + 3, LIMIT).await.unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_switched_off_ends_its_series_and_sessions_and_comes_back() {
    let estate = Estate::new(1, 1).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    estate.arrives(STATUS, &[], 2.0).await;
    estate.edit_config("critical_service_collector: {", "critical_service_collector: {enabled: false, ");
    estate.edit_config("overall_state_collector: {enabled: true", "overall_state_collector: {enabled: false");
    agent.handle.reload.now().await.unwrap();
    for metric in [SSH_UP, SERVICE, STATUS] {
        estate.sink.wait_until(|seen| seen.ended(metric, &[]), LIMIT).await.unwrap();
    }
    until("the sessions' end", || (estate.fleet.sessions(0) == 0).then_some(())).await;
    until("the logout", || (estate.vcenters[0].open_sessions() == 0).then_some(())).await;

    estate.edit_config("{enabled: false, ", "{enabled: true, ");
    agent.handle.reload.now().await.unwrap();
    for (metric, value) in [(SSH_UP, 1.0), (SERVICE, 1.0), (STATUS, 2.0)] {
        estate.arrives(metric, &[], value).await;
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_no_longer_allowed_loses_its_session_and_the_other_one_does_not() {
    let estate = Estate::new(2, 0).await;
    let agent = estate.agent(&[]).await;
    let (stays, leaves) = (estate.host(0), estate.host(1));
    estate.arrives(SSH_UP, &[("hostsystem", &stays)], 1.0).await;
    estate.arrives(SSH_UP, &[("hostsystem", &leaves)], 1.0).await;
    estate.edit_config("inventory: {", &format!("inventory: {{allow: ['{stays}'], "));
    agent.handle.reload.now().await.unwrap();
    agent.handle.now.everybody();
    let reason = [("hostsystem", leaves.as_str()), ("reason", "address_not_allowed")];
    estate.arrives("esxi.host.ssh.failure", &reason, 1.0).await;
    until("the session's end", || (estate.fleet.sessions(1) == 0).then_some(())).await;
    assert_eq!((estate.fleet.sessions(0), estate.fleet.logins(0)), (1, 1));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_inventory_and_another_listener_take_the_place_of_the_old_ones() {
    let estate = Estate::new(2, 0).await;
    estate.write_atlas([0]);
    let agent = estate.agent(&[]).await;
    let old = agent.handle.web.unwrap();
    estate.arrives(SSH_UP, &[("hostsystem", &estate.host(0))], 1.0).await;

    // A listener that can't be had refuses the whole version.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = taken.local_addr().unwrap();
    let hosts = format!("inventory: {{hosts: [{{address: '{}'}}], ", estate.host(1));
    let listen = format!("listen: '{other}'");
    estate.edit_config_at_once(&[("inventory: {", &hosts), ("listen: '127.0.0.1:0'", &listen)]);
    let refused = agent.handle.reload.now().await.unwrap_err();
    assert!(refused.starts_with(&format!("prometheus.listen: {other}: ")), "{refused}");
    assert!(std::net::TcpStream::connect(old).is_ok());
    assert_eq!(estate.fleet.logins(1), 0);

    drop(taken);
    agent.handle.reload.now().await.unwrap();
    estate.arrives(SSH_UP, &[("hostsystem", &estate.host(1))], 1.0).await;
    until("the new listener", || std::net::TcpStream::connect(other).ok()).await;
    until("the old one's end", || std::net::TcpStream::connect(old).is_err().then_some(())).await;
    assert_eq!(estate.fleet.logins(0), 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_collector_gets_the_traces_and_events_from_then_on() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    let other = Sink::start(SinkOptions::default()).unwrap();
    let (old, new) = (estate.sink.endpoint(), other.endpoint());
    estate.edit_config_at_once(&[(&old, &new), ("ratio: 1.0", "ratio: 0")]);
    agent.handle.reload.now().await.unwrap();
    estate.fleet.set_service(0, "ntpd", ServiceState::Stopped);
    agent.handle.now.everybody();
    let event = |seen: &Seen| seen.logs.iter().find(|log| log.event == "esxi.service.stopped").cloned();
    let stopped = other.wait_for(event, LIMIT).await.unwrap();
    let its_visit = |seen: &Seen| seen.spans_named("visit").any(|span| span.ids[0] == stopped.trace);
    other.wait_until(its_visit, LIMIT).await.unwrap();
    assert!(estate.sink.seen(event).is_none());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_change_is_said_and_the_rest_is_taken_over() {
    let estate = Estate::new(1, 0).await;
    let agent = estate.agent(&[]).await;
    estate.arrives(SSH_UP, &[], 1.0).await;
    let text = |key: &str| format!("state_dir: '{}'", estate.folder.path().join(key).display());
    estate.edit_config(&text("state"), &text("elsewhere"));
    estate.edit_config(SERVICES, "services: [nsx-proxy]");
    agent.handle.reload.now().await.unwrap();
    agent.handle.now.everybody();
    estate.arrives(SERVICE, &[("service", "nsx-proxy")], 1.0).await;
    assert!(!estate.folder.path().join("elsewhere").exists());
    assert_eq!(estate.fleet.logins(0), 1, "the known hosts are those of before");
    agent.stop().await;
}

/// Answers every request with this list of targets, over TLS. Its certificate's PEM.
async fn https_list(rows: String) -> (std::net::SocketAddr, String, AbortOnDropHandle<()>) {
    let (acceptor, certificate) = tls::self_signed("127.0.0.1");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whoever does not believe in the certificate has gone.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let length = rows.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            );
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all((head + &rows).as_bytes()).await;
        }
    });
    (address, certificate.pem(), AbortOnDropHandle::new(serving))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_written_into_the_ca_file_of_http_sd_counts_without_a_signal() {
    let estate = Estate::new(2, 0).await;
    estate.write_atlas([1]);
    let listed = std::fs::read_to_string(estate.folder.path().join("atlas.json")).unwrap();
    estate.write_atlas([0]);
    let (address, certificate, _serving) = https_list(listed).await;
    let file = estate.folder.path().join("sd.pem");
    std::fs::write(&file, Authority::new("another one").unwrap().pem()).unwrap();
    let server =
        format!("inventory: {{http_sd: {{url: 'https://{address}/', ca_file: '{}'}}, ", file.display());
    let agent = estate.agent_of(|| estate.edit_config("inventory: {", &server)).await;
    estate.arrives(SSH_UP, &[("hostsystem", &estate.host(0))], 1.0).await;
    assert_eq!(estate.fleet.logins(1), 0);
    std::fs::write(&file, "nobody").unwrap();
    until("the refusal", || (reloads(&agent, "refused") == 1.0).then_some(())).await;
    std::fs::write(&file, certificate).unwrap();
    estate.arrives(SSH_UP, &[("hostsystem", &estate.host(1))], 1.0).await;
    assert_eq!((estate.fleet.logins(0), reloads(&agent, "applied")), (1, 1.0));
    agent.stop().await;
}

/// A vCenter whose certificate nobody vouches for who is trusted yet, and the PEM of who does.
async fn distrusted(ca_file: &str) -> (Estate, RunningAgent, String) {
    let estate = Estate::new(1, 1).await;
    let authority = std::fs::read_to_string(estate.folder.path().join("ca.pem")).unwrap();
    let other = Authority::new("another one").unwrap().pem();
    std::fs::create_dir(estate.folder.path().join("roots")).unwrap();
    std::fs::write(estate.folder.path().join("ca.pem"), &other).unwrap();
    std::fs::write(estate.folder.path().join("roots/other.pem"), &other).unwrap();
    let ca_file = estate.folder.path().join(ca_file).display().to_string();
    let agent = estate.agent(&[("vcenter.ca_file", &ca_file)]).await;
    estate.arrives("esxi.vcenter.failure", &[("reason", "tls")], 1.0).await;
    (estate, agent, authority)
}

/// The next poll is an hour away: it is asked for until it is done by the new rules.
async fn is_believed(estate: &Estate, agent: &RunningAgent) {
    let applied = || (reloads(agent, "applied") >= 1.0).then_some(());
    until("the change", applied).await;
    agent.handle.now.everybody();
    estate.arrives("esxi.vcenter.up", &[], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_written_into_vcenter_ca_file_counts_without_a_signal() {
    let (estate, agent, authority) = distrusted("ca.pem").await;
    std::fs::write(estate.folder.path().join("ca.pem"), authority).unwrap();
    is_believed(&estate, &agent).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_comes_into_a_folder_of_roots_counts_and_so_does_one_that_is_overwritten() {
    let (estate, agent, authority) = distrusted("roots").await;
    let file = |name: &str| estate.folder.path().join("roots").join(name);
    std::fs::write(file("new.pem"), &authority).unwrap();
    is_believed(&estate, &agent).await;
    std::fs::write(file("new.pem"), Authority::new("a third one").unwrap().pem()).unwrap();
    until("the second change", || (reloads(&agent, "applied") == 2.0).then_some(())).await;
    agent.handle.now.everybody();
    estate.arrives("esxi.vcenter.up", &[], 0.0).await;
    agent.stop().await;
}
