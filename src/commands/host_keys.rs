//! `host-keys`: what host keys are known, and how to forget one.

use super::{VerbError, output};
use crate::cli::{CheckFormat, HostKeysArgs, HostKeysVerb};
use crate::inventory::Endpoint;
use crate::ssh::host_keys::{self, Forgotten, KnownKey, KnownKeys};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// Lists the keys of the known_hosts file at `path`, or makes it forget a host, which is at `port` unless
/// it names another one. The exit code of `forget` is 1 when there was nothing to forget.
///
/// # Errors
/// When the file can't be read or changed, or the output can't be written.
pub fn host_keys(path: &Path, port: u16, args: &HostKeysArgs) -> Result<ExitCode, VerbError> {
    let (text, found) = match &args.verb {
        HostKeysVerb::List { format } => {
            let known = host_keys::list(path).map_err(VerbError::Failed)?;
            (listed(path, &known, *format)?, true)
        }
        HostKeysVerb::Forget { host } => {
            let port = host.port.unwrap_or(port);
            let forgotten = host_keys::forget(path, &host.host, port).map_err(VerbError::Failed)?;
            let host = Endpoint { port: Some(port), ..host.clone() };
            (told(path, &host, &forgotten), !forgotten.removed.is_empty())
        }
    };
    let _ = output::print(text)?;
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn listed(path: &Path, known: &KnownKeys, format: CheckFormat) -> Result<String, VerbError> {
    if format == CheckFormat::Json {
        let text = serde_json::to_string_pretty(known).map_err(|error| VerbError::Output(error.into()))?;
        return Ok(text + "\n");
    }
    let mut text = String::new();
    if !known.keys.is_empty() {
        let mut table = super::report::dense_table();
        table.set_header(["host", "algorithm", "fingerprint", "line"]);
        for key in &known.keys {
            table.add_row([&shown(key), &key.algorithm, &key.fingerprint, &key.line.to_string()]);
        }
        let _ = writeln!(text, "{table}");
    }
    let _ = writeln!(text, "{} in {}", super::count(known.keys.len(), "host key"), path.display());
    if !known.broken_lines.is_empty() {
        let lines: Vec<_> = known.broken_lines.iter().map(usize::to_string).collect();
        let _ = writeln!(text, "passed over as no valid entries: line {}", lines.join(", "));
    }
    Ok(text)
}

/// Hashes tell people nothing but that a name is hashed.
fn shown(key: &KnownKey) -> String {
    let host = if key.is_hashed() { "(hashed)" } else { &key.host };
    let marker = key.marker.as_deref().map(|marker| format!("{marker} ")).unwrap_or_default();
    format!("{marker}{host}")
}

fn told(path: &Path, host: &Endpoint, forgotten: &Forgotten) -> String {
    let mut text = String::new();
    let line = |key: &KnownKey| format!("line {}: {} {}", key.line, key.algorithm, key.fingerprint);
    for key in &forgotten.removed {
        let _ = writeln!(text, "removed {}", line(key));
    }
    if forgotten.removed.is_empty() {
        let _ = writeln!(text, "no key of {host} is recorded in {}", path.display());
    }
    for key in &forgotten.left {
        let _ = writeln!(text, "left {} (for {}): change it by hand", line(key), shown(key));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser as _;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN9tl1oMOmiEf3BiNyQeS0q5WhyAd8MpTa2JMvhfNRFo";

    fn run(path: &Path, line: &[&str]) -> ExitCode {
        let line = ["esxi-otel-agent", "host-keys"].iter().chain(line);
        let Some(Verb::HostKeys(args)) = Cli::parse_from(line).verb else { panic!("another verb") };
        host_keys(path, 2222, &args).unwrap()
    }

    #[test]
    fn forgetting_ends_with_1_when_there_is_nothing_to_forget() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let entry = format!("[esx1]:2222 {KEY}\n");
        std::fs::write(file.path(), &entry).unwrap();
        assert_eq!(run(file.path(), &["list"]), ExitCode::SUCCESS);
        assert_eq!(run(file.path(), &["forget", "esx1:22"]), ExitCode::FAILURE);
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), entry);
        assert_eq!(run(file.path(), &["forget", "ESX1"]), ExitCode::SUCCESS, "at the configured port");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "");
    }

    #[test]
    fn a_list_for_people_shows_markers_and_hides_hashes() {
        let key = |host: &str, marker: Option<&str>| KnownKey {
            line: 7,
            host: host.to_owned(),
            marker: marker.map(str::to_owned),
            algorithm: "ssh-ed25519".to_owned(),
            fingerprint: "SHA256:x".to_owned(),
        };
        let known = KnownKeys {
            keys: vec![key("|1|a|b", None), key("*", Some("@revoked"))],
            broken_lines: vec![3, 9],
        };
        let text = listed(Path::new("/k"), &known, CheckFormat::Text).unwrap();
        assert!(text.contains("(hashed)") && !text.contains("|1|"), "{text}");
        assert!(text.contains("@revoked *"), "{text}");
        assert!(text.ends_with("2 host keys in /k\npassed over as no valid entries: line 3, 9\n"), "{text}");
    }
}
