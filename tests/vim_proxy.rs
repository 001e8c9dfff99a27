//! Stories of vCenters behind an HTTP proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story may fail")]

mod harness;
mod vim_support;

use esxi_otel_agent::config::{ProxyAuth, ProxyConfig};
use esxi_otel_agent::inventory::{Allow, AllowRule};
use esxi_otel_agent::outcome::{Failure, FailureReason};
use esxi_otel_agent::simulator::vcenter::{VcenterHandle, VcenterSim, VcenterSpec};
use esxi_otel_agent::vim::VimClient;
use esxi_otel_agent::vim::transport::Transport;
use harness::estate::Estate;
use harness::proxy::{Manner, Proxy};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::Instant;
use vim_support::{Setup, hosts_of};

/// A name that only the proxy knows.
const NAME: &str = "vc1.behind.example.org";

async fn vcenter() -> VcenterHandle {
    VcenterSim::start(VcenterSpec::new("vc1").fleet(2)).await.unwrap()
}

/// The surroundings of a client of the vCenter of that name behind the proxy at `url`.
fn behind(sim: &VcenterHandle, url: &str) -> Setup {
    let mut setup = Setup::of(sim).system_roots().at(NAME);
    setup.config.thumbprints.insert(NAME.to_owned(), sim.thumbprint());
    let (no_proxy, auth) = (Allow::only(Vec::new()), None);
    setup.config.proxy = Some(ProxyConfig { url: url.parse().unwrap(), no_proxy, auth });
    setup
}

fn client(setup: &Setup, allow: &[&str]) -> Result<VimClient, Failure> {
    let rules = allow.iter().map(|rule| rule.parse::<AllowRule>().unwrap()).collect();
    let mut access = setup.access();
    access.allow = Arc::new(Allow::only(rules));
    VimClient::new(&setup.config, Arc::new(setup.vcenter.clone()), access, Arc::clone(&setup.stats))
}

async fn read(client: &mut VimClient) -> Result<usize, Failure> {
    let result = client.read_tree(&["name", "parent"], Instant::now() + Duration::from_secs(60)).await;
    client.logout().await;
    result.map(|objects| hosts_of(&objects).len()).map_err(|error| error.failure)
}

#[tokio::test]
async fn a_vcenter_whose_name_only_the_proxy_knows_is_read_through_a_tunnel() {
    let sim = vcenter().await;
    let proxy = Proxy::start(sim.address()).await;
    let setup = behind(&sim, &proxy.url());
    assert_eq!(read(&mut setup.client()).await, Ok(2));
    let port = sim.address().port();
    // One connection is kept for all calls.
    assert_eq!(proxy.asked(), [format!("CONNECT {NAME}:{port} HTTP/1.1")]);
    assert_eq!((sim.logins(), sim.open_sessions()), (1, 0));
}

