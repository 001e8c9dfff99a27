//! Before anybody is logged in: strict key exchange, host certificates, peers that stall or talk nonsense.

use super::peer::{Login, PASSWORD, PATIENCE, Peer};
use super::{Agent, echo, host};
use esxi_otel_agent::accounts::guard::CredentialId;
use esxi_otel_agent::accounts::{Login as Credentials, LoginSecret, Secret};
use esxi_otel_agent::outcome::{Failure, FailureReason};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::{Algorithm, Certificate, EcdsaCurve, PrivateKey};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// For those that are silent: nothing has to come within its limit.
fn impatient() -> Agent {
    Agent::with(|config| config.login_timeout = Duration::from_millis(500))
}

async fn connect(agent: &Agent, port: u16) -> Result<(), Failure> {
    let secret = LoginSecret::Password(Secret::new(PASSWORD));
    let login = Credentials { user: "root".into(), secret, credential: CredentialId([1; 16]) };
    agent.connector.connect(&host(port), &login).await.map(drop)
}

/// What the agent's first KEXINIT says (RFC 4253, section 7.1): its ten lists.
async fn lists_of_key_exchange(stream: &mut TcpStream) -> Vec<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    let length = stream.read_u32().await.unwrap();
    let mut packet = vec![0; length as usize];
    stream.read_exact(&mut packet).await.unwrap();
    assert_eq!(packet[1], 20, "SSH_MSG_KEXINIT");
    let mut lists = &packet[1 + 1 + 16..];
    (0..10)
        .map(|_| {
            let (length, rest) = lists.split_at(4);
            let (list, rest) = rest.split_at(u32::from_be_bytes(length.try_into().unwrap()) as usize);
            lists = rest;
            String::from_utf8(list.to_vec()).unwrap()
        })
        .collect()
}

/// An unencrypted packet.
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 + (8 - (4 + 1 + payload.len()) % 8);
    let mut bytes = u32::try_from(1 + payload.len() + padding).unwrap().to_be_bytes().to_vec();
    bytes.push(u8::try_from(padding).unwrap());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

fn key_exchange(kex: &str) -> Vec<u8> {
    let mut payload = vec![20];
    payload.extend_from_slice(&[7; 16]);
    for list in [
        kex,
        "ecdsa-sha2-nistp256",
        "aes128-ctr",
        "aes128-ctr",
        "hmac-sha2-256",
        "hmac-sha2-256",
        "none",
        "none",
        "",
        "",
    ] {
        payload.extend_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
        payload.extend_from_slice(list.as_bytes());
    }
    payload.extend_from_slice(&[0; 5]);
    packet(&payload)
}

/// A server that slips a packet in before the new keys, as the Terrapin attack does (CVE-2023-48795), and has
/// no more to say.
async fn slips_one_in(kex: &str) -> FailureReason {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let kex = key_exchange(kex);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-Slips\r\n").await.unwrap();
        let lists = lists_of_key_exchange(&mut stream).await;
        stream.write_all(&kex).await.unwrap();
        stream.write_all(&packet(&[2, 0, 0, 0, 0])).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        lists
    });
    let failure = connect(&Agent::new(), port).await.unwrap_err();
    let lists = timeout(PATIENCE, server).await.expect("the socket is closed").unwrap();
    let markers: Vec<_> = lists[0].split(',').skip_while(|name| !name.starts_with("ext-info")).collect();
    assert_eq!(markers, ["ext-info-c", "kex-strict-c-v00@openssh.com"], "{lists:?}");
    assert_eq!(lists[0].split(',').next(), Some("ecdh-sha2-nistp256"));
    assert!(!lists[1].contains("-cert-"), "no certificate is asked for that could not be verified");
    failure.reason
}

#[tokio::test]
async fn strict_key_exchange_is_offered_on_the_wire_and_lets_nothing_be_slipped_in() {
    let strict = "ecdh-sha2-nistp256,kex-strict-s-v00@openssh.com";
    assert_eq!(slips_one_in(strict).await, FailureReason::ProtocolError);
    // Only because it was agreed on: without it such a packet is legal, and the exchange goes on to the end of
    // what the server sends.
    assert_eq!(slips_one_in("ecdh-sha2-nistp256").await, FailureReason::ConnectionLost);
}

