//! A small SSH server that behaves as badly as a test wants, apart from the simulator: it does what it is
//! told, one connection at a time or many.

mod connection;

use connection::Connection;
use russh::keys::{Algorithm, Certificate, EcdsaCurve, PrivateKey, PublicKey};
use russh::server::Config;
use russh::{Limits, MethodKind, MethodSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub const PASSWORD: &str = "right password";
/// For what is sure to come, however slow this machine may be.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What happens when somebody logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Login {
    /// As ESXi: keyboard-interactive, then a round without prompts.
    #[default]
    KeyboardInteractive,
    /// The method `password` alone.
    Password,
    /// Both methods. Whoever tries both with a wrong password fails twice.
    Both,
    /// Two prompts in one round.
    TwoPrompts,
    /// Asks for the password again and again.
    AsksAgain,
    /// Lets a password in that is expired.
    WantsNewPassword,
    /// Never answers once it has the password.
    SilentAfterPassword,
    /// Cuts the connection once it has the password.
    CutAfterPassword,
    /// Cuts the connection before it has anything.
    CutBeforePassword,
    /// Rejects and lets no method remain.
    NoMethodLeft,
    /// Wants keyboard-interactive and then `password`.
    TwoSteps,
    /// Wants a public key beside the password.
    AlsoKey,
    /// A public key alone.
    Key,
    /// A public key, and then keyboard-interactive.
    KeyThenPassword,
}

/// What the host sends for a command.
#[derive(Debug, Clone)]
pub enum Say {
    Out(&'static [u8]),
    Err(&'static [u8]),
    Exit(u32),
    /// The command was killed by a signal.
    Signal,
    Eof,
    Close,
    /// Nothing more until the test is over.
    Stall,
    /// The connection is cut.
    Cut,
    /// Endless output.
    Flood,
}

/// How a command is answered.
#[derive(Debug, Clone)]
pub enum Commands {
    /// By a real shell.
    Shell(Scripts),
    /// By this.
    Play(Vec<Say>),
    /// The request is refused.
    Refuse,
    /// No channel is opened.
    NoChannel,
}

/// What a shell runs.
#[derive(Debug, Clone)]
pub struct Scripts {
    /// In place of `/etc/init.d`.
    pub folder: String,
    /// Before each command.
    pub profile: String,
}

#[derive(Debug)]
pub struct State {
    pub login: Login,
    pub commands: Commands,
    pub authorized: Option<PublicKey>,
    /// Whose certificates are accepted.
    pub authority: Option<PublicKey>,
    /// What the host shows in place of its key to whoever asks for one.
    pub certificate: Option<Certificate>,
    /// New keys are exchanged whenever so many bytes have been sent.
    pub rekey_after: Option<usize>,
    /// By which algorithms keys were offered, and as what they were accepted.
    pub offered: Vec<String>,
    pub algorithms: Vec<String>,
    /// Connections that were accepted, passwords that were looked at, sessions that were logged in.
    pub connections: usize,
    pub passwords: Vec<String>,
    pub sessions: usize,
    /// Commands that were run.
    pub executed: usize,
    /// Channels of all connections that are open now.
    pub channels: usize,
    /// Connections that are open now.
    pub open: usize,
}

/// The server. Ends with it.
pub struct Peer {
    pub port: u16,
    state: Arc<Mutex<State>>,
    cut: Arc<Mutex<CancellationToken>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut_all();
    }
}

impl Peer {
    pub async fn start(login: Login, commands: Commands) -> Self {
        let key =
            PrivateKey::random(&mut rand::rng(), Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }).unwrap();
        Self::with_key(login, commands, key).await
    }

    pub async fn with_key(login: Login, commands: Commands, key: PrivateKey) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            login,
            commands,
            authorized: None,
            authority: None,
            certificate: None,
            rekey_after: None,
            offered: Vec::new(),
            algorithms: Vec::new(),
            connections: 0,
            passwords: Vec::new(),
            sessions: 0,
            executed: 0,
            channels: 0,
            open: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let accepting = tokio::spawn(accept(listener, key, state.clone(), cut.clone()));
        Self { port, state, cut, accepting }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sessions that were logged in, and commands that were run.
    pub fn seen(&self) -> (usize, usize) {
        let state = self.state();
        (state.sessions, state.executed)
    }

    /// Cuts all connections.
    pub fn cut_all(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        until(|| condition(&self.state()), || format!("{what}; {:?}", self.state())).await;
    }
}

/// Waits until `condition` holds.
pub async fn until(condition: impl Fn() -> bool, what: impl Fn() -> String) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it never came to this: {}", what());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn accept(
    listener: TcpListener,
    key: PrivateKey,
    state: Arc<Mutex<State>>,
    cut: Arc<Mutex<CancellationToken>>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let token = cut.lock().unwrap().clone();
        tokio::spawn(serve(stream, key.clone(), state.clone(), token));
    }
}

async fn serve(stream: TcpStream, key: PrivateKey, state: Arc<Mutex<State>>, token: CancellationToken) {
    let methods: &[MethodKind] = match state.lock().unwrap().login {
        Login::Password => &[MethodKind::Password],
        Login::Both => &[MethodKind::Password, MethodKind::KeyboardInteractive],
        Login::Key | Login::KeyThenPassword => &[MethodKind::PublicKey],
        _ => &[MethodKind::KeyboardInteractive],
    };
    let (certificate, rekey_after) = {
        let state = state.lock().unwrap();
        (state.certificate.clone(), state.rekey_after)
    };
    let limits = Limits { rekey_write_limit: rekey_after.unwrap_or(1 << 30), ..Limits::default() };
    let config = Config {
        certificates: certificate.into_iter().collect(),
        limits,
        methods: MethodSet::from(methods),
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        nodelay: true,
        ..Config::default()
    };
    {
        let mut state = state.lock().unwrap();
        state.connections += 1;
        state.open += 1;
    }
    let connection = Connection { state: state.clone(), token: token.clone(), round: 0, channel: None };
    // Two stacks, so that cutting one ends the socket without a good-bye.
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut stream = stream;
    let session = tokio::spawn(async move {
        if let Ok(session) = russh::server::run_stream(Arc::new(config), far, connection).await {
            let _ = session.await;
        }
    });
    let (mut from_client, mut to_client) = stream.split();
    let (mut from_server, mut to_server) = tokio::io::split(near);
    let both = async {
        tokio::select! {
            _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
            _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        }
    };
    let _ = token.run_until_cancelled(both).await;
    session.abort();
    state.lock().unwrap().open -= 1;
}
