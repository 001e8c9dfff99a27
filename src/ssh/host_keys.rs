//! Host keys: the known_hosts file in OpenSSH's format (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
//!
//! Loaded once into a table and read again when the file changes: at ten thousand hosts, reading it for
//! every login would cost more than the login. Plain, hashed and wildcard names, `[host]:port` and
//! `@revoked` are understood; `@cert-authority` is passed over, as certificates are never asked for.

use crate::config::{HostKeyPolicy, SshConfig};
use crate::outcome::{Failure, FailureReason, chain};
use hmac::{Hmac, KeyInit as _, Mac as _};
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use russh::keys::{Algorithm, HashAlg, PublicKey};
use sha1::Sha1;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long another process may hold the file's lock before a new key counts as not recorded.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The keys that hosts are known by. Cheap to share; its calls read files and block for a moment.
#[derive(Debug)]
pub struct HostKeys {
    path: PathBuf,
    policy: HostKeyPolicy,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// What the file was when it was read; `None`: there was none, or it was not read yet.
    stamp: Option<Stamp>,
    /// Names without wildcards, by far the most.
    plain: HashMap<String, Vec<PublicKey>>,
    /// Hashed names and patterns.
    others: Vec<(HostPatterns, PublicKey)>,
    revoked: Vec<(HostPatterns, PublicKey)>,
    /// Lines that are no entries: how many, and the number of the first.
    broken: Option<(usize, usize)>,
}

/// Tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl From<&fs::Metadata> for Stamp {
    fn from(m: &fs::Metadata) -> Self {
        Self { device: m.dev(), inode: m.ino(), length: m.len(), modified: (m.mtime(), m.mtime_nsec()) }
    }
}

impl HostKeys {
    /// Reads the file of `config`, which need not exist yet.
    ///
    /// # Errors
    /// When it is there but can't be read.
    pub fn load(config: &SshConfig) -> Result<Self, Failure> {
        let keys = Self::new(config.known_hosts.clone(), config.host_key_policy);
        if keys.policy != HostKeyPolicy::Insecure {
            drop(keys.current()?);
        }
        Ok(keys)
    }

    /// Of the file at `path`, read when first needed.
    pub fn new(path: PathBuf, policy: HostKeyPolicy) -> Self {
        Self { path, policy, table: Mutex::default() }
    }

    /// The kinds of keys that are recorded for a host.
    pub(super) async fn algorithms(
        self: &Arc<Self>,
        host: &str,
        port: u16,
    ) -> Result<Vec<Algorithm>, Failure> {
        if self.policy == HostKeyPolicy::Insecure {
            return Ok(Vec::new());
        }
        let name = name(host, port);
        self.blocking(move |keys| {
            let table = keys.current()?;
            Ok(table.keys(&name).into_iter().map(|key| key.algorithm()).collect())
        })
        .await
    }

