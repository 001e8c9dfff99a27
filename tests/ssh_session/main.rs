//! Sessions and visits against a server that misbehaves in every way that hosts are known to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod handshake;
mod keys;
mod peer;
mod visits;

use esxi_otel_agent::accounts::guard::{CredentialId, Guard};
use esxi_otel_agent::accounts::{Login as Credentials, LoginSecret, Secret, SshKey};
use esxi_otel_agent::config::{HostKeyPolicy, LockoutConfig, SshConfig};
use esxi_otel_agent::inventory::{Endpoint, Host};
use esxi_otel_agent::outcome::FailureReason;
use esxi_otel_agent::ssh::{Connector, End, HostKeys, Limits, Session, Transcript};
use esxi_otel_agent::stats::Stats;
use peer::{Commands, Login, PASSWORD, PATIENCE, Peer, Say};
use russh::keys::{Algorithm, PrivateKey};
use std::sync::Arc;
use std::time::Duration;

const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), max_bytes: 100_000 };
/// Limits, for what ends at its limit but not before something has come: one after the other, until it has. A
/// machine that does not stall needs the first alone.
const LONGER_AND_LONGER: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_secs(3), Duration::from_secs(30)];

struct Agent {
    connector: Connector,
    guard: Arc<Guard>,
    stats: Arc<Stats>,
    folder: tempfile::TempDir,
}

fn config(folder: &tempfile::TempDir) -> SshConfig {
    SshConfig {
        port: 22,
        known_hosts: folder.path().join("known_hosts"),
        host_key_policy: HostKeyPolicy::AcceptNew,
        reuse_sessions: true,
        refresh_sessions: None,
        connect_timeout: Duration::from_secs(5),
        login_timeout: Duration::from_secs(5),
        command_timeout: Duration::from_secs(10),
    }
}

impl Agent {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut SshConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder);
        change(&mut config);
        let stats = Stats::new();
        let lockout = LockoutConfig {
            wait: Duration::from_secs(1000),
            max_wait: Duration::from_secs(86_400),
            unproven_tries: 3,
            volatile: true,
        };
        let guard = Arc::new(Guard::new(lockout, stats.clone()));
        let host_keys = Arc::new(HostKeys::load(&config, stats.clone()).unwrap());
        let connector = Connector::new(config, host_keys, guard.clone(), stats.clone());
        Self { connector, guard, stats, folder }
    }

    async fn connect(&self, peer: &Peer, password: &str) -> Result<Session, FailureReason> {
        let secret = LoginSecret::Password(Secret::new(password));
        let credential = CredentialId([password.len().try_into().unwrap(); 16]);
        let login = Credentials { user: "root".into(), secret, credential };
        self.connector.connect(&host(peer.port), &login).await.map_err(|failure| {
            assert!(!failure.message.contains(password), "{failure}");
            failure.reason
        })
    }

    /// Logins by outcome, as they are counted.
    fn logins(&self, outcome: &str) -> f64 {
        self.count("esxi.agent.logins", outcome)
    }

    fn count(&self, name: &str, outcome: &str) -> f64 {
        let samples = self.stats.samples();
        let fits = |s: &&esxi_otel_agent::metric::Sample| {
            s.def.name == name && s.attributes.get("outcome").is_none_or(|o| o == outcome)
        };
        samples.iter().filter(fits).map(|s| s.value).sum()
    }
}

fn host(port: u16) -> Host {
    let endpoint = Endpoint { host: "127.0.0.1".into(), port: Some(port) };
    Host {
        address: format!("127.0.0.1:{port}").into(),
        endpoint,
        site: "lab".into(),
        labels: Default::default(),
    }
}

fn echo() -> Commands {
    Commands::Play(vec![Say::Out(b"one\ntwo\n"), Say::Exit(0), Say::Eof, Say::Close])
}

async fn run(peer: &Peer, limits: Limits) -> (Session, Vec<String>, Transcript) {
    let mut session = Agent::new().connect(peer, PASSWORD).await.unwrap();
    let (lines, transcript) = exec(&mut session, limits, |_| false).await;
    (session, lines, transcript)
}

