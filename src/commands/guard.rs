//! `guard`: what the guard remembers, and opening by hand.

use super::{VerbError, output};
use crate::accounts::guard::{self, CredentialId, Remembered, Scope};
use crate::cli::{GuardArgs, GuardFormat, GuardReleaseArgs, GuardVerb};
use crate::config::Config;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

/// Shows or opens. Exit code 0; 1 when there was nothing to open.
///
/// # Errors
/// When the guard's memory can't be read or written, or nothing fits what should be released.
pub async fn guard(config: &Config, args: &GuardArgs) -> Result<ExitCode, VerbError> {
    let (lockout, state_dir) = (config.lockout.clone(), config.state_dir.clone());
    let work: Box<dyn FnOnce() -> Result<_, VerbError> + Send> = match args.verb.clone().unwrap_or_default() {
        GuardVerb::List(list) => Box::new(move || {
            let known = guard::remembered(&lockout, &state_dir)?;
            let text = match list.format {
                GuardFormat::Table => as_table(&known),
                GuardFormat::Json => as_json(&known)?,
            };
            Ok((text, ExitCode::SUCCESS))
        }),
        GuardVerb::Release(release) => Box::new(move || {
            // A damaged memory is opened as a whole, and can't be looked at before.
            let found = match release.all {
                true => Some((Scope::All, "everything".to_owned())),
                false => find(&guard::remembered(&lockout, &state_dir)?, &release)?,
            };
            let Some((scope, what)) = found else {
                return Ok(("nothing of that waits or is closed\n".to_owned(), ExitCode::FAILURE));
            };
            guard::release(&lockout, &state_dir, scope)?;
            Ok((format!("released: {what}\n"), ExitCode::SUCCESS))
        }),
    };
    let done = tokio::task::spawn_blocking(work).await;
    let (text, code) = done.map_err(|error| VerbError::Output(error.into()))??;
    let _ = output::print(text)?;
    Ok(code)
}

/// What is meant, and in words; `None`: nothing fits.
fn find(known: &Remembered, args: &GuardReleaseArgs) -> Result<Option<(Scope, String)>, VerbError> {
    if let Some(host) = &args.host {
        let fits = known.targets.iter().any(|target| *target.target.address == **host);
        return Ok(fits.then(|| (Scope::Host(host.clone()), host.clone())));
    }
    let Some(start) = &args.credential else { return Ok(None) };
    let start = start.to_ascii_lowercase();
    let fitting = known.credentials.iter().filter(|known| known.id.to_string().starts_with(&start));
    match fitting.collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        [one] => {
            let user = one.user.as_deref().unwrap_or("unknown");
            Ok(Some((Scope::Credential(one.id), format!("{} of {user}", one.id.short()))))
        }
        _ => Err(VerbError::Ambiguous(start)),
    }
}

fn as_table(known: &Remembered) -> String {
    if known.credentials.is_empty() && known.targets.is_empty() {
        return "the guard remembers nothing\n".to_owned();
    }
    let mut credentials = Table::new();
    credentials.load_style(presets::NOTHING);
    credentials.set_header(["CREDENTIAL", "USER", "STATE", "REJECTED", "LAST ACCEPTED BY"]);
    for known in &known.credentials {
        credentials.add_row([
            known.id.short(),
            known.user.clone().unwrap_or_default(),
            known.state.word().to_owned(),
            format!("{} of {}", known.rejected, known.of),
            known.last_success.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    let mut text = credentials.to_string();
    text.push('\n');
    if known.targets.is_empty() {
        text.push_str("\nno target waits\n");
        return text;
    }
    let mut targets = Table::new();
    targets.load_style(presets::NOTHING);
    targets.set_header(["TARGET", "CREDENTIAL", "NOT BEFORE", "WHY"]);
    for waits in &known.targets {
        let until = waits.until.map_or_else(|| "-".to_owned(), timestamp);
        targets.add_row([waits.target.to_string(), waits.credential.short(), until, waits.why.clone()]);
    }
    let _ = writeln!(text, "\n{targets}");
    text
}

/// RFC 3339, whole seconds.
fn timestamp(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).and_then(|at| at.round(jiff::Unit::Second));
    at.map(|at| at.to_string()).unwrap_or_default()
}

#[derive(Serialize)]
struct Shown<'k> {
    credentials: Vec<Credential<'k>>,
    targets: Vec<Target<'k>>,
}

#[derive(Serialize)]
struct Credential<'k> {
    id: CredentialId,
    user: Option<&'k str>,
    state: guard::State,
    rejected: usize,
    of: usize,
    last_accepted_by: Option<&'k str>,
}

#[derive(Serialize)]
struct Target<'k> {
    kind: &'static str,
    address: &'k str,
    credential: CredentialId,
    why: &'k str,
    not_before: Option<String>,
}

fn as_json(known: &Remembered) -> Result<String, VerbError> {
    let credentials = known.credentials.iter().map(|known| Credential {
        id: known.id,
        user: known.user.as_deref(),
        state: known.state,
        rejected: known.rejected,
        of: known.of,
        last_accepted_by: known.last_success.as_ref().map(|target| &*target.address),
    });
    let targets = known.targets.iter().map(|waits| Target {
        kind: waits.target.kind.word(),
        address: &waits.target.address,
        credential: waits.credential,
        why: &waits.why,
        not_before: waits.until.map(timestamp),
    });
    let shown = Shown { credentials: credentials.collect(), targets: targets.collect() };
    let mut text = serde_json::to_string_pretty(&shown).map_err(|error| VerbError::Output(error.into()))?;
    text.push('\n');
    Ok(text)
}
