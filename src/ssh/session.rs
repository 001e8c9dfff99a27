//! Sessions: connect once, then one command at a time.

mod probe;

use super::authenticate::authenticate;
use super::client::{self, Client, Told};
use super::host_keys::HostKeys;
use super::resolve::Resolver;
use super::stream::OwnedStream;
use super::transcript::{End, Lines, Transcript};
use super::{algorithms, dial};
use crate::accounts::guard::Guard;
use crate::accounts::{Login, LoginSecret};
use crate::config::SshConfig;
use crate::inventory::{Allow, Host};
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason};
use crate::span;
use crate::stats::Stats;
use crate::steps::Steps;
use russh::client::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, Disconnect};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument as _, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// How long a host may take to open a channel. Also what tells a silent peer from a living one.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// How long a channel's or session's polite end may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

pub(super) static SESSIONS: MetricDef = MetricDef {
    name: "esxi.agent.ssh.sessions",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Open SSH sessions.",
    attributes: &[],
};

/// Opens sessions.
#[derive(Clone)]
pub struct Connector {
    config: SshConfig,
    resolver: Arc<Resolver>,
    host_keys: Arc<HostKeys>,
    guard: Arc<Guard>,
    open: Arc<OpenSessions>,
    allow: Arc<Allow>,
    steps: Steps,
}

/// Counts the open sessions.
struct OpenSessions {
    count: Mutex<f64>,
    stats: Arc<Stats>,
}

impl OpenSessions {
    fn change(&self, by: f64) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count += by;
        self.stats.set(&SESSIONS, Attributes::new::<&str, &str>([]), *count);
    }
}

struct Counted(Arc<OpenSessions>);

impl Counted {
    fn new(open: &Arc<OpenSessions>) -> Self {
        open.change(1.0);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.change(-1.0);
    }
}

impl Connector {
    /// With the known host keys, and the guard that all logins ask.
    pub fn new(config: SshConfig, host_keys: Arc<HostKeys>, guard: Arc<Guard>, stats: Arc<Stats>) -> Self {
        let open = Arc::new(OpenSessions { count: Mutex::new(0.0), stats });
        open.change(0.0);
        let (resolver, allow, steps) = Default::default();
        Self { config, resolver, host_keys, guard, open, allow, steps }
    }

    /// Only to addresses of `allow`.
    #[must_use]
    pub fn allowing(mut self, allow: Arc<Allow>) -> Self {
        self.allow = allow;
        self
    }

    /// Another one with other limits, choices and addresses, that shares the rest with this one.
    #[must_use]
    pub fn configured(&self, config: SshConfig, host_keys: Arc<HostKeys>, allow: Arc<Allow>) -> Self {
        Self { config, host_keys, allow, ..self.clone() }
    }

    /// Whether a session, opened with another configuration, is one that this one would open, too: to the same
    /// port, at an address that is still allowed, as the same user.
    pub fn would_open(&self, session: &Session, host: &Host, user: Option<&Arc<str>>) -> bool {
        let (opened_for, peer) = &session.peer;
        let (name, port) = (&host.endpoint.host, host.endpoint.port.unwrap_or(self.config.port));
        opened_for == name
            && peer.port() == port
            && (self.allow.names(name) || self.allow.holds(peer.ip()))
            && user == Some(&session.user)
    }

    /// Another one that shares everything with this one, and takes down the steps of its connections (`name`,
    /// `tcp`, `key_exchange`, `methods`, `guard`, `login`) and of its sessions (`command`), with what is
    /// learned on the way.
    #[must_use]
    pub fn telling(&self, steps: Steps) -> Self {
        Self { steps, ..self.clone() }
    }

    /// The limits and choices that it was given.
    pub fn config(&self) -> &SshConfig {
        &self.config
    }