/// Runs a command up to the line that is the last one of interest, and takes down its lines.
async fn exec(
    session: &mut Session,
    limits: Limits,
    is_last: impl Fn(&str) -> bool + Send + Sync,
) -> (Vec<String>, Transcript) {
    let mut lines = Vec::new();
    let until = |_, line: &str| {
        lines.push(line.to_owned());
        is_last(line)
    };
    let transcript = session.exec("command", limits, until).await.unwrap();
    (lines, transcript)
}

#[tokio::test]
async fn every_way_of_asking_for_the_password_is_answered() {
    for login in
        [Login::KeyboardInteractive, Login::Password, Login::Both, Login::TwoPrompts, Login::TwoSteps]
    {
        let peer = Peer::start(login, echo()).await;
        let agent = Agent::new();
        let mut session = agent.connect(&peer, PASSWORD).await.unwrap_or_else(|e| panic!("{login:?}: {e}"));
        assert_eq!(exec(&mut session, LIMITS, |_| false).await.0, ["one", "two"]);
        assert_eq!(agent.logins("accepted"), 1.0);
        session.close().await;
        peer.until("the session is over", |state| state.open == 0).await;
        assert_eq!(agent.count("esxi.agent.ssh.sessions", ""), 0.0);
    }
}

#[tokio::test]
async fn one_wrong_password_is_one_failure_however_many_methods_there_are() {
    for login in
        [Login::KeyboardInteractive, Login::Password, Login::Both, Login::AsksAgain, Login::NoMethodLeft]
    {
        let peer = Peer::start(login, echo()).await;
        let agent = Agent::new();
        assert_eq!(agent.connect(&peer, "wrong").await.err(), Some(FailureReason::AuthFailed), "{login:?}");
        assert_eq!(peer.state().passwords, ["wrong"], "{login:?}");
        assert_eq!(agent.logins("rejected"), 1.0, "{login:?}");
        // The guard keeps the next try from even dialing.
        assert_eq!(agent.connect(&peer, "wrong").await.err(), Some(FailureReason::AuthGuarded));
        assert_eq!(peer.state().connections, 1);
        peer.until("the connection is gone", |state| state.open == 0).await;
    }
}

#[tokio::test]
async fn an_expired_password_is_not_answered_with_itself() {
    let peer = Peer::start(Login::WantsNewPassword, echo()).await;
    assert_eq!(Agent::new().connect(&peer, PASSWORD).await.err(), Some(FailureReason::AuthFailed));
    assert_eq!(peer.state().passwords, [PASSWORD]);
}

#[tokio::test]
async fn loss_is_no_rejection_and_counts_only_after_the_secret_was_sent() {
    let agent = Agent::new();
    let peer = Peer::start(Login::CutBeforePassword, echo()).await;
    for _ in 0..2 {
        assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::ConnectionLost));
    }
    let peer = Peer::start(Login::CutAfterPassword, echo()).await;
    assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::ConnectionLost));
    assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::AuthGuarded));
    assert_eq!((agent.logins("lost"), agent.logins("rejected")), (1.0, 0.0));
}

#[tokio::test]
async fn a_login_that_hangs_ends_at_its_limit_and_leaves_no_socket() {
    let peer = Peer::start(Login::SilentAfterPassword, echo()).await;
    for limit in LONGER_AND_LONGER {
        let agent = Agent::with(|config| config.login_timeout = limit);
        assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::LoginTimeout));
        peer.until("the socket is closed", |state| state.open == 0).await;
        // What ends before the secret is sent counts for nobody.
        if peer.state().passwords.len() == 1 {
            assert_eq!(agent.logins("lost"), 1.0);
            return;
        }
    }
    panic!("the password never came");
}