#[tokio::test]
async fn who_is_not_for_the_proxy_is_connected_to_directly() {
    let sim = vcenter().await;
    let proxy = Proxy::start(sim.address()).await;
    let mut setup = behind(&sim, &proxy.url()).at("127.0.0.1");
    setup.config.thumbprints.insert("127.0.0.1".to_owned(), sim.thumbprint());
    setup.config.proxy.as_mut().unwrap().no_proxy = Allow::only(vec!["127.0.0.0/8".parse().unwrap()]);
    assert_eq!(read(&mut setup.client()).await, Ok(2));
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_gets_its_own_and_no_login_is_tried_without_it() {
    let sim = vcenter().await;
    let proxy = Proxy::start(sim.address()).await;
    // agent:p%40@:/ß
    proxy.wants("YWdlbnQ6cCU0MEA6L8Of");
    let failure = read(&mut behind(&sim, &proxy.url()).client()).await.unwrap_err();
    assert!(failure.message.contains(&format!("by the proxy {}: ", proxy.url())), "{failure}");
    assert!(failure.message.ends_with("vcenter.proxy.basic_auth is missing or refused"), "{failure}");
    assert_eq!((failure.reason, sim.requests()), (FailureReason::Unreachable, 0));

    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    let mut setup = behind(&sim, &proxy.url());
    let auth = ProxyAuth { username: "agent".to_owned(), password_file: password_file.clone() };
    setup.config.proxy.as_mut().unwrap().auth = Some(auth);
    let missing = client(&setup, &[NAME]).err().unwrap();
    assert_eq!(missing.reason, FailureReason::NoCredentials, "{missing}");
    assert!(missing.message.contains("vcenter.proxy.basic_auth: cannot read"), "{missing}");
    std::fs::write(&password_file, "p%40@:/ß\n").unwrap();
    assert_eq!(read(&mut setup.client()).await, Ok(2));
    let way = Transport::new(&setup.config, &setup.vcenter, &Arc::default(), Arc::clone(&setup.stats));
    let debug = format!("{way:?}");
    assert!(debug.contains("Tunnel"), "{debug}");
    for secret in ["p%40", "p%2540", "cCU0MEA6L8Of"] {
        assert!(!debug.contains(secret), "{debug}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_of_no_help_is_named_and_waited_for_no_longer_than_a_connection() {
    let sim = vcenter().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (hanging, refusing) = (Proxy::with(Manner::Hangs).await, Proxy::with(Manner::Refuses).await);
    let (short, long) = (Duration::from_millis(200), Duration::from_secs(30));
    for (url, limit, reason, said) in [
        (format!("http://{gone}"), long, FailureReason::ConnectRefused, "refused"),
        (hanging.url(), short, FailureReason::ConnectTimeout, "timed out"),
        (refusing.url(), long, FailureReason::Unreachable, "does not reach the vCenter; its log tells"),
    ] {
        let mut setup = behind(&sim, &url);
        setup.config.connect_timeout = limit;
        let failure = read(&mut setup.client()).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{failure}");
        assert!(failure.message.contains(&format!("by the proxy {url}: ")), "{failure}");
        assert!(failure.message.contains(said), "{failure}");
    }
}

#[tokio::test]
async fn behind_a_proxy_a_vcenter_has_to_be_allowed_by_name() {
    let sim = vcenter().await;
    let proxy = Proxy::start(sim.address()).await;
    let setup = behind(&sim, &proxy.url());
    let refused = client(&setup, &["127.0.0.0/8"]).err().unwrap();
    assert_eq!(refused.reason, FailureReason::AddressNotAllowed);
    assert!(refused.message.contains("known to the proxy alone"), "{refused}");
    // The proxy itself gets no password, so that it need not be in the list.
    assert_eq!(read(&mut client(&setup, &[".behind.example.org"]).unwrap()).await, Ok(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_of_the_proxy_is_taken_over_by_a_running_agent() {
    let estate = Estate::new(1, 1).await;
    let proxy = Proxy::start(estate.vcenters[0].address()).await;
    proxy.wants("YWdlbnQ6bmV3");
    let password = estate.folder.path().join("proxy-password");
    std::fs::write(&password, "old").unwrap();
    let agent = estate
        .agent(&[
            ("collectors.overall_state_collector.interval", "1s"),
            ("vcenter.proxy.url", &proxy.url()),
            ("vcenter.proxy.basic_auth.username", "agent"),
            ("vcenter.proxy.basic_auth.password_file", &password.display().to_string()),
        ])
        .await;
    estate.arrives("esxi.vcenter.failure", &[("reason", "unreachable")], 1.0).await;
    std::fs::write(&password, "new").unwrap();
    agent.handle.reload.now().await.unwrap();
    estate.arrives("esxi.vcenter.up", &[], 1.0).await;
    agent.stop().await;
    assert_eq!((estate.vcenters[0].logins(), estate.vcenters[0].open_sessions()), (1, 0));
    let asked = proxy.asked();
    assert!(asked.len() > 1 && asked.iter().all(|line| line.starts_with("CONNECT 127.0.0.1:")), "{asked:?}");
}
