//! Authentication (RFC 4252, RFC 4256), so that one wrong password is one failure and never two.

use super::client::{Client, Ended, Told, clean};
use crate::accounts::guard::{Guard, Permit};
use crate::accounts::{Login, LoginSecret, Secret, SshKey};
use crate::outcome::{Failure, FailureReason};
use crate::target::TargetId;
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse, Prompt};
use russh::keys::agent::AgentIdentity;
use russh::keys::signature::{self, Signer as _};
use russh::keys::ssh_encoding::{self, Encode as _};
use russh::keys::ssh_key::{Signature, private::KeypairData};
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use russh::{Disconnect, MethodKind, MethodSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Rounds of questions within one keyboard-interactive method. OpenSSH with PAM has two or three.
const MAX_ROUNDS: usize = 8;

/// How long the end of a session that is ending may take to be known.
const SETTLE: Duration = Duration::from_secs(2);

/// How presenting a proof ended.
#[derive(Debug)]
enum Verdict {
    Accepted,
    Rejected(String),
    /// Accepted, but more is wanted; these methods go on.
    Partly(MethodSet),
    Lost(String),
}

/// Logs in, in as many steps as the host wants and the login has proofs for. Asks `guard` for leave right
/// before anything that a lockout could count, and gives it one verdict, however many steps there were. The
/// time that the guard takes is not part of `limit`.
pub(super) async fn authenticate(
    handle: &mut Handle<Client>,
    told: &Told,
    (target, login): (&TargetId, &Login),
    guard: &Guard,
    limit: Duration,
) -> Result<(), Failure> {
    let mut deadline = Instant::now() + limit;
    let failed =
        |reason, why: &str| Failure::new(reason, format!("login of {} at {target}: {why}", login.user));
    let too_late = || failed(FailureReason::LoginTimeout, "no answer in time");

    // OpenSSH's client begins like this, too: it tells the methods on offer and counts as no failure.
    let asking = async {
        let offered = timeout_at(deadline, offered(handle, told, &login.user)).await;
        offered.map_err(|_| too_late())?.map_err(|why| failed(FailureReason::ConnectionLost, &why))
    };
    let Some(offered) = told.steps.timed("methods", asking).await? else {
        told.steps.fact("methods", "none");
        return Ok(());
    };
    told.steps.fact("methods", list(&offered));
    let mut presented: Vec<MethodKind> = Vec::new();
    let Some(mut method) = choose(&offered, &login.secret, &presented) else {
        return Err(failed(FailureReason::AuthFailed, &format!("the host accepts only {}", list(&offered))));
    };
    let mut permit: Option<Permit<'_>> = None;
    loop {
        if permit.is_none() && method != MethodKind::PublicKey {
            let asked = Instant::now();
            permit = Some(told.steps.timed("guard", guard.permit(target, login.credential)).await?);
            deadline += asked.elapsed();
        }
        presented.push(method);
        let methods = presented.iter().map(<&str>::from).collect::<Vec<_>>().join(",");
        told.steps.fact("method", methods.as_str());
        let presenting = async {
            let verdict = timeout_at(deadline, present(handle, told, login, method)).await;
            if let Ok(Verdict::Partly(further)) = &verdict
                && let Some(next) = choose(further, &login.secret, &presented)
            {
                return Ok(Some(next));
            }
            Span::current().set_attribute("ssh.auth.method", methods);
            conclude(verdict.map_err(|_| too_late()), permit.take(), failed).map(|()| None)
        };
        match told.steps.timed("login", presenting).await? {
            Some(next) => method = next,
            None => return Ok(()),
        }
    }
}

/// Gives the guard the verdict, and says why the login failed.
fn conclude(
    verdict: Result<Verdict, Failure>,
    permit: Option<Permit<'_>>,
    failed: impl Fn(FailureReason, &str) -> Failure,
) -> Result<(), Failure> {
    if let Some(permit) = permit {
        match &verdict {
            Ok(Verdict::Accepted) => permit.accepted(),
            Ok(Verdict::Rejected(_)) => permit.rejected(),
            // Accepted in part, too: each further try would end here again, so the target waits.
            Ok(Verdict::Partly(_) | Verdict::Lost(_)) | Err(_) => permit.lost_after_secret(),
        }
    }
    match verdict {
        Ok(Verdict::Accepted) => Ok(()),
        Ok(Verdict::Rejected(why)) => Err(failed(FailureReason::AuthFailed, &why)),
        Ok(Verdict::Partly(methods)) => {
            let why = format!("accepted, but the host also wants {}", list(&methods));
            Err(failed(FailureReason::AuthFailed, &why))
        }
        Ok(Verdict::Lost(why)) => Err(failed(FailureReason::ConnectionLost, &why)),
        Err(too_late) => Err(too_late),
    }
}

/// The methods on offer; `None`: the host lets us in without any. Fails only by loss.
async fn offered(handle: &mut Handle<Client>, told: &Told, user: &str) -> Result<Option<MethodSet>, String> {
    match handle.authenticate_none(user).await {
        Ok(AuthResult::Success) => Ok(None),
        Ok(AuthResult::Failure { remaining_methods, .. }) if remaining_methods.is_empty() => {
            match settle(handle, told).await {
                Verdict::Rejected(_) => Ok(Some(remaining_methods)),
                _ => Err(told.end()),
            }
        }
        Ok(AuthResult::Failure { remaining_methods, .. }) => Ok(Some(remaining_methods)),
        Err(_) => {
            settle(handle, told).await;
            Err(told.end())
        }
    }
}

/// The method to present next: the first one on offer that the login has a proof for and that was not
/// presented yet. The key comes first, since it can lock nothing; of the password's methods
/// keyboard-interactive, since on ESXi `password` is off. After a rejection nothing else is tried.
fn choose(offered: &MethodSet, secret: &LoginSecret, presented: &[MethodKind]) -> Option<MethodKind> {
    let fits = |method: &MethodKind| match method {
        MethodKind::PublicKey => secret.key().is_some(),
        _ => secret.password().is_some(),
    };
    let all = [MethodKind::PublicKey, MethodKind::KeyboardInteractive, MethodKind::Password];
    let open = |method: &MethodKind| offered.contains(method) && !presented.contains(method);
    all.into_iter().find(|method| fits(method) && open(method))
}

async fn present(handle: &mut Handle<Client>, told: &Told, login: &Login, method: MethodKind) -> Verdict {
    let user = &*login.user;
    let result = match (method, login.secret.key(), login.secret.password()) {
        (MethodKind::PublicKey, Some(key), _) => public_key(handle, user, key).await,
        (MethodKind::Password, _, Some(password)) => {
            handle.authenticate_password(user, password.expose()).await
        }
        (_, _, Some(password)) => match keyboard_interactive(handle, user, password).await {
            Ok(Dialogue::Ended(result)) => Ok(result),
            Ok(Dialogue::Refused(why)) => return Verdict::Rejected(why.to_owned()),
            Err(error) => Err(error),
        },
        (_, _, None) => return Verdict::Rejected("there is no proof for this method".to_owned()),
    };
    match result {
        Ok(AuthResult::Success) => Verdict::Accepted,
        Ok(AuthResult::Failure { remaining_methods, partial_success: true }) => {
            Verdict::Partly(remaining_methods)
        }
        // russh answers the same when the connection was lost.
        Ok(AuthResult::Failure { remaining_methods, .. }) if remaining_methods.is_empty() => {
            settle(handle, told).await
        }
        Ok(AuthResult::Failure { .. }) => Verdict::Rejected(format!("rejected ({})", <&str>::from(&method))),
        Err(_) => settle(handle, told).await,
    }
}

/// Finds out, of a session that is ending, whether the host rejected or the connection was lost.
async fn settle(handle: &mut Handle<Client>, told: &Told) -> Verdict {
    let _ = timeout(SETTLE, &mut *handle).await;
    match told.ended.get() {
        Some(Ended::NoMethodLeft) => Verdict::Rejected("rejected, and no method is left".to_owned()),
        // OpenSSH answers the last try that MaxAuthTries allows with a disconnect instead of a failure.
        Some(Ended::Disconnected(
            Disconnect::ProtocolError | Disconnect::NoMoreAuthMethodsAvailable | Disconnect::IllegalUserName,
            _,
        )) => Verdict::Rejected(told.end()),
        _ => Verdict::Lost(told.end()),
    }
}

/// How a keyboard-interactive dialogue ended.
enum Dialogue {
    Ended(AuthResult),
    /// We refused to go on, for this reason.
    Refused(&'static str),
}

/// Answers the questions. The password is given in one round only: who asks for it again has rejected it,
/// and whoever asks for a *new* one would be given the old one.
async fn keyboard_interactive(
    handle: &mut Handle<Client>,
    user: &str,
    password: &Secret,
) -> Result<Dialogue, russh::Error> {
    let mut response = handle.authenticate_keyboard_interactive_start(user, None).await?;
    let mut given = false;
    for _ in 0..MAX_ROUNDS {
        let prompts = match response {
            KeyboardInteractiveAuthResponse::Success => return Ok(Dialogue::Ended(AuthResult::Success)),
            KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success } => {
                return Ok(Dialogue::Ended(AuthResult::Failure { remaining_methods, partial_success }));
            }
            // There may be none, which is answered by none (RFC 4256, 3.2).
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => prompts,
        };
        let hidden = prompts.iter().any(|prompt| !prompt.echo);
        if prompts.iter().any(|prompt| prompt.prompt.to_lowercase().contains("new ")) {
            return Ok(Dialogue::Refused("the host wants a new password to be set"));
        }
        if hidden && given {
            return Ok(Dialogue::Refused("rejected, the host asks for the password again"));
        }
        given |= hidden;
        let answers = prompts.iter().map(|prompt| answer(prompt, user, password)).collect();
        response = handle.authenticate_keyboard_interactive_respond(answers).await?;
    }
    Ok(Dialogue::Refused("the host does not stop asking"))
}

fn answer(prompt: &Prompt, user: &str, password: &Secret) -> String {
    let text = prompt.prompt.to_lowercase();
    if !prompt.echo {
        password.expose().to_owned()
    } else if text.contains("user") || text.contains("login") {
        user.to_owned()
    } else {
        String::new()
    }
}

/// Presents the certificate where there is one, else the key. RSA keys sign by the best hash that the
/// server names (`server-sig-algs`, RFC 8308).
async fn public_key(
    handle: &mut Handle<Client>,
    user: &str,
    key: &SshKey,
) -> Result<AuthResult, russh::Error> {
    let private = key.private();
    // A server that names no algorithms may still know the better ones.
    let hash = if private.algorithm().is_rsa() {
        handle.best_supported_rsa_hash().await?.unwrap_or(Some(HashAlg::Sha256))
    } else {
        None
    };
    let Some(certificate) = key.certificate() else {
        return handle
            .authenticate_publickey(user, PrivateKeyWithHashAlg::new(Arc::clone(private), hash))
            .await;
    };
    // Not `authenticate_openssh_cert`: with RSA that one knows SHA-1 only.
    let mut signer = CertificateSigner(Arc::clone(private));
    let result = handle.authenticate_certificate_with(user, certificate.clone(), hash, &mut signer).await;
    result.map_err(|Unsigned(error)| error)
}

/// Signs with the private key of a certificate.
struct CertificateSigner(Arc<PrivateKey>);

/// Why there is no signature.
struct Unsigned(russh::Error);

impl From<russh::SendError> for Unsigned {
    fn from(_: russh::SendError) -> Self {
        Self(russh::Error::SendError)
    }
}

impl From<signature::Error> for Unsigned {
    fn from(_: signature::Error) -> Self {
        Self(russh::Error::CouldNotReadKey)
    }
}

impl From<ssh_encoding::Error> for Unsigned {
    fn from(error: ssh_encoding::Error) -> Self {
        Self(error.into())
    }
}

impl russh::Signer for CertificateSigner {
    type Error = Unsigned;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, Unsigned> {
        let signed: Signature = match self.0.key_data() {
            KeypairData::Rsa(pair) => (pair, hash).try_sign(&to_sign)?,
            pair => pair.try_sign(&to_sign)?,
        };
        // What is sent is the request with the signature behind it (RFC 4252, section 7).
        signed.encode_prefixed(&mut to_sign)?;
        Ok(to_sign)
    }
}

fn list(methods: &MethodSet) -> String {
    let names: Vec<&str> = methods.iter().map(<&str>::from).collect();
    if names.is_empty() { "methods unknown to this agent".to_owned() } else { clean(&names.join(", ")) }
}