#[tokio::test]
async fn a_login_that_is_dropped_leaves_no_socket_and_counts_as_lost() {
    let peer = Peer::start(Login::SilentAfterPassword, echo()).await;
    let agent = Agent::new();
    let connecting = agent.connect(&peer, PASSWORD);
    tokio::select! {
        _ = connecting => panic!("it never answers"),
        () = peer.until("it has the password", |state| state.passwords.len() == 1) => {}
    }
    peer.until("the socket is closed", |state| state.open == 0).await;
    assert_eq!(agent.logins("lost"), 1.0);
}

#[tokio::test]
async fn a_key_exchange_that_hangs_ends_at_its_limit_and_leaves_no_socket() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    // Says who it is, and no more.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-Stalled\r\n").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await
    });
    let agent = Agent::with(|config| config.login_timeout = Duration::from_millis(300));
    let secret = LoginSecret::Password(Secret::new(PASSWORD));
    let login = Credentials { user: "root".into(), secret, credential: CredentialId([1; 16]) };
    let failure = agent.connector.connect(&host(port), &login).await.err().unwrap();
    assert_eq!(failure.reason, FailureReason::LoginTimeout);
    let _ = tokio::time::timeout(PATIENCE, closed).await.expect("the socket is closed");
}

#[tokio::test]
async fn what_is_no_ssh_server_is_a_breach_of_protocol_or_a_loss() {
    use tokio::io::AsyncWriteExt as _;
    for (greeting, reason) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\nthat is not SSH at all\r\n"[..], FailureReason::ProtocolError),
        (
            b"SSH-2.0-Odd\r\n\xff\xff\xff\xff garbage that is no packet of any kind",
            FailureReason::ProtocolError,
        ),
        (b"", FailureReason::ConnectionLost),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting).await.unwrap();
            stream.shutdown().await.unwrap();
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        });
        let secret = LoginSecret::Password(Secret::new(PASSWORD));
        let login = Credentials { user: "root".into(), secret, credential: CredentialId([1; 16]) };
        let failure = Agent::new().connector.connect(&host(port), &login).await.err().unwrap();
        assert_eq!(failure.reason, reason, "{failure}");
    }
}

#[tokio::test]
async fn keys_log_in_without_the_guard_and_are_said_to_be_unwanted_where_they_are() {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let login = Credentials {
        user: "root".into(),
        secret: LoginSecret::Key(SshKey::new(key.clone(), None)),
        credential: CredentialId([9; 16]),
    };
    let agent = Agent::new();
    let peer = Peer::start(Login::Key, echo()).await;
    for _ in 0..4 {
        let failure = agent.connector.connect(&host(peer.port), &login).await.err().unwrap();
        assert_eq!(failure.reason, FailureReason::AuthFailed);
    }
    peer.state().authorized = Some(key.public_key().clone());
    agent.connector.connect(&host(peer.port), &login).await.unwrap();
    let peer = Peer::start(Login::Password, echo()).await;
    let failure = agent.connector.connect(&host(peer.port), &login).await.err().unwrap();
    assert!(failure.message.ends_with("the host accepts only password"), "{failure}");
    // And a password where only keys are welcome is never sent.
    let peer = Peer::start(Login::Key, echo()).await;
    assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::AuthFailed));
    assert_eq!(agent.logins("accepted") + agent.logins("rejected") + agent.logins("lost"), 0.0);
}

#[tokio::test]
async fn a_password_that_is_right_but_not_enough_makes_the_target_wait() {
    let peer = Peer::start(Login::AlsoKey, echo()).await;
    let agent = Agent::new();
    assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::AuthFailed));
    assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::AuthGuarded));
}

