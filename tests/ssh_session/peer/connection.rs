//! What the server does on one connection: logins, channels, commands.

use super::{Commands, Login, PASSWORD, Say, State};
use bytes::Bytes;
use russh::keys::Certificate;
use russh::server::{
    Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Sig};
use std::borrow::Cow;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// One connection, as its server sees it.
pub(super) struct Connection {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) token: CancellationToken,
    pub(super) round: usize,
    pub(super) channel: Option<Arc<OpenChannel>>,
}

/// A slot of `MaxSessions`: given back when either end has closed the channel.
pub(super) struct OpenChannel {
    state: Arc<Mutex<State>>,
    done: AtomicBool,
    _channel: Channel<Msg>,
}

impl OpenChannel {
    fn is_open(&self) -> bool {
        !self.done.load(Ordering::SeqCst)
    }

    fn end(&self) {
        if !self.done.swap(true, Ordering::SeqCst) {
            self.state.lock().unwrap().channels -= 1;
        }
    }
}

impl Drop for OpenChannel {
    fn drop(&mut self) {
        self.end();
    }
}

fn prompts(prompts: &'static [(Cow<'static, str>, bool)]) -> Auth {
    Auth::Partial { name: "".into(), instructions: "".into(), prompts: prompts.into() }
}

const ASK: &[(Cow<'static, str>, bool)] = &[(Cow::Borrowed("Password: "), false)];
const ASK_TWO: &[(Cow<'static, str>, bool)] =
    &[(Cow::Borrowed("Login: "), true), (Cow::Borrowed("Password: "), false)];
const ASK_NEW: &[(Cow<'static, str>, bool)] = &[(Cow::Borrowed("New password: "), false)];

impl Connection {
    fn key_is_right(&self, login: Login) -> Auth {
        match login {
            Login::KeyThenPassword => Auth::Reject {
                proceed_with_methods: Some(MethodSet::from(&[MethodKind::KeyboardInteractive][..])),
                partial_success: true,
            },
            _ => Auth::Accept,
        }
    }

    async fn judge(&mut self, password: &str) -> Result<Auth, russh::Error> {
        let login = {
            let mut state = self.state.lock().unwrap();
            state.passwords.push(password.to_owned());
            state.login
        };
        let wrong = |methods| Auth::Reject { proceed_with_methods: methods, partial_success: false };
        let more = |method| Auth::Reject {
            proceed_with_methods: Some(MethodSet::from(&[method][..])),
            partial_success: true,
        };
        Ok(match login {
            Login::SilentAfterPassword => std::future::pending().await,
            Login::CutAfterPassword => {
                self.token.cancel();
                std::future::pending().await
            }
            Login::NoMethodLeft => wrong(Some(MethodSet::empty())),
            _ if password != PASSWORD => wrong(None),
            Login::TwoSteps if self.round < 100 => {
                self.round = 100;
                more(MethodKind::Password)
            }
            Login::AlsoKey => more(MethodKind::PublicKey),
            _ => Auth::Accept,
        })
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, russh::Error> {
        if self.state.lock().unwrap().login == Login::CutBeforePassword {
            self.token.cancel();
        }
        Ok(Auth::reject())
    }

    async fn auth_password(&mut self, _user: &str, password: &str) -> Result<Auth, russh::Error> {
        self.judge(password).await
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        let login = self.state.lock().unwrap().login;
        let Some(answers) = response else {
            self.round = 1;
            return Ok(prompts(if login == Login::TwoPrompts { ASK_TWO } else { ASK }));
        };
        let answers: Vec<String> =
            answers.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
        self.round += 1;
        match (login, self.round) {
            (Login::TwoPrompts, 2) if answers.first().is_none_or(|first| first != user) => Ok(Auth::reject()),
            (Login::AsksAgain, _) => {
                self.state.lock().unwrap().passwords.extend(answers);
                Ok(prompts(ASK))
            }
            (Login::WantsNewPassword, _) => {
                self.state.lock().unwrap().passwords.extend(answers);
                Ok(prompts(ASK_NEW))
            }
            (Login::KeyboardInteractive, 3) => {
                Ok(if answers.is_empty() { Auth::Accept } else { Auth::reject() })
            }
            _ => {
                let password = answers.last().cloned().unwrap_or_default();
                match self.judge(&password).await? {
                    Auth::Accept if login == Login::KeyboardInteractive => Ok(prompts(&[])),
                    verdict => Ok(verdict),
                }
            }
        }
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        let mut state = self.state.lock().unwrap();
        state.offered.push(offer.algorithm.to_string());
        let known =
            state.authorized.as_ref().is_some_and(|key| key.key_data() == offer.public_key.key_data());
        // Whether it comes with a good certificate is told when it signs.
        Ok(if known || state.authority.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        let mut state = self.state.lock().unwrap();
        if state.authorized.as_ref().is_none_or(|known| known.key_data() != key.public_key.key_data()) {
            return Ok(Auth::reject());
        }
        state.algorithms.push(key.algorithm.to_string());
        Ok(self.key_is_right(state.login))
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        let mut state = self.state.lock().unwrap();
        let known = state.authority.as_ref().is_some_and(|key| key.key_data() == certificate.signature_key());
        if !known || !certificate.valid_principals().iter().any(|name| name == user) {
            return Ok(Auth::reject());
        }
        state.algorithms.push(certificate.algorithm().to_certificate_type());
        Ok(self.key_is_right(state.login))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), russh::Error> {
        self.state.lock().unwrap().sessions += 1;
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let commands = self.state.lock().unwrap().commands.clone();
        match commands {
            Commands::NoChannel => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            // MaxSessions 1, as on hardened hosts.
            _ if self.channel.as_ref().is_some_and(|channel| channel.is_open()) => {
                reply.reject(ChannelOpenFailure::ConnectFailed).await
            }
            _ => {
                self.state.lock().unwrap().channels += 1;
                let open = OpenChannel {
                    state: self.state.clone(),
                    done: AtomicBool::new(false),
                    _channel: channel,
                };
                self.channel = Some(Arc::new(open));
                reply.accept().await;
            }
        }
        Ok(())
    }

    async fn channel_close(&mut self, _id: ChannelId, _session: &mut Session) -> Result<(), russh::Error> {
        if let Some(open) = self.channel.take() {
            open.end();
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let commands = {
            let mut state = self.state.lock().unwrap();
            state.executed += 1;
            state.commands.clone()
        };
        let command = String::from_utf8_lossy(data).into_owned();
        let (handle, token) = (session.handle(), self.token.clone());
        let Some(open) = self.channel.clone() else { return Ok(()) };
        match commands {
            Commands::Refuse => session.channel_failure(channel)?,
            Commands::Shell(scripts) => {
                session.channel_success(channel)?;
                let command = scripts.profile + &command.replace("/etc/init.d", &scripts.folder);
                tokio::spawn(token.run_until_cancelled_owned(shell(handle, channel, command, open)));
            }
            Commands::Play(what) => {
                session.channel_success(channel)?;
                let play = play(handle, channel, what, self.token.clone(), open);
                tokio::spawn(token.run_until_cancelled_owned(play));
            }
            Commands::NoChannel => {}
        }
        Ok(())
    }
}

async fn shell(handle: Handle, channel: ChannelId, command: String, open: Arc<OpenChannel>) {
    let output = tokio::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let _ = handle.data(channel, output.stdout).await;
    let _ = handle.exit_status_request(channel, output.status.code().unwrap_or(255).unsigned_abs()).await;
    let _ = handle.eof(channel).await;
    open.end();
    let _ = handle.close(channel).await;
}

async fn play(
    handle: Handle,
    channel: ChannelId,
    what: Vec<Say>,
    token: CancellationToken,
    open: Arc<OpenChannel>,
) {
    for say in what {
        match say {
            Say::Out(text) => drop(handle.data(channel, Bytes::from_static(text)).await),
            Say::Err(text) => drop(handle.extended_data(channel, 1, Bytes::from_static(text)).await),
            Say::Signal => {
                let signal =
                    handle.exit_signal_request(channel, Sig::KILL, false, String::new(), String::new());
                let _ = signal.await;
            }
            Say::Exit(status) => drop(handle.exit_status_request(channel, status).await),
            Say::Eof => drop(handle.eof(channel).await),
            Say::Close => {
                open.end();
                let _ = handle.close(channel).await;
            }
            Say::Stall => std::future::pending().await,
            Say::Cut => token.cancel(),
            Say::Flood => while handle.data(channel, Bytes::from_static(&[b'x'; 8192])).await.is_ok() {},
        }
    }
}