    /// Whether `key` may be trusted to be that of the host. A new one is recorded if the policy says so.
    ///
    /// # Errors
    /// `host_key_changed`, `host_key_unknown` (strict, or it can't be recorded), `host_key_revoked`.
    pub(super) async fn verify(
        self: &Arc<Self>,
        host: &str,
        port: u16,
        key: PublicKey,
    ) -> Result<(), Failure> {
        if self.policy == HostKeyPolicy::Insecure {
            return Ok(());
        }
        let name = name(host, port);
        self.blocking(move |keys| keys.verify_blocking(&name, &key)).await
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let keys = Arc::clone(self);
        let log = tracing::dispatcher::get_default(Clone::clone);
        let work = move || tracing::dispatcher::with_default(&log, || work(&keys));
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => {
                Err(Failure::new(FailureReason::HostKeyUnknown, format!("check host key: {error}")))
            }
        }
    }

    fn verify_blocking(&self, name: &str, key: &PublicKey) -> Result<(), Failure> {
        let mut table = self.current()?;
        match table.judge(name, key) {
            Some(verdict) => verdict,
            None if self.policy == HostKeyPolicy::AcceptNew => {
                self.record(&mut table, name, key).unwrap_or_else(|error| {
                    let path = self.path.display();
                    let message = format!(
                        "host key of {name} is new and can't be recorded in {path}: {}",
                        chain(&error)
                    );
                    Err(Failure::new(FailureReason::HostKeyUnknown, message))
                })
            }
            None => {
                let message =
                    format!("host key of {name} is not in {}: {}", self.path.display(), describe(key));
                Err(Failure::new(FailureReason::HostKeyUnknown, message))
            }
        }
    }

    /// The table, read again if the file has changed.
    fn current(&self) -> Result<MutexGuard<'_, Table>, Failure> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut table).map_err(|error| {
            let message = format!("read known hosts {}: {error}", self.path.display());
            Failure::new(FailureReason::HostKeyUnknown, message)
        })?;
        Ok(table)
    }

    fn refresh(&self, table: &mut Table) -> io::Result<()> {
        match fs::metadata(&self.path) {
            Ok(metadata) if table.stamp == Some(Stamp::from(&metadata)) => Ok(()),
            Ok(_) => {
                let mut file = File::open(&self.path)?;
                let told = std::mem::replace(table, Table::read(&mut file)?).broken;
                // A key that was in such a line is not known any more: that must not go unseen.
                if let Some((count, first)) = table.broken.filter(|_| table.broken != told) {
                    let path = self.path.display();
                    tracing::warn!("{path}:{first}: no known_hosts entry; lines passed over: {count}");
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *table = Table::default();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Appends one line, under the file's lock, since another agent may record the same host now.
    fn record(&self, table: &mut Table, name: &str, key: &PublicKey) -> io::Result<Result<(), Failure>> {
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        lock(&file)?;
        self.refresh(table)?;
        if let Some(verdict) = table.judge(name, key) {
            return Ok(verdict);
        }
        let mut line = format!("{name} {}\n", key.to_openssh().map_err(io::Error::other)?);
        if !ends_with_newline(&mut file)? {
            line.insert(0, '\n');
        }
        file.write_all(line.as_bytes())?;
        table.plain.entry(name.to_owned()).or_default().push(key.clone());
        table.stamp = Some(Stamp::from(&file.metadata()?));
        Ok(Ok(()))
    }
}

/// Waits for the lock, but not for ever. It goes with the file.
fn lock(file: &File) -> io::Result<()> {
    let start = std::time::Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if start.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process keeps it locked"));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

impl Table {
    /// Reads the whole file. Lines that are no valid entries are passed over, as OpenSSH does.
    fn read(file: &mut File) -> io::Result<Self> {
        let mut table = Self { stamp: Some(Stamp::from(&file.metadata()?)), ..Self::default() };
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        for (number, line) in String::from_utf8_lossy(&text).lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // Tabs are as good as spaces to OpenSSH.
            match line.replace('\t', " ").parse::<Entry>() {
                Ok(entry) => table.add(entry),
                Err(_) => table.broken.get_or_insert((0, number + 1)).0 += 1,
            }
        }
        Ok(table)
    }

    fn add(&mut self, entry: Entry) {
        let (patterns, key) = (entry.host_patterns().clone(), entry.public_key().clone());
        match (entry.marker(), &patterns) {
            (Some(Marker::CertAuthority), _) => {}
            (Some(Marker::Revoked), _) => self.revoked.push((patterns, key)),
            (None, HostPatterns::Patterns(names)) if !names.iter().any(|name| is_pattern(name)) => {
                for name in names {
                    self.plain.entry(name.to_lowercase()).or_default().push(key.clone());
                }
            }
            (None, _) => self.others.push((patterns, key)),
        }
    }

    /// The keys that are recorded for `name`.
    fn keys(&self, name: &str) -> Vec<&PublicKey> {
        let others = self.others.iter().filter(|(patterns, _)| matches(patterns, name)).map(|(_, key)| key);
        self.plain.get(name).into_iter().flatten().chain(others).collect()
    }

    /// `None`: nothing is recorded for `name`.
    fn judge(&self, name: &str, key: &PublicKey) -> Option<Result<(), Failure>> {
        let same = |known: &PublicKey| known.key_data() == key.key_data();
        if self.revoked.iter().any(|(patterns, revoked)| same(revoked) && matches(patterns, name)) {
            let message = format!("host key of {name} is revoked: {}", describe(key));
            return Some(Err(Failure::new(FailureReason::HostKeyRevoked, message)));
        }
        let known = self.keys(name);
        if known.is_empty() {
            return None;
        }
        if known.iter().any(|known| same(known)) {
            return Some(Ok(()));
        }
        let known = known.into_iter().map(describe).collect::<Vec<_>>().join(" or ");
        let message =
            format!("host key of {name} has changed: known is {known}, offered was {}", describe(key));
        Some(Err(Failure::new(FailureReason::HostKeyChanged, message)))
    }
}

/// As `ssh-keygen -l` shows it, without the size.
fn describe(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

/// The name under which OpenSSH records a host: lower case, with the port unless it is 22.
fn name(host: &str, port: u16) -> String {
    let host = host.to_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

fn is_pattern(name: &str) -> bool {
    name.starts_with('!') || name.contains(['*', '?'])
}

fn matches(patterns: &HostPatterns, name: &str) -> bool {
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
fn glob(pattern: &[u8], text: &[u8]) -> bool {
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
mod tests;
