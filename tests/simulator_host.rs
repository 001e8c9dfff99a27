//! The simulated hosts, seen by another client than the agent's: russh's, used plainly.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use esxi_otel_agent::simulator::faults::{HostFault, ServiceState};
use esxi_otel_agent::simulator::host::{FleetHandle, FleetSpec, Lockout, Sockets};
use harness::{fleet, hosts, in_time, until_equal};
use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse as Prompts};
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{ChannelMsg, Preferred, cipher, kex};
use std::borrow::Cow;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Trusts any host key and remembers it.
#[derive(Clone, Default)]
struct Trusting(Arc<Mutex<Option<PublicKey>>>);

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        *self.0.lock().unwrap() = Some(key.public_key());
        Ok(true)
    }
}

fn config() -> Arc<client::Config> {
    let preferred = Preferred {
        kex: Cow::Borrowed(&[
            kex::ECDH_SHA2_NISTP256,
            kex::EXTENSION_SUPPORT_AS_CLIENT,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
        ]),
        cipher: Cow::Borrowed(&[cipher::AES_128_GCM]),
        ..Preferred::DEFAULT
    };
    Arc::new(client::Config { preferred, nodelay: true, ..client::Config::default() })
}

async fn connect(address: SocketAddr) -> Result<(Handle<Trusting>, PublicKey), russh::Error> {
    let trusting = Trusting::default();
    let session = in_time("the handshake", client::connect(config(), address, trusting.clone())).await?;
    let key = trusting.0.lock().unwrap().clone().expect("a host key");
    Ok((session, key))
}

/// How keyboard-interactive authentication with this password ends, and how many rounds it took.
async fn password(session: &mut Handle<Trusting>, password: &str) -> Result<(bool, usize), russh::Error> {
    let mut state = session.authenticate_keyboard_interactive_start("root", None).await?;
    let mut rounds = 0;
    loop {
        let prompts = match state {
            Prompts::Success => return Ok((true, rounds)),
            Prompts::Failure { .. } => return Ok((false, rounds)),
            Prompts::InfoRequest { prompts, .. } => prompts,
        };
        rounds += 1;
        let answers = prompts.iter().map(|_| password.to_owned()).collect();
        state = session.authenticate_keyboard_interactive_respond(answers).await?;
    }
}

async fn login(fleet: &FleetHandle, host: usize) -> Handle<Trusting> {
    let (mut session, _) = connect(fleet.address(host)).await.unwrap();
    assert!(password(&mut session, "simulated").await.unwrap().0, "login to host {host}");
    session
}

/// Output of a command and its exit status, up to the close of its channel.
async fn exec(session: &Handle<Trusting>, command: &str) -> Result<(String, Option<u32>), russh::Error> {
    let mut channel = session.channel_open_session().await?;
    channel.exec(true, command).await?;
    let (mut output, mut exit) = (Vec::new(), None);
    let read = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                    output.extend_from_slice(&data)
                }
                ChannelMsg::ExitStatus { exit_status } => exit = Some(exit_status),
                _ => {}
            }
        }
    };
    in_time("the close of the channel", read).await;
    Ok((String::from_utf8_lossy(&output).into_owned(), exit))
}

#[tokio::test]
async fn a_host_lets_the_account_in_and_runs_what_it_is_told() {
    let fleet = hosts(2);
    fleet.set_service(1, "hostd", ServiceState::Stopped);
    let command = "/etc/init.d/hostd status; /etc/init.d/nsx-opsagent status; echo $((6*7)); exit 3";
    for (host, line) in [(0, "hostd is running."), (1, "hostd is not running.")] {
        let session = login(&fleet, host).await;
        let (output, exit) = exec(&session, command).await.unwrap();
        assert_eq!(output, format!("{line}\nopsAgent is running\n42\n"));
        assert_eq!(exit, Some(3));
        assert_eq!((fleet.logins(host), fleet.sessions(host), fleet.commands(host)), (1, 1, 1));
    }
    fleet.shutdown().await;
    assert_eq!(fleet.sessions(0), 0);
}

