//! Authentication (RFC 4252, RFC 4256), so that one wrong password is one failure and never two.

use super::client::{Client, Ended, Told, clean};
use crate::accounts::guard::{Guard, Permit};
use crate::accounts::{Login, LoginSecret, Secret};
use crate::outcome::{Failure, FailureReason};
use crate::target::TargetId;
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse, Prompt};
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

/// Logs in. Asks `guard` for leave right before anything that a lockout could count, and gives it the
/// verdict. The time that the guard takes is not part of `limit`.
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
    let Some(method) = choose(&offered, &login.secret, None) else {
        return Err(failed(FailureReason::AuthFailed, &format!("the host accepts only {}", list(&offered))));
    };
    Span::current().set_attribute("ssh.auth.method", <&str>::from(&method));

    let asked = Instant::now();
    let permit = match login.secret {
        LoginSecret::Password(_) => {
            Some(told.steps.timed("guard", guard.permit(target, login.credential)).await?)
        }
        LoginSecret::Key(_) => None,
    };
    deadline += asked.elapsed();

    told.steps.fact("method", <&str>::from(&method));
    let presenting = async {
        let verdict = timeout_at(deadline, present_all(handle, told, login, method)).await;
        conclude(verdict.map_err(|_| too_late()), permit, failed)
    };
    told.steps.timed("login", presenting).await
}

/// Gives the guard the verdict, and says why the login failed.
fn conclude(
    verdict: Result<Verdict, Failure>,
    permit: Option<Permit<'_>>,
    failed: impl Fn(FailureReason, &str) -> Failure,
) -> Result<(), Failure> {
    match verdict {
        Ok(Verdict::Accepted) => {
            if let Some(permit) = permit {
                permit.accepted();
            }
            Ok(())
        }
        Ok(Verdict::Rejected(why)) => {
            if let Some(permit) = permit {
                permit.rejected();
            }
            Err(failed(FailureReason::AuthFailed, &why))
        }
        // The proof was right, but each further try would end here again, so the target waits.
        Ok(Verdict::Partly(methods)) => {
            if let Some(permit) = permit {
                permit.lost_after_secret();
            }
            let why = format!("accepted, but the host also wants {}", list(&methods));
            Err(failed(FailureReason::AuthFailed, &why))
        }
        Ok(Verdict::Lost(why)) => {
            if let Some(permit) = permit {
                permit.lost_after_secret();
            }
            Err(failed(FailureReason::ConnectionLost, &why))
        }
        Err(too_late) => {
            if let Some(permit) = permit {
                permit.lost_after_secret();
            }
            Err(too_late)
        }
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

/// The method to present `secret` by. Keyboard-interactive comes first: on ESXi `password` is off.
fn choose(offered: &MethodSet, secret: &LoginSecret, but: Option<MethodKind>) -> Option<MethodKind> {
    let fit: &[MethodKind] = match secret {
        LoginSecret::Password(_) => &[MethodKind::KeyboardInteractive, MethodKind::Password],
        LoginSecret::Key(_) => &[MethodKind::PublicKey],
    };
    fit.iter().copied().find(|method| offered.contains(method) && Some(*method) != but)
}

/// Presents the proof by `method`, and where that was accepted but is not enough, by one more. After a
/// rejection nothing else is tried.
async fn present_all(handle: &mut Handle<Client>, told: &Told, login: &Login, method: MethodKind) -> Verdict {
    match present(handle, told, login, method).await {
        Verdict::Partly(methods) => match choose(&methods, &login.secret, Some(method)) {
            Some(second) => present(handle, told, login, second).await,
            None => Verdict::Partly(methods),
        },
        verdict => verdict,
    }
}

async fn present(handle: &mut Handle<Client>, told: &Told, login: &Login, method: MethodKind) -> Verdict {
    let user = &*login.user;
    let result = match (&login.secret, method) {
        (LoginSecret::Password(password), MethodKind::Password) => {
            handle.authenticate_password(user, password.expose()).await
        }
        (LoginSecret::Password(password), _) => match keyboard_interactive(handle, user, password).await {
            Ok(Dialogue::Ended(result)) => Ok(result),
            Ok(Dialogue::Refused(why)) => return Verdict::Rejected(why.to_owned()),
            Err(error) => Err(error),
        },
        (LoginSecret::Key(key), _) => public_key(handle, user, key).await,
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

async fn public_key(
    handle: &mut Handle<Client>,
    user: &str,
    key: &Arc<PrivateKey>,
) -> Result<AuthResult, russh::Error> {
    // A server that names no algorithms (RFC 8308) may still know the better ones.
    let hash = if key.algorithm().is_rsa() {
        handle.best_supported_rsa_hash().await?.unwrap_or(Some(HashAlg::Sha256))
    } else {
        None
    };
    handle.authenticate_publickey(user, PrivateKeyWithHashAlg::new(Arc::clone(key), hash)).await
}

fn list(methods: &MethodSet) -> String {
    let names: Vec<&str> = methods.iter().map(<&str>::from).collect();
    if names.is_empty() { "methods unknown to this agent".to_owned() } else { clean(&names.join(", ")) }
}
