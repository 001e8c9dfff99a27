//! Public keys: certificates, algorithms, and hosts that want a password beside the key.

use super::peer::{Login, PASSWORD, Peer};
use super::{Agent, echo, host};
use esxi_otel_agent::accounts::guard::CredentialId;
use esxi_otel_agent::accounts::{Login as Credentials, LoginSecret, Secret, SshKey};
use esxi_otel_agent::outcome::{Failure, FailureReason};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::{Algorithm, Certificate, PrivateKey};
use std::time::{SystemTime, UNIX_EPOCH};

fn random_key(algorithm: Algorithm) -> PrivateKey {
    PrivateKey::random(&mut rand::rng(), algorithm).unwrap()
}

fn certificate(key: &PrivateKey, authority: &PrivateKey, principal: &str) -> Certificate {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let public = key.public_key().key_data().clone();
    let mut builder =
        Builder::new_with_random_nonce(&mut rand::rng(), public, now - 1000, now + 1000).unwrap();
    builder.cert_type(CertType::User).unwrap().valid_principal(principal).unwrap();
    builder.sign(authority).unwrap()
}

async fn connect(agent: &Agent, peer: &Peer, secret: LoginSecret) -> Result<(), Failure> {
    let login = Credentials { user: "root".into(), secret, credential: CredentialId([3; 16]) };
    agent.connector.connect(&host(peer.port), &login).await.map(drop)
}

fn both(key: &PrivateKey, password: &str) -> LoginSecret {
    LoginSecret::KeyAndPassword(SshKey::new(key.clone(), None), Secret::new(password))
}

#[tokio::test]
async fn a_host_that_wants_a_key_and_a_password_gets_both() {
    let key = random_key(Algorithm::Ed25519);
    let agent = Agent::new();
    let peer = Peer::start(Login::KeyThenPassword, echo()).await;
    peer.state().authorized = Some(key.public_key().clone());
    connect(&agent, &peer, both(&key, PASSWORD)).await.unwrap();
    assert_eq!(peer.state().passwords, [PASSWORD]);
    assert_eq!(agent.logins("accepted"), 1.0);

    // The other way round.
    let peer = Peer::start(Login::AlsoKey, echo()).await;
    peer.state().authorized = Some(key.public_key().clone());
    connect(&agent, &peer, both(&key, PASSWORD)).await.unwrap();
    assert_eq!(agent.logins("accepted"), 2.0);

    // Where one of the two is enough, the other one stays here.
    let peer = Peer::start(Login::Key, echo()).await;
    peer.state().authorized = Some(key.public_key().clone());
    connect(&agent, &peer, both(&key, PASSWORD)).await.unwrap();
    assert_eq!(peer.state().passwords.len(), 0);
    let peer = Peer::start(Login::Password, echo()).await;
    connect(&agent, &peer, both(&key, PASSWORD)).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_beside_a_right_key_is_one_failure_and_the_guard_keeps_the_next_one_back() {
    let key = random_key(Algorithm::Ed25519);
    let agent = Agent::new();
    let peer = Peer::start(Login::KeyThenPassword, echo()).await;
    peer.state().authorized = Some(key.public_key().clone());
    let failure = connect(&agent, &peer, both(&key, "wrong")).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::AuthFailed);
    assert_eq!(agent.logins("rejected"), 1.0);
    let failure = connect(&agent, &peer, both(&key, "wrong")).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::AuthGuarded);
    assert_eq!(peer.state().passwords, ["wrong"], "once");
}

#[tokio::test]
async fn a_rejected_key_is_not_followed_by_the_password() {
    let key = random_key(Algorithm::Ed25519);
    let agent = Agent::new();
    let peer = Peer::start(Login::KeyThenPassword, echo()).await;
    let failure = connect(&agent, &peer, both(&key, PASSWORD)).await.unwrap_err();
    assert!(failure.message.ends_with("rejected (publickey)"), "{failure}");
    assert_eq!(peer.state().passwords.len(), 0);
    assert_eq!(agent.logins("rejected"), 0.0);
}

#[tokio::test]
async fn a_key_that_is_right_but_not_enough_says_what_is_missing() {
    let key = random_key(Algorithm::Ed25519);
    let peer = Peer::start(Login::KeyThenPassword, echo()).await;
    peer.state().authorized = Some(key.public_key().clone());
    let failure = connect(&Agent::new(), &peer, LoginSecret::Key(SshKey::new(key, None))).await.unwrap_err();
    assert!(failure.message.ends_with("the host also wants keyboard-interactive"), "{failure}");
}

#[tokio::test]
async fn rsa_keys_sign_by_the_best_hash_that_the_server_names() {
    let key = random_key(Algorithm::Rsa { hash: None });
    let peer = Peer::start(Login::Key, echo()).await;
    peer.state().authorized = Some(key.public_key().clone());
    connect(&Agent::new(), &peer, LoginSecret::Key(SshKey::new(key.clone(), None))).await.unwrap();
    assert_eq!(peer.state().algorithms, ["rsa-sha2-512"]);

    let authority = random_key(Algorithm::Ed25519);
    peer.state().authority = Some(authority.public_key().clone());
    let certified = SshKey::new(key.clone(), Some(certificate(&key, &authority, "root")));
    connect(&Agent::new(), &peer, LoginSecret::Key(certified)).await.unwrap();
    assert_eq!(peer.state().offered, ["rsa-sha2-512", "rsa-sha2-512"]);
}

#[tokio::test]
async fn a_certificate_is_presented_in_place_of_its_key() {
    let (key, authority) = (random_key(Algorithm::Ed25519), random_key(Algorithm::Ed25519));
    let peer = Peer::start(Login::Key, echo()).await;
    peer.state().authority = Some(authority.public_key().clone());
    let with = |principal| {
        LoginSecret::Key(SshKey::new(key.clone(), Some(certificate(&key, &authority, principal))))
    };
    connect(&Agent::new(), &peer, with("root")).await.unwrap();
    assert_eq!(peer.state().algorithms, ["ssh-ed25519-cert-v01@openssh.com"]);
    let failure = connect(&Agent::new(), &peer, with("somebody")).await.unwrap_err();
    assert_eq!(failure.reason, FailureReason::AuthFailed);
}
