//! The content of a known_hosts file, indexed by name. No I/O.

use hmac::{Hmac, KeyInit as _, Mac as _};
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use russh::keys::{HashAlg, PublicKey};
use sha1::Sha1;
use std::collections::HashMap;

/// Most names whose hashed lines are remembered. More than any inventory has.
const MAX_FOUND: usize = 100_000;

/// Under which names a host may be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// As OpenSSH records it: lower case, `[host]:port` unless the port is 22.
    pub(super) own: String,
    /// The name without the port, where that is another one. A key that is known by it is known at other
    /// ports, too; another key there is no change, since it may be another server's (ssh(1) does the same).
    bare: Option<String>,
}

impl Names {
    pub(super) fn new(host: &str, port: u16) -> Self {
        let host = host.to_lowercase();
        if port == 22 {
            Self { own: host, bare: None }
        } else {
            Self { own: format!("[{host}]:{port}"), bare: Some(host) }
        }
    }

    /// The host's name alone, as certificates have it.
    pub(super) fn host(&self) -> &str {
        self.bare.as_ref().unwrap_or(&self.own)
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        [Some(self.own.as_str()), self.bare.as_deref()].into_iter().flatten()
    }
}

/// What the table says of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It is the host's.
    Known,
    /// The host has others, these.
    Changed(Vec<String>),
    /// It must not be used.
    Revoked,
    /// Nothing is recorded for the host.
    Unknown,
    /// Nothing but a certificate authority, which has not certified it.
    OnlyAuthority,
}

/// One line of the file.
pub(super) enum Line {
    /// Nothing, or a comment.
    Blank,
    /// A host's key.
    Key(Box<Entry>),
    /// Something else.
    Broken,
}

impl Line {
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return Self::Blank;
        }
        // Tabs are as good as spaces to OpenSSH, and so are several.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match text.parse::<Entry>() {
            Ok(entry) => Self::Key(Box::new(entry)),
            Err(_) => Self::Broken,
        }
    }
}

/// The keys by the names that they are recorded under.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Names without wildcards, by far the most.
    plain: HashMap<String, Vec<PublicKey>>,
    /// Hashed names: each has a salt of its own, so that finding one takes a hash a line.
    hashed: Vec<(HostPatterns, PublicKey)>,
    /// So a name that was looked for once is remembered with its lines.
    found: HashMap<String, Vec<usize>>,
    wildcards: Vec<(HostPatterns, PublicKey)>,
    revoked: Vec<(HostPatterns, PublicKey)>,
    authorities: Vec<(HostPatterns, PublicKey)>,
    /// Lines that are no entries: number, text.
    pub(super) broken: Vec<(usize, String)>,
}

impl Table {
    /// Lines that are no valid entries are passed over, as OpenSSH does.
    pub(super) fn read(text: &str) -> Self {
        let mut table = Self::default();
        for (line, number) in text.lines().zip(1..) {
            match Line::parse(line) {
                Line::Blank => {}
                Line::Key(entry) => table.add(&entry),
                Line::Broken => table.broken.push((number, line.to_owned())),
            }
        }
        table
    }

    fn add(&mut self, entry: &Entry) {
        let (patterns, key) = (entry.host_patterns().clone(), entry.public_key().clone());
        match (entry.marker(), &patterns) {
            (Some(Marker::CertAuthority), _) => self.authorities.push((patterns, key)),
            (Some(Marker::Revoked), _) => self.revoked.push((patterns, key)),
            (None, HostPatterns::HashedName { .. }) => self.hashed.push((patterns, key)),
            (None, HostPatterns::Patterns(names)) if !names.iter().any(|name| is_pattern(name)) => {
                for name in names {
                    self.plain.entry(name.to_lowercase()).or_default().push(key.clone());
                }
            }
            (None, _) => self.wildcards.push((patterns, key)),
        }
    }

    /// Adds a key that has been recorded just now.
    pub(super) fn record(&mut self, names: &Names, key: &PublicKey) {
        self.plain.entry(names.own.clone()).or_default().push(key.clone());
    }

    /// The keys that are recorded for a host.
    pub(super) fn keys(&mut self, names: &Names) -> Vec<&PublicKey> {
        let name = names.all().find(|name| self.has(name)).unwrap_or(&names.own);
        self.of_name(name)
    }

    fn has(&mut self, name: &str) -> bool {
        !self.of_name(name).is_empty()
    }