    /// Opens a session: look up, connect, exchange keys, log in. Each step is a span and has its limit.
    /// Dropping the future leaves no task and no socket behind; a login under way then counts as lost.
    ///
    /// # Errors
    /// A reason for every step: `address_not_allowed` and `auth_guarded` before anything is sent; `dns`, `unreachable`,
    /// `connect_refused`, `connect_timeout`; `protocol_error`, `no_common_algorithm`, `host_key_*`,
    /// `login_timeout`, `auth_failed`; `connection_lost` at any time.
    pub async fn connect(&self, host: &Host, login: &Login) -> Result<Session, Failure> {
        let target = host.id();
        if let LoginSecret::Password(_) = login.secret {
            self.guard.check(&target, login.credential)?;
        }
        let name = &host.endpoint.host;
        let port = host.endpoint.port.unwrap_or(self.config.port);

        let span = info_span!(
            "ssh.dial", otel.kind = "client", "server.address" = %name, "server.port" = port,
            "network.protocol.name" = "ssh", "network.transport" = "tcp"
        );
        let (stream, peer) = traced(&span, async {
            let dialer = dial::Dialer { resolver: &self.resolver, allow: &self.allow, steps: &self.steps };
            let stream = dialer.dial(name, port, self.config.connect_timeout).await?;
            let peer = stream.peer_addr().map_err(|error| {
                Failure::new(FailureReason::ConnectionLost, format!("connection to {name}: {error}"))
            })?;
            Span::current().set_attribute("network.peer.address", peer.ip().to_string());
            self.steps.fact("address", peer.to_string());
            Ok((stream, peer))
        })
        .await?;
        drop(span);

        let started = Instant::now();
        let span = step_span("ssh.kex", name, peer);
        let token = CancellationToken::new();
        let owned = token.clone().drop_guard();
        let told = Arc::new(Told { steps: self.steps.clone(), ..Told::default() });
        let stream = OwnedStream::new(stream, token);
        let heard = stream.heard();
        let exchange = async {
            self.exchange_keys((name, port), stream, &told).await.map_err(|failure| match failure.reason {
                FailureReason::ConnectionLost if heard.other_protocol() => {
                    Failure::new(FailureReason::ProtocolError, "the port answers, but not with SSH")
                }
                _ => failure,
            })
        };
        let mut handle = traced(&span, self.steps.timed("key_exchange", exchange))
            .await
            .map_err(|failure| failure.during(format_args!("key exchange with {target}")))?;
        drop(span);

        let span = step_span("ssh.authenticate", name, peer);
        let limit = self.config.login_timeout.saturating_sub(started.elapsed());
        traced(&span, authenticate(&mut handle, &told, (&target, login), &self.guard, limit)).await?;
        let (opened, counted) = (Instant::now(), Counted::new(&self.open));
        let (peer, user) = ((Arc::clone(name), peer), Arc::clone(&login.user));
        Ok(Session { handle, told, peer, user, opened, broken: false, _owned: owned, _counted: counted })
    }

    async fn exchange_keys(
        &self,
        (name, port): (&Arc<str>, u16),
        stream: OwnedStream,
        told: &Arc<Told>,
    ) -> Result<Handle<Client>, Failure> {
        let limit = self.config.login_timeout;
        let known = self.host_keys.algorithms(name, port).await?;
        let config = algorithms::config(&known);
        let host_keys = Arc::clone(&self.host_keys);
        let client = Client { host: Arc::clone(name), port, host_keys, told: Arc::clone(told) };
        let handle = match timeout(limit, russh::client::connect_stream(config, stream, client)).await {
            Ok(handle) => handle.map_err(Failure::from)?,
            Err(_) => {
                return Err(Failure::new(FailureReason::LoginTimeout, format!("no end within {limit:?}")));
            }
        };
        if let Some(agreed) = told.agreed.get() {
            let span = Span::current();
            span.set_attribute("ssh.kex", agreed.kex.clone());
            span.set_attribute("ssh.host_key", agreed.host_key.clone());
            span.set_attribute("ssh.cipher", agreed.cipher.clone());
            self.steps.fact("key_exchange", agreed.kex.clone());
            self.steps.fact("host_key_algorithm", agreed.host_key.clone());
            self.steps.fact("cipher", agreed.cipher.clone());
            self.steps.fact("mac", agreed.mac.clone());
        }
        if let Some((standing, fingerprint)) = told.host_key.get() {
            self.steps.fact("host_key", standing.word());
            self.steps.fact("host_key_fingerprint", fingerprint.clone());
        }
        Ok(handle)
    }
}

/// The span of a step on an established connection.
fn step_span(step: &'static str, name: &str, peer: SocketAddr) -> Span {
    info_span!(
        "ssh", otel.name = step, otel.kind = "client", "server.address" = name,
        "server.port" = peer.port(), "network.peer.address" = %peer.ip(), "network.protocol.name" = "ssh"
    )
}

/// Runs `work` within `span`, and marks the span when it failed.
async fn traced<T>(span: &Span, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let result = work.instrument(span.clone()).await;
    if let Err(failure) = &result {
        span::fail(span, failure);
    }
    result
}

/// Limits of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the start to the last byte of interest.
    pub timeout: Duration,
    /// Of everything that the host prints.
    pub max_bytes: usize,
}

/// A session that is logged in. Dropping it ends it at once; [`Session::close`] says good-bye.
pub struct Session {
    handle: Handle<Client>,
    told: Arc<Told>,
    /// Its name in the inventory, and its address.
    peer: (Arc<str>, SocketAddr),
    /// As whom.
    user: Arc<str>,
    opened: Instant,
    /// A command is under way or did not end well: the host may not have freed its channel.
    broken: bool,
    _owned: DropGuard,
    _counted: Counted,
}

impl Session {
    /// Whether it can't be used any more: the connection has ended, or a command did not end well or was
    /// cancelled. A silent peer is found out by the next command only.
    pub fn is_closed(&self) -> bool {
        self.broken || self.handle.is_closed()
    }