/// Lets the first `bytes` of what the peer says through, and then nothing.
async fn stalling(peer: u16, bytes: u64) -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut from_agent, mut to_agent) = stream.split();
        let mut peer = TcpStream::connect(("127.0.0.1", peer)).await.unwrap();
        let (from_peer, mut to_peer) = peer.split();
        let mut some = from_peer.take(bytes);
        let silence = async {
            let _ = tokio::io::copy(&mut some, &mut to_agent).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = tokio::io::copy(&mut from_agent, &mut to_peer) => {}
            () = silence => {}
        }
    });
    (port, closed)
}

#[tokio::test]
async fn wherever_a_host_falls_silent_the_login_ends_at_its_limit_and_leaves_no_socket() {
    let peer = Peer::start(Login::KeyboardInteractive, echo()).await;
    let agent = impatient();
    // Identification, KEXINIT, the exchange, new keys, the service, the methods, the questions.
    let stalls = (0..1_200).step_by(60).map(|bytes| {
        let (agent, peer) = (&agent, peer.port);
        async move {
            let (port, closed) = stalling(peer, bytes).await;
            let failure = connect(agent, port).await.unwrap_err();
            assert_eq!(failure.reason, FailureReason::LoginTimeout, "after {bytes} bytes: {failure}");
            timeout(PATIENCE, closed).await.expect("the socket is closed").unwrap();
        }
    });
    futures::future::join_all(stalls).await;
    assert_eq!(peer.state().passwords.len(), 0, "nobody got as far as to be asked");
    peer.until("the sockets are closed", |state| state.open == 0).await;
}

#[tokio::test]
async fn a_banner_without_end_is_cut_off() {
    for line in [&b"Welcome to nowhere.\r\n"[..], &[b'x'; 8192]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = 0;
            while sent < 1 << 20 && stream.write_all(line).await.is_ok() {
                sent += line.len();
            }
            let _ = stream.write_all(b"\r\nSSH-2.0-Late\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let failure = connect(&impatient(), port).await.unwrap_err();
        let reasons =
            [FailureReason::ProtocolError, FailureReason::ConnectionLost, FailureReason::LoginTimeout];
        assert!(reasons.contains(&failure.reason), "{failure}");
        timeout(PATIENCE, server).await.expect("the socket is closed").unwrap();
    }
}

/// A certificate for the host at 127.0.0.1, but for what `change` does to it.
fn certificate(key: &PrivateKey, authority: &PrivateKey, change: impl FnOnce(&mut Builder)) -> Certificate {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let public = key.public_key().key_data().clone();
    let mut builder =
        Builder::new_with_random_nonce(&mut rand::rng(), public, now - 1000, now + 1000).unwrap();
    builder.cert_type(CertType::Host).unwrap().valid_principal("127.0.0.1").unwrap();
    change(&mut builder);
    builder.sign(authority).unwrap()
}

#[tokio::test]
async fn a_host_that_an_authority_vouches_for_needs_no_line_of_its_own() {
    let random = |algorithm| PrivateKey::random(&mut rand::rng(), algorithm).unwrap();
    let (key, authority) =
        (random(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }), random(Algorithm::Ed25519));
    let peer = Peer::with_key(Login::KeyboardInteractive, echo(), key.clone()).await;
    let agent = Agent::new();
    let file = agent.folder.path().join("known_hosts");
    let line = |marker: &str, names: &str, key: &PrivateKey| {
        format!("{marker} {names} {}\n", key.public_key().to_openssh().unwrap())
    };
    let trusted = line("@cert-authority", "[127.0.0.*]:*", &authority);
    std::fs::write(&file, &trusted).unwrap();

    let failure = connect(&agent, peer.port).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyUnknown);
    assert!(failure.message.contains("no @cert-authority there has certified it"), "{failure}");

    peer.state().certificate = Some(certificate(&key, &authority, |_| {}));
    connect(&agent, peer.port).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), trusted, "nothing is recorded");

    let revoked = line("@revoked", "*", &authority);
    std::fs::write(&file, trusted.clone() + &revoked).unwrap();
    let failure = connect(&agent, peer.port).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyRevoked);

    std::fs::write(&file, line("@cert-authority", "*", &random(Algorithm::Ed25519))).unwrap();
    let failure = connect(&agent, peer.port).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::HostKeyUnknown, "another authority");

    // Where no authority is recorded the host shows its plain key, which is new.
    std::fs::write(&file, "").unwrap();
    connect(&agent, peer.port).await.unwrap();
    assert_eq!(peer.state().passwords.len(), 2, "only to those who could be trusted");
}