#[tokio::test]
async fn all_hosts_share_one_socket_and_keep_their_own_keys() {
    let fleet = hosts(600);
    assert_eq!(fleet.sockets(), Sockets::Shared);
    let (_, first) = connect(fleet.address(0)).await.unwrap();
    let (_, last) = connect(fleet.address(599)).await.unwrap();
    let (_, again) = connect(fleet.address(0)).await.unwrap();
    assert_ne!(first, last);
    assert_eq!(first, again);
    fleet.set_fault(0, HostFault::HostKeyChanged);
    assert_ne!(connect(fleet.address(0)).await.unwrap().1, first);
    fleet.clear_fault(0);
    assert_eq!(connect(fleet.address(0)).await.unwrap().1, first);
    assert_eq!((fleet.connections(0), fleet.connections(599), fleet.connections(1)), (4, 1, 0));
}

#[tokio::test]
async fn the_password_may_be_followed_by_a_round_without_prompts() {
    for (zero_prompt_round, rounds) in [(true, 2), (false, 1)] {
        let fleet = fleet(FleetSpec { zero_prompt_round, ..FleetSpec::default() });
        let (mut session, _) = connect(fleet.address(0)).await.unwrap();
        assert_eq!(password(&mut session, "simulated").await.unwrap(), (true, rounds));
    }
}

#[tokio::test]
async fn wrong_passwords_lock_the_account_even_for_the_right_one() {
    let lockout = Lockout { failures: 3, ..Lockout::default() };
    let fleet = fleet(FleetSpec { hosts: 2, lockout, ..FleetSpec::default() });
    let (mut session, _) = connect(fleet.address(0)).await.unwrap();
    for _ in 0..3 {
        assert!(!fleet.locked(0));
        assert!(!password(&mut session, "wrong").await.unwrap().0);
    }
    assert!(fleet.locked(0));
    assert!(!password(&mut session, "simulated").await.unwrap().0);
    assert_eq!((fleet.failed_logins(0), fleet.logins(0), fleet.locked(1)), (4, 0, false));
}

#[tokio::test]
async fn the_method_password_is_off_and_does_not_count() {
    let fleet = hosts(1);
    let (mut session, _) = connect(fleet.address(0)).await.unwrap();
    let AuthResult::Failure { remaining_methods, .. } = session.authenticate_none("root").await.unwrap()
    else {
        panic!("let in without a secret")
    };
    let offered: Vec<String> = remaining_methods.iter().map(String::from).collect();
    assert_eq!(offered, ["publickey", "keyboard-interactive"]);
    assert!(!session.authenticate_password("root", "simulated").await.unwrap().success());
    assert_eq!(fleet.failed_logins(0), 0);
}

#[tokio::test]
async fn an_authorized_key_logs_in_and_another_does_not() {
    let key = || Arc::new(PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap());
    let (known, other) = (key(), key());
    let authorized_keys = vec![known.public_key().clone()];
    let fleet = fleet(FleetSpec { authorized_keys, ..FleetSpec::default() });
    let (mut session, _) = connect(fleet.address(0)).await.unwrap();
    for (key, right) in [(other, false), (known, true)] {
        let key = PrivateKeyWithHashAlg::new(key, None);
        assert_eq!(session.authenticate_publickey("root", key).await.unwrap().success(), right);
    }
    assert_eq!((fleet.logins(0), fleet.failed_logins(0)), (1, 0));
}