#[tokio::test]
async fn where_nothing_can_be_remembered_sessions_and_keys_go_on_and_passwords_wait() {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let (by_key, by_password) =
        (Peer::start(Login::Key, echo()).await, Peer::start(Login::KeyboardInteractive, echo()).await);
    by_key.state().authorized = Some(key.public_key().clone());
    let proof = LoginSecret::Key(SshKey::new(key, None));
    let login = Credentials { user: "root".into(), secret: proof, credential: CredentialId([9; 16]) };
    let good = Agent::new();
    let mut kept = good.connect(&by_password, PASSWORD).await.unwrap();
    good.connector.connect(&host(by_key.port), &login).await.unwrap();

    // A torn journal, a folder that nobody can write to.
    let torn = tempfile::tempdir().unwrap();
    std::fs::create_dir(torn.path().join("guard")).unwrap();
    std::fs::write(torn.path().join("guard/journal"), "no journal\nat all\n").unwrap();
    for state in [torn.path(), std::path::Path::new("/proc/nowhere")] {
        let lockout = LockoutConfig {
            wait: Duration::from_secs(1000),
            max_wait: Duration::from_secs(86_400),
            unproven_tries: 3,
            volatile: false,
        };
        let guard = Arc::new(Guard::open(lockout, state, good.stats.clone()).await);
        let keys = Arc::new(HostKeys::load(good.connector.config(), good.stats.clone()).unwrap());
        let config = good.connector.config().clone();
        let connector = Connector::new(config, keys, guard, good.stats.clone());
        connector.connect(&host(by_key.port), &login).await.unwrap();
        assert_eq!(exec(&mut kept, LIMITS, |_| false).await.0, ["one", "two"]);
        let secret = LoginSecret::Password(Secret::new(PASSWORD));
        let login = Credentials { user: "root".into(), secret, credential: CredentialId([7; 16]) };
        let failure = connector.connect(&host(by_password.port), &login).await.err().unwrap();
        assert_eq!(failure.reason, FailureReason::AuthGuarded);
        assert!(failure.message.contains("the guard's memory ") && failure.message.lines().count() == 1);
    }
    assert_eq!(by_password.state().passwords.len(), 1);
}

#[tokio::test]
async fn a_changed_host_key_is_given_no_password() {
    let agent = Agent::new();
    let peer = Peer::start(Login::KeyboardInteractive, echo()).await;
    agent.connect(&peer, PASSWORD).await.unwrap();
    let known = agent.folder.path().join("known_hosts");
    let other =
        PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap().public_key().to_openssh().unwrap();
    std::fs::write(&known, format!("[127.0.0.1]:{} {other}\n", peer.port)).unwrap();
    assert_eq!(agent.connect(&peer, PASSWORD).await.err(), Some(FailureReason::HostKeyChanged));
    assert_eq!(peer.state().passwords.len(), 1, "that of the first login");
    peer.until("the sockets are closed", |state| state.open == 0).await;
}

#[tokio::test]
async fn output_is_put_together_however_it_is_cut_and_whatever_is_in_it() {
    let peer = Peer::start(
        Login::KeyboardInteractive,
        Commands::Play(vec![
            Say::Out(b"on"),
            Say::Err(b"not of interest\n"),
            Say::Out(b"e\r\ntwo \xff\0\n\nla"),
            Say::Exit(3),
            Say::Eof,
            Say::Out(b"st"),
            Say::Close,
        ]),
    )
    .await;
    let (session, lines, transcript) = run(&peer, LIMITS).await;
    assert_eq!(lines[..3], ["one", "two \u{fffd}\0", ""]);
    assert_eq!((transcript.exit, transcript.end), (Some(3), End::Complete));
    assert!(!session.is_closed());
}

#[tokio::test]
async fn a_command_may_end_without_a_status_by_a_signal_or_in_any_order() {
    for (what, exit) in [
        (vec![Say::Out(b"one\n"), Say::Close], None),
        (vec![Say::Out(b"one\n"), Say::Signal, Say::Eof, Say::Close], None),
        (vec![Say::Eof, Say::Out(b"one\n"), Say::Exit(1), Say::Close], Some(1)),
        (vec![Say::Exit(1), Say::Out(b"one\n"), Say::Close], Some(1)),
    ] {
        let story = format!("{what:?}");
        let peer = Peer::start(Login::KeyboardInteractive, Commands::Play(what)).await;
        let (session, lines, transcript) = run(&peer, LIMITS).await;
        assert_eq!(lines, ["one"], "{story}");
        assert_eq!((transcript.exit, transcript.end), (exit, End::Complete), "{story}");
        assert!(!session.is_closed(), "{story}");
    }
}

