//! For people: what a known_hosts file holds, and how to make it forget a host.

use super::file;
use super::table::{Line, Names, is_pattern, matches};
use crate::outcome::{Failure, FailureReason};
use russh::keys::HashAlg;
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns};
use serde::Serialize;
use std::fs::File;
use std::io;
use std::path::Path;

/// One line with a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownKey {
    /// Number of the line, from 1.
    pub line: usize,
    /// Names and patterns as they stand there; a hashed name is `|1|salt|hash`.
    pub host: String,
    /// `@revoked` or `@cert-authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marker: Option<String>,
    /// Such as `ssh-ed25519`.
    pub algorithm: String,
    /// Such as `SHA256:…`, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
}

impl KnownKey {
    fn new(line: usize, host: String, entry: &Entry) -> Self {
        let key = entry.public_key();
        Self {
            line,
            host,
            marker: entry.marker().map(ToString::to_string),
            algorithm: key.algorithm().to_string(),
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        }
    }

    /// Whether the name is hashed.
    pub fn is_hashed(&self) -> bool {
        self.host.starts_with("|1|")
    }
}

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct KnownKeys {
    /// In the order of the file.
    pub keys: Vec<KnownKey>,
    /// Numbers of lines that are passed over, since they are no entries.
    pub broken_lines: Vec<usize>,
}

/// What was forgotten.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    /// Removed; of a line with several names only the one.
    pub removed: Vec<KnownKey>,
    /// Lines that still have something to say about the host: wildcards and markers are nobody's alone.
    pub left: Vec<KnownKey>,
}

/// Reads the file at `path`. Blocking. No file: no keys.
///
/// # Errors
/// When it can't be read.
pub fn list(path: &Path) -> Result<KnownKeys, Failure> {
    let text = match File::open(path).and_then(|mut file| file::read(&mut file)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(KnownKeys::default()),
        Err(error) => return Err(failed("read", path, &error)),
    };
    let mut known = KnownKeys::default();
    for (line, number) in text.lines().zip(1..) {
        match Line::parse(line) {
            Line::Blank => {}
            Line::Key(entry) => {
                known.keys.push(KnownKey::new(number, entry.host_patterns().to_string(), &entry));
            }
            Line::Broken => known.broken_lines.push(number),
        }
    }
    Ok(known)
}

/// Removes the keys that are recorded for a host, hashed names included. Blocking. All other lines stay as
/// they are; an agent that runs notices by itself.
///
/// # Errors
/// When the file can't be read or replaced.
pub fn forget(path: &Path, host: &str, port: u16) -> Result<Forgotten, Failure> {
    let names = Names::new(host, port);
    let mut forgotten = Forgotten::default();
    let replaced = file::replace(path, |text| {
        let mut kept = String::with_capacity(text.len());
        for (line, number) in text.split_inclusive('\n').zip(1..) {
            match without(line, number, &names.own, &mut forgotten) {
                Some(rest) => kept.push_str(&rest),
                None => kept.push_str(line),
            }
        }
        (!forgotten.removed.is_empty()).then_some(kept)
    });
    match replaced {
        Ok(()) => Ok(forgotten),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Forgotten::default()),
        Err(error) => Err(failed("change", path, &error)),
    }
}

/// What takes the place of a line, if `name` stands in it: nothing, or the line with its other names.
fn without(line: &str, number: usize, name: &str, forgotten: &mut Forgotten) -> Option<String> {
    let Line::Key(entry) = Line::parse(line) else { return None };
    let patterns = entry.host_patterns();
    if !matches(patterns, name) {
        return None;
    }
    let others: Vec<&str> = match patterns {
        HostPatterns::HashedName { .. } => Vec::new(),
        HostPatterns::Patterns(all) => {
            all.iter().map(String::as_str).filter(|other| !other.eq_ignore_ascii_case(name)).collect()
        }
    };
    let shared = match patterns {
        HostPatterns::Patterns(all) => all.iter().any(|pattern| is_pattern(pattern)),
        HostPatterns::HashedName { .. } => false,
    };
    if entry.marker().is_some() || shared {
        forgotten.left.push(KnownKey::new(number, patterns.to_string(), &entry));
        return None;
    }
    forgotten.removed.push(KnownKey::new(number, name.to_owned(), &entry));
    if others.is_empty() {
        return Some(String::new());
    }
    let names_end = line.trim_start().find(char::is_whitespace).unwrap_or(0);
    let rest = line.trim_start().get(names_end..).unwrap_or_default();
    Some(format!("{}{rest}", others.join(",")))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(FailureReason::HostKeyUnknown, format!("{what} known hosts {}: {error}", path.display()))
}