#[tokio::test]
async fn a_host_that_refuses_or_hangs_does_so_before_ssh() {
    for sockets in [Sockets::PerHost, Sockets::Shared] {
        let fleet = fleet(FleetSpec { hosts: 3, sockets: Some(sockets), ..FleetSpec::default() });
        if sockets == Sockets::PerHost {
            fleet.set_fault(1, HostFault::RefuseConnection);
            let error = TcpStream::connect(fleet.address(1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        fleet.set_fault(2, HostFault::HangAtConnect);
        let hangs = timeout(Duration::from_millis(300), TcpStream::connect(fleet.address(2))).await;
        assert!(hangs.is_err(), "{sockets:?}: the connection was established: {hangs:?}");
        for host in [1, 2] {
            fleet.clear_fault(host);
            login(&fleet, host).await;
        }
        login(&fleet, 0).await;
    }
}

#[tokio::test]
async fn faults_are_that_hosts_alone() {
    let fleet = hosts(16);
    let short = Duration::from_millis(300);

    fleet.set_fault(1, HostFault::NotSsh);
    assert!(connect(fleet.address(1)).await.is_err());
    fleet.set_fault(2, HostFault::HangAtKex);
    assert!(timeout(short, client::connect(config(), fleet.address(2), Trusting::default())).await.is_err());
    fleet.set_fault(3, HostFault::NoCommonAlgorithm);
    assert!(matches!(connect(fleet.address(3)).await, Err(russh::Error::NoCommonAlgo { .. })));

    fleet.set_fault(4, HostFault::WrongPassword);
    let (mut session, _) = connect(fleet.address(4)).await.unwrap();
    assert!(!password(&mut session, "simulated").await.unwrap().0);
    assert_eq!(fleet.failed_logins(4), 1);
    fleet.set_fault(5, HostFault::HangAtAuth);
    let (mut session, _) = connect(fleet.address(5)).await.unwrap();
    assert!(timeout(short, password(&mut session, "simulated")).await.is_err());
    fleet.set_fault(6, HostFault::DropAtAuth);
    let (mut session, _) = connect(fleet.address(6)).await.unwrap();
    assert!(!matches!(password(&mut session, "simulated").await, Ok((true, _))));
    assert_eq!(fleet.failed_logins(6), 0);

    let session = login(&fleet, 7).await;
    fleet.set_fault(7, HostFault::ChannelRefused);
    assert!(matches!(exec(&session, "true").await, Err(russh::Error::ChannelOpenFailure(_))));
    fleet.set_fault(7, HostFault::CommandRefused);
    assert_eq!(exec(&session, "echo text").await.unwrap(), (String::new(), None));
    fleet.set_fault(7, HostFault::HangAtCommand);
    assert!(timeout(short, exec(&session, "true")).await.is_err());
    fleet.set_fault(7, HostFault::NoMarkers);
    assert!(!exec(&session, "echo marker").await.unwrap().0.contains("marker"));
    fleet.set_fault(7, HostFault::Binary);
    assert!(exec(&session, "echo text").await.unwrap().0.contains('\u{fffd}'));
    fleet.set_fault(7, HostFault::Flood(3_000_000));
    assert_eq!(exec(&session, "echo text").await.unwrap().0.len(), 3_000_000);
    fleet.set_fault(7, HostFault::KillSession);
    let (output, exit) = exec(&session, "echo 0123456789").await.unwrap();
    assert_eq!((output.as_str(), exit), ("01234", None));

    let session = login(&fleet, 0).await;
    assert_eq!(exec(&session, "echo well").await.unwrap(), ("well\n".to_owned(), Some(0)));
}

#[tokio::test]
async fn channels_beyond_max_sessions_are_refused_until_one_is_closed() {
    let fleet = fleet(FleetSpec { max_sessions: 1, ..FleetSpec::default() });
    let session = login(&fleet, 0).await;
    let first = session.channel_open_session().await.unwrap();
    assert!(session.channel_open_session().await.is_err());
    first.close().await.unwrap();
    for _ in 0..3 {
        assert_eq!(
            exec(&session, "echo well").await.unwrap().0,
            "well\n",
            "who closes first does not matter"
        );
    }
}

#[tokio::test]
async fn killed_sessions_end_and_new_ones_are_welcome() {
    let fleet = hosts(1);
    let session = login(&fleet, 0).await;
    fleet.kill_sessions(0);
    until_equal("the sessions", 0, || fleet.sessions(0)).await;
    assert!(in_time("the end of the session", exec(&session, "true")).await.is_err());
    login(&fleet, 0).await;
}

#[tokio::test]
async fn latency_is_added_to_every_step() {
    let fleet = fleet(FleetSpec { latency: Duration::from_millis(150), ..FleetSpec::default() });
    let started = tokio::time::Instant::now();
    let session = login(&fleet, 0).await;
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    let started = tokio::time::Instant::now();
    exec(&session, "true").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(150), "{:?}", started.elapsed());
}