    fn of_name(&mut self, name: &str) -> Vec<&PublicKey> {
        if !self.hashed.is_empty() && !self.found.contains_key(name) && self.found.len() < MAX_FOUND {
            let lines = self.hashed.iter().enumerate().filter(|(_, (hash, _))| matches(hash, name));
            let lines = lines.map(|(line, _)| line).collect();
            self.found.insert(name.to_owned(), lines);
        }
        let hashed = self.found.get(name).into_iter().flatten().filter_map(|line| self.hashed.get(*line));
        let wildcards = self.wildcards.iter().filter(|(patterns, _)| matches(patterns, name));
        let plain = self.plain.get(name).into_iter().flatten();
        plain.chain(hashed.chain(wildcards).map(|(_, key)| key)).collect()
    }

    /// Whether certificates of the host can be verified.
    pub(super) fn has_authority(&self, names: &Names) -> bool {
        self.authorities.iter().any(|(patterns, _)| fit(patterns, names))
    }

    /// Whether `key` may certify the host's.
    pub(super) fn is_authority(&self, names: &Names, key: &PublicKey) -> bool {
        is_among(&self.authorities, names, key)
    }

    /// Whether `key`, of a host or of an authority, must not be used for the host.
    pub(super) fn is_revoked(&self, names: &Names, key: &PublicKey) -> bool {
        is_among(&self.revoked, names, key)
    }

    pub(super) fn judge(&mut self, names: &Names, key: &PublicKey) -> Judgement {
        let same = |known: &PublicKey| known.key_data() == key.key_data();
        if self.is_revoked(names, key) {
            return Judgement::Revoked;
        }
        let known = self.of_name(&names.own);
        if known.iter().any(|known| same(known)) {
            return Judgement::Known;
        }
        if !known.is_empty() {
            return Judgement::Changed(known.into_iter().map(describe).collect());
        }
        match &names.bare {
            Some(bare) if self.of_name(bare).iter().any(|known| same(known)) => Judgement::Known,
            _ if self.has_authority(names) => Judgement::OnlyAuthority,
            _ => Judgement::Unknown,
        }
    }
}

fn fit(patterns: &HostPatterns, names: &Names) -> bool {
    names.all().any(|name| matches(patterns, name))
}

fn is_among(lines: &[(HostPatterns, PublicKey)], names: &Names, key: &PublicKey) -> bool {
    lines.iter().any(|(patterns, known)| known.key_data() == key.key_data() && fit(patterns, names))
}

/// As `ssh-keygen -l` shows it, without the size.
pub(super) fn describe(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

pub(super) fn is_pattern(name: &str) -> bool {
    name.starts_with('!') || name.contains(['*', '?'])
}

/// Whether a line is for the host `name`: one of its patterns fits, and none of those that begin with `!`.
pub(super) fn matches(patterns: &HostPatterns, name: &str) -> bool {
    match patterns {
        HostPatterns::HashedName { salt, hash } => Hmac::<Sha1>::new_from_slice(salt)
            .is_ok_and(|mac| mac.chain_update(name.as_bytes()).verify_slice(hash).is_ok()),
        HostPatterns::Patterns(patterns) => {
            let hit = |pattern: &str| glob(pattern.to_lowercase().as_bytes(), name.as_bytes());
            let negated = patterns.iter().filter_map(|p| p.strip_prefix('!')).any(hit);
            !negated && patterns.iter().filter(|p| !p.starts_with('!')).any(|p| hit(p))
        }
    }
}

/// `*` is any text, `?` any one character. Takes time proportional to the product of the lengths at most.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == b'?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((after, from)) => {
                    *from += 1;
                    (p, t) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_openssh() {
        for (pattern, text, hit) in [
            ("*", "", true),
            ("esx?", "esx1", true),
            ("esx?", "esx", false),
            ("*.example.*", "a.example.org", true),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxxbc", false),
            ("", "x", false),
            ("[*]:22", "[esx]:22", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), hit, "{pattern} {text}");
        }
    }

    #[test]
    fn a_port_other_than_22_is_part_of_the_name() {
        assert_eq!(Names::new("ESX1", 22).own, "esx1");
        assert_eq!(Names::new("fd00::1", 2222).own, "[fd00::1]:2222");
    }

    #[test]
    fn broken_lines_are_counted_from_one() {
        let table = Table::read("# comment\n\nnonsense\nesx1 ssh-ed25519 AAAA\n");
        assert_eq!(table.broken.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [3, 4]);
    }
}
