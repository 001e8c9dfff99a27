//! One connection to a simulated host, from the accepted socket to its end.

use super::faults::HostFault;
use super::host::Fleet;
use super::host_sshd;
use super::host_state::Host;
use super::shell::Event;
use bytes::Bytes;
use russh::keys::PublicKey;
use russh::server::{
    Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Error};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A piece of a flood.
static FLOOD: [u8; 32 << 10] = [b'x'; 32 << 10];
/// What a host that ignores commands says.
const NO_MARKERS: &[u8] = b"The time and date of this login have been sent to the system logs.\n";
/// Bytes that are neither text nor a terminal's.
const BINARY: &[u8] = &[0x00, 0xff, 0xfe, 0x80, 0x1b, 0xc3, 0x28, 0x0a, 0xf0, 0x28, 0x8c, 0xbc, 0x0d, 0x07];

/// Serves one accepted connection to its end.
pub(super) async fn serve(fleet: Arc<Fleet>, host: Arc<Host>, stream: TcpStream) {
    let killed = host.lock().connection();
    let work = async {
        // Nagle's algorithm would make every answer 40 ms late.
        let _ = stream.set_nodelay(true);
        // What a broken connection says is the client's business.
        let _ = connection(&fleet, &host, stream, killed.clone()).await;
    };
    fleet.stop.run_until_cancelled(work).await;
    killed.cancel();
}

async fn connection(
    fleet: &Arc<Fleet>,
    host: &Arc<Host>,
    mut stream: TcpStream,
    killed: CancellationToken,
) -> Result<(), Error> {
    pause(fleet, host).await;
    match host.fault() {
        Some(HostFault::NotSsh) => {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await?;
            return Ok(stream.shutdown().await?);
        }
        Some(HostFault::HangAtKex) => {
            stream.write_all(format!("{}\r\n", host_sshd::IDENTIFICATION).as_bytes()).await?;
            return swallow(stream, killed, fleet.spec.inactivity).await;
        }
        _ => {}
    }
    let config = host_sshd::config(fleet, host)?;
    let connection = Connection {
        fleet: fleet.clone(),
        host: host.clone(),
        killed: killed.clone(),
        round: Round::Start,
        logged_in: false,
        channels: HashMap::new(),
    };
    let stream = Killable { stream, killed: Box::pin(killed.cancelled_owned()) };
    russh::server::run_stream(config, stream, connection).await?.await
}

/// Reads and says nothing until the client, the fleet or time puts an end to it.
async fn swallow(mut stream: TcpStream, killed: CancellationToken, limit: Duration) -> Result<(), Error> {
    let read = async {
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    let _ = tokio::time::timeout(limit, killed.run_until_cancelled(read)).await;
    Ok(())
}

/// The latency of the fleet and of the host's fault.
async fn pause(fleet: &Fleet, host: &Host) {
    let more = match host.fault() {
        Some(HostFault::Slow(more)) => more,
        _ => Duration::ZERO,
    };
    let latency = fleet.spec.latency + more;
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}

/// Where keyboard-interactive authentication stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Start,
    Password,
    NoPrompts,
}

struct Connection {
    fleet: Arc<Fleet>,
    host: Arc<Host>,
    killed: CancellationToken,
    round: Round,
    logged_in: bool,
    /// Open channels; the token ends the command of one.
    channels: HashMap<ChannelId, OpenChannel>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.logged_in {
            self.host.lock().counts.sessions -= 1;
        }
        self.killed.cancel();
    }
}

impl Connection {
    /// Whether user and password are accepted, with what the host's fault makes of it.
    async fn check(&mut self, user: &str, password: &[u8]) -> Result<bool, Error> {
        pause(&self.fleet, &self.host).await;
        match self.host.fault() {
            Some(HostFault::HangAtAuth) => {
                let _ = tokio::time::timeout(self.fleet.spec.inactivity, self.killed.cancelled()).await;
                return Err(Error::Disconnect);
            }
            Some(HostFault::DropAtAuth) => return Err(Error::Disconnect),
            _ => {}
        }
        let spec = &self.fleet.spec;
        let right = user == spec.user && password == spec.password.expose().as_bytes();
        Ok(self.host.lock().judge(right, spec.lockout))
    }

    fn knows(&self, user: &str, key: &PublicKey) -> bool {
        let spec = &self.fleet.spec;
        let known = spec.authorized_keys.iter().any(|known| known.key_data() == key.key_data());
        known && user == spec.user && self.host.fault() != Some(HostFault::WrongPassword)
    }
}

fn verdict(accepted: bool) -> Auth {
    if accepted { Auth::Accept } else { Auth::reject() }
}

fn prompts(prompts: &'static [(Cow<'static, str>, bool)]) -> Auth {
    Auth::Partial { name: "".into(), instructions: "".into(), prompts: prompts.into() }
}

