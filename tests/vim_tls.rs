//! Stories of certificates: which vCenters are believed to be who they say, and what is learned of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story may fail")]

mod vim_support;

use esxi_otel_agent::config::Thumbprint;
use esxi_otel_agent::outcome::{Failure, FailureReason};
use esxi_otel_agent::simulator::vcenter::{Authority, VcenterFault, VcenterHandle, VcenterSim, VcenterSpec};
use esxi_otel_agent::vim::VimClient;
use esxi_otel_agent::vim::tls::Trust;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
use vim_support::{Setup, hosts_of};

/// Reads the hosts and logs out.
async fn read(client: &mut VimClient) -> Result<usize, Failure> {
    let result = client.read_tree(&["name", "parent"], Instant::now() + Duration::from_secs(60)).await;
    client.logout().await;
    result.map(|objects| hosts_of(&objects).len()).map_err(|error| error.failure)
}

async fn started(change: impl FnOnce(&mut VcenterSpec)) -> VcenterHandle {
    let mut spec = VcenterSpec::new("vc1").fleet(2);
    change(&mut spec);
    VcenterSim::start(spec).await.unwrap()
}

/// The surroundings of a client that pins `thumbprint` under `name`, and has no root that fits.
fn pinning(sim: &VcenterHandle, name: &str, thumbprint: &str) -> Setup {
    let mut setup = Setup::of(sim).system_roots();
    setup.config.thumbprints.insert(name.to_ascii_lowercase(), thumbprint.parse().unwrap());
    setup
}

#[tokio::test]
async fn a_pinned_certificate_needs_no_chain_whoever_signed_it_and_however_the_pin_is_written() {
    for self_signed in [false, true] {
        let sim = started(|spec| spec.self_signed = self_signed).await;
        let right = sim.thumbprint().to_string();
        let (address, host) = (sim.address().to_string(), sim.address().ip().to_string());
        for (name, pin) in [
            (&address, right.clone()),
            (&host, right.to_lowercase()),
            (&host, right.replace(':', "")),
            (&host, right.to_lowercase().replace(':', "")),
        ] {
            let mut client = pinning(&sim, name, &pin).client();
            assert_eq!(read(&mut client).await, Ok(2), "{name}: {pin}");
            assert_eq!(client.trust(), Trust::Pinned);
        }
        let unpinned = read(&mut Setup::of(&sim).system_roots().client()).await.unwrap_err();
        assert_eq!(unpinned.reason, FailureReason::Tls);
    }
}

#[tokio::test]
async fn a_wrong_pin_tells_both_fingerprints_and_no_secret_leaves() {
    let sim = started(|_| {}).await;
    let wrong = "ab".repeat(32);
    for verify_tls in [true, false] {
        let mut setup = pinning(&sim, "127.0.0.1", &wrong);
        setup.config.verify_tls = verify_tls;
        let mut client = setup.client();
        let failure = read(&mut client).await.unwrap_err();
        assert_eq!(failure.reason, FailureReason::Tls);
        let expected: Thumbprint = wrong.parse().unwrap();
        for said in [expected, sim.thumbprint()] {
            assert!(failure.message.contains(&said.to_string()), "{failure}");
        }
        assert!(failure.message.contains("vcenter.thumbprints says"), "{failure}");
    }
    assert_eq!(sim.requests(), 0);
}

#[tokio::test]
async fn a_pin_does_not_replace_the_proof_that_the_server_has_the_key() {
    let sim = started(|_| {}).await;
    let impostor = started(|_| {}).await;
    let setup = pinning(&sim, "127.0.0.1", &sim.thumbprint().to_string());
    let mut client = setup.port(impostor.address().port()).client();
    assert_eq!(read(&mut client).await.unwrap_err().reason, FailureReason::Tls);
    assert_eq!(impostor.requests(), 0);
}

#[tokio::test]
async fn the_certificate_is_known_whether_it_is_believed_or_not() {
    let sim = started(|_| {}).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let other = Authority::new("somebody else").unwrap();
    for (mut client, trust, works) in [
        (Setup::of(&sim).client(), Trust::CaFile, true),
        (Setup::of(&sim).unverified().client(), Trust::Unverified, true),
        (Setup::of(&sim).ca(&other.pem()).client(), Trust::CaFile, false),
        (Setup::of(&sim).system_roots().client(), Trust::SystemRoots, false),
    ] {
        assert_eq!(client.certificate(), None);
        let result = read(&mut client).await;
        assert_eq!((result.is_ok(), client.trust()), (works, trust));
        let certificate = client.certificate().unwrap();
        assert_eq!(certificate.thumbprint, sim.thumbprint());
        assert_eq!(certificate.issuer.as_deref(), Some("CN=vc1 authority"));
        assert!(certificate.expires.unwrap() > now);
        if let Err(failure) = result {
            let said = format!("issued by CN=vc1 authority, SHA-256 {}", sim.thumbprint());
            assert!(failure.message.contains(&said), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_self_signed_certificate_among_the_roots_is_not_enough_but_its_pin_is_said() {
    let sim = started(|spec| spec.self_signed = true).await;
    let failure = read(&mut Setup::of(&sim).client()).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::Tls);
    assert!(failure.message.contains(&sim.thumbprint().to_string()), "{failure}");
}

#[tokio::test]
async fn roots_may_stand_in_a_folder_beside_other_files() {
    let sim = started(|_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let other = Authority::new("somebody else").unwrap();
    std::fs::write(folder.path().join("a.0"), other.pem()).unwrap();
    std::fs::write(folder.path().join("a.r0"), "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
        .unwrap();
    std::fs::write(folder.path().join("b.0"), sim.ca_pem()).unwrap();
    let mut setup = Setup::of(&sim);
    setup.config.ca_file = Some(folder.path().to_owned());
    assert_eq!(read(&mut setup.client()).await, Ok(2));
}

#[tokio::test]
async fn a_server_with_tls_1_2_alone_is_spoken_to() {
    let sim = started(|spec| spec.tls12_only = true).await;
    let steps = esxi_otel_agent::steps::Steps::wanted();
    let mut client = Setup::of(&sim).client().telling(steps.clone());
    assert_eq!(read(&mut client).await, Ok(2));
    assert_eq!(steps.taken().facts["tls"], "TLS 1.2");
    let mut client = pinning(&sim, "127.0.0.1", &sim.thumbprint().to_string()).client();
    assert_eq!(read(&mut client).await, Ok(2));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let sim = started(|_| {}).await;
    sim.fail_next(VcenterFault::Redirect);
    let failure = read(&mut Setup::of(&sim).client()).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::ProtocolError);
    assert_eq!((sim.requests(), sim.calls("Login")), (1, 0));
}