#[tokio::test]
async fn new_keys_in_the_middle_of_a_command_are_not_noticed() {
    const LINE: &[u8] = &[b'x'; 999];
    let output = (0..60).flat_map(|_| [Say::Out(LINE), Say::Out(b"\n")]);
    let peer = Peer::start(
        Login::KeyboardInteractive,
        Commands::Play(output.chain([Say::Exit(0), Say::Eof, Say::Close]).collect()),
    )
    .await;
    peer.state().rekey_after = Some(4_000);
    let mut session = Agent::new().connect(&peer, PASSWORD).await.unwrap();
    for _ in 0..2 {
        let (lines, transcript) = exec(&mut session, LIMITS, |_| false).await;
        assert_eq!((lines.len(), transcript.end), (60, End::Complete));
        assert!(lines.iter().all(|line| line.as_bytes() == LINE));
    }
}

#[tokio::test]
async fn reading_ends_with_the_last_line_of_interest_and_the_channel_is_given_back() {
    let peer = Peer::start(
        Login::KeyboardInteractive,
        Commands::Play(vec![Say::Out(b"a\nlast\nmore\n"), Say::Stall]),
    )
    .await;
    let mut session = Agent::new().connect(&peer, PASSWORD).await.unwrap();
    for _ in 0..3 {
        let (lines, transcript) = exec(&mut session, LIMITS, |line| line == "last").await;
        assert_eq!((lines, transcript.end), (vec!["a".to_owned(), "last".to_owned()], End::Complete));
        peer.until("the channel is closed", |state| state.channels == 0).await;
    }
    assert_eq!(peer.seen(), (1, 3));
}

#[tokio::test]
async fn a_command_that_hangs_gives_the_lines_that_came() {
    let peer =
        Peer::start(Login::KeyboardInteractive, Commands::Play(vec![Say::Out(b"a\nb"), Say::Stall])).await;
    let mut came = Vec::new();
    for timeout in LONGER_AND_LONGER {
        let (session, lines, transcript) = run(&peer, Limits { timeout, ..LIMITS }).await;
        assert_eq!(transcript.end, End::TimedOut);
        assert!(session.is_closed(), "nobody knows what goes on at its other end");
        peer.until("the channel is closed", |state| state.channels == 0).await;
        came = lines;
        if !came.is_empty() {
            break;
        }
    }
    assert_eq!(came, ["a", "b"]);
}

#[tokio::test]
async fn a_flood_is_cut_at_the_limit() {
    let peer = Peer::start(Login::KeyboardInteractive, Commands::Play(vec![Say::Flood])).await;
    let (session, lines, transcript) = run(&peer, LIMITS).await;
    assert_eq!(transcript.end, End::TooLarge);
    assert!(lines.iter().map(String::len).sum::<usize>() <= LIMITS.max_bytes);
    drop(session);
    peer.until("the socket is closed", |state| state.open == 0).await;
}

#[tokio::test]
async fn a_cut_connection_gives_the_lines_that_came() {
    let peer =
        Peer::start(Login::KeyboardInteractive, Commands::Play(vec![Say::Out(b"a\n"), Say::Stall])).await;
    let mut session = Agent::new().connect(&peer, PASSWORD).await.unwrap();
    let cut_after_the_first = |_: &str| {
        peer.cut_all();
        false
    };
    let (lines, transcript) = exec(&mut session, LIMITS, cut_after_the_first).await;
    assert_eq!((lines, transcript.end), (vec!["a".to_owned()], End::Lost));
}

#[tokio::test]
async fn refusals_have_reasons_of_their_own() {
    for (commands, reason) in
        [(Commands::NoChannel, FailureReason::SessionLimit), (Commands::Refuse, FailureReason::CommandFailed)]
    {
        let peer = Peer::start(Login::KeyboardInteractive, commands).await;
        let mut session = Agent::new().connect(&peer, PASSWORD).await.unwrap();
        assert_eq!(session.exec("x", LIMITS, |_, _| false).await.unwrap_err().reason, reason);
    }
}