impl Handler for Connection {
    type Error = Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Error> {
        // A method that is switched off does not look at the password, so it does not count.
        let offered = self.fleet.spec.password_method;
        Ok(verdict(offered && self.check(user, password.as_bytes()).await?))
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Error> {
        let round = std::mem::replace(&mut self.round, Round::Start);
        match (round, response) {
            (_, None) => {
                self.round = Round::Password;
                Ok(prompts(&[(Cow::Borrowed("Password: "), false)]))
            }
            (Round::Password, Some(mut answers)) => {
                let password = answers.next().unwrap_or_default();
                let accepted = self.check(user, &password).await?;
                if accepted && self.fleet.spec.zero_prompt_round {
                    self.round = Round::NoPrompts;
                    return Ok(prompts(&[]));
                }
                Ok(verdict(accepted))
            }
            (round, Some(_)) => Ok(verdict(round == Round::NoPrompts)),
        }
    }

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        Ok(verdict(self.knows(user, offer.public_key)))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        pause(&self.fleet, &self.host).await;
        Ok(verdict(self.knows(user, key.public_key)))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Error> {
        self.logged_in = true;
        let counts = &mut self.host.lock().counts;
        counts.logins += 1;
        counts.sessions += 1;
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Error> {
        self.channels.retain(|_, channel| !channel.closed.is_cancelled());
        let full = self.channels.len() >= self.fleet.spec.max_sessions;
        if full || self.host.fault() == Some(HostFault::ChannelRefused) {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        } else {
            let command = self.killed.child_token();
            self.channels.insert(channel.id(), OpenChannel { command, closed: CancellationToken::new() });
            reply.accept().await;
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Error> {
        if let Some(channel) = self.channels.remove(&channel) {
            channel.command.cancel();
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        let command: Arc<str> = String::from_utf8_lossy(data).into();
        let fault = {
            let mut state = self.host.lock();
            state.counts.commands += 1;
            state.last_command = Some(command.clone());
            state.fault
        };
        let Some(OpenChannel { command: token, closed }) = self.channels.get(&channel).cloned() else {
            return Ok(());
        };
        if fault == Some(HostFault::CommandRefused) {
            self.channels.remove(&channel);
            session.channel_failure(channel)?;
            return session.close(channel);
        }
        session.channel_success(channel)?;
        let answer = Reply {
            fleet: self.fleet.clone(),
            host: self.host.clone(),
            handle: session.handle(),
            channel,
            closed,
            killed: self.killed.clone(),
        };
        self.fleet.tasks.spawn(async move {
            // An error says that the session is gone.
            let _ = token.run_until_cancelled(answer.give(&command, fault)).await;
        });
        Ok(())
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }
}

/// A slot of `MaxSessions`.
#[derive(Debug, Clone)]
struct OpenChannel {
    /// Ends with the command.
    command: CancellationToken,
    /// The host has closed it. russh tells only of channels that the client closes first.
    closed: CancellationToken,
}

/// The session that an answer goes to has ended.
struct Gone;

impl From<()> for Gone {
    fn from((): ()) -> Self {
        Self
    }
}

impl From<Bytes> for Gone {
    fn from(_: Bytes) -> Self {
        Self
    }
}

/// The answer to one command.
struct Reply {
    fleet: Arc<Fleet>,
    host: Arc<Host>,
    handle: Handle,
    channel: ChannelId,
    closed: CancellationToken,
    killed: CancellationToken,
}

impl Reply {
    async fn give(&self, command: &str, fault: Option<HostFault>) -> Result<(), Gone> {
        pause(&self.fleet, &self.host).await;
        let (handle, channel) = (&self.handle, self.channel);
        match fault {
            Some(HostFault::HangAtCommand) => return Ok(()),
            Some(HostFault::Flood(bytes)) => {
                let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
                while left > 0 {
                    let mut piece = Bytes::from_static(&FLOOD);
                    piece.truncate(left);
                    left -= piece.len();
                    handle.data(channel, piece).await?;
                }
                return self.end().await;
            }
            Some(HostFault::Binary) => {
                handle.data(channel, BINARY.repeat(64)).await?;
                return self.end().await;
            }
            Some(HostFault::NoMarkers) => {
                handle.data(channel, Bytes::from_static(NO_MARKERS)).await?;
                return self.end().await;
            }
            _ => {}
        }
        let services = self.host.lock().services.clone();
        let mut answer = self.fleet.shell.run(command, &services);
        while let Some(event) = answer.next().await {
            match event {
                Event::Stdout(mut bytes) => {
                    let cut = fault == Some(HostFault::KillSession);
                    if cut {
                        bytes.truncate(bytes.len() / 2);
                    }
                    handle.data(channel, bytes).await?;
                    if cut {
                        // Long enough for the half to be sent.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        self.killed.cancel();
                        return Err(Gone);
                    }
                }
                Event::Stderr(bytes) => handle.extended_data(channel, 1, bytes).await?,
                // A session that is killed has no end, however early the script had its own.
                Event::Exit(_) if fault == Some(HostFault::KillSession) => {}
                Event::Exit(status) => handle.exit_status_request(channel, status).await?,
                Event::End => {
                    handle.eof(channel).await?;
                    return self.close().await;
                }
            }
        }
        // A command that met a limit: it hangs.
        Ok(())
    }

    async fn end(&self) -> Result<(), Gone> {
        self.handle.exit_status_request(self.channel, 0).await?;
        self.handle.eof(self.channel).await?;
        self.close().await
    }

    async fn close(&self) -> Result<(), Gone> {
        // Before the client can know and open the next one.
        self.closed.cancel();
        Ok(self.handle.close(self.channel).await?)
    }
}

/// A stream that fails once its token is cancelled, whatever waits for it.
struct Killable {
    stream: TcpStream,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Killable {
    fn alive(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.killed.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Killable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Killable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