    /// When it was logged in.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Runs `command` and hands each line of its standard output to `until`, with the time since the start,
    /// until it ends or `until` has seen its last line of interest. Not until the stream ends: a process that the command left behind may hold it for ever.
    ///
    /// # Errors
    /// When the command could not be started: `session_limit`, `command_failed`, `connection_lost`.
    /// Otherwise [`Transcript::end`] says how far it was read.
    pub async fn exec(
        &mut self,
        command: &str,
        limits: Limits,
        until: impl FnMut(Duration, &str) -> bool + Send,
    ) -> Result<Transcript, Failure> {
        let span = step_span("ssh.exec", &self.peer.0, self.peer.1);
        self.broken = true;
        let result = traced(&span, self.told.steps.timed("command", self.run(command, limits, until))).await;
        if let Ok(transcript) = &result {
            self.broken = transcript.end != End::Complete;
            if let Some(failure) = transcript.failure() {
                span::fail(&span, &failure);
            }
        }
        result
    }

    async fn run(
        &self,
        command: &str,
        limits: Limits,
        mut until: impl FnMut(Duration, &str) -> bool + Send,
    ) -> Result<Transcript, Failure> {
        let start = Instant::now();
        let mut channel = self.open_channel().await?;
        let lost =
            |_| Failure::new(FailureReason::ConnectionLost, format!("start command: {}", self.told.end()));
        channel.exec(true, command).await.map_err(lost)?;

        let mut lines = Lines::new(start, limits.max_bytes);
        let mut exit = None;
        let mut time_is_up = pin!(sleep_until(start + limits.timeout));
        let end = loop {
            let message = tokio::select! {
                biased;
                message = channel.wait() => message,
                () = &mut time_is_up => break End::TimedOut,
            };
            match message {
                Some(ChannelMsg::Data { data }) if lines.take(&data, &mut until) => break End::Complete,
                Some(ChannelMsg::ExtendedData { data, .. }) => lines.count(data.len()),
                Some(ChannelMsg::ExitStatus { exit_status }) => exit = Some(exit_status),
                Some(ChannelMsg::Failure) => {
                    close(&channel).await;
                    return Err(Failure::new(
                        FailureReason::CommandFailed,
                        "the host refused to run the command",
                    ));
                }
                Some(ChannelMsg::Close) => break End::Complete,
                None if self.handle.is_closed() => break End::Lost,
                None => break End::Complete,
                _ => {}
            }
            if lines.too_many() {
                break End::TooLarge;
            }
        };
        lines.finish(&mut until);
        let elapsed = start.elapsed();
        if end != End::Lost {
            wait_for_close(&mut channel, &mut exit, end).await;
        }
        Ok(Transcript { exit, end, elapsed })
    }

    async fn open_channel(&self) -> Result<Channel<Msg>, Failure> {
        match timeout(OPEN_LIMIT, self.handle.channel_open_session()).await {
            Ok(Ok(channel)) => Ok(channel),
            // OpenSSH answers like this beyond its MaxSessions.
            Ok(Err(russh::Error::ChannelOpenFailure(why))) => {
                let reason = match why {
                    ChannelOpenFailure::UnknownChannelType => FailureReason::CommandFailed,
                    _ => FailureReason::SessionLimit,
                };
                Err(Failure::new(reason, format!("open channel: refused ({why:?})")))
            }
            Ok(Err(russh::Error::SendError | russh::Error::RecvError | russh::Error::Disconnect)) => {
                Err(lost("open channel", &self.told.end()))
            }
            Ok(Err(error)) => Err(client::failure(&error).during("open channel")),
            Err(_) => Err(lost("open channel", SILENT)),
        }
    }

    /// Says good-bye and waits for the end, for a second at most. Takes down before how many sessions the host
    /// allows, for whoever wants to know the steps.
    pub async fn close(mut self) {
        self.probe_sessions().await;
        let _ = timeout(CLOSE_LIMIT, async {
            self.handle.disconnect(Disconnect::ByApplication, "", "").await?;
            (&mut self.handle).await.map_err(|_| russh::Error::Disconnect)
        })
        .await;
    }
}

const SILENT: &str = "the host is silent";

fn lost(step: &str, why: &str) -> Failure {
    Failure::new(FailureReason::ConnectionLost, format!("{step}: {why}"))
}

/// Waits for the exit status and the end of a channel of which everything of interest has been read, and
/// sends our end of it. A dropped channel would keep one of the session's few slots on the host.
async fn wait_for_close(channel: &mut Channel<Msg>, exit: &mut Option<u32>, end: End) {
    let ended = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::ExitStatus { exit_status } => *exit = Some(exit_status),
                ChannelMsg::Close => break,
                _ => {}
            }
        }
    };
    let patience = if end == End::Complete { CLOSE_LIMIT / 2 } else { Duration::ZERO };
    if timeout(patience, ended).await.is_err() {
        close(channel).await;
    }
}

async fn close(channel: &Channel<Msg>) {
    let _ = timeout(CLOSE_LIMIT, channel.close()).await;
}
