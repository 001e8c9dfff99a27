//! Accounts: as whom to log in at a target, and whether a login may be tried at all.

pub mod guard;
pub mod master_password;
mod secret;

pub use secret::Secret;

use crate::file_stamp::FileStamp;
use crate::inventory::{Host, Vcenter};
use crate::outcome::{Failure, FailureReason};
use master_password::MasterKey;
use russh::keys::PrivateKey;
use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// The accounts of the configuration.
#[derive(Debug, Clone, Default)]
pub struct AccountsConfig {
    /// For SSH to hosts.
    pub esxi: Option<Account>,
    /// For SOAP to vCenters.
    pub vcenter: Option<Account>,
}

/// When a login may be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockoutConfig {
    /// Pause of a target after a rejection; doubles up to `max_wait`.
    pub wait: Duration,
    /// Longest pause.
    pub max_wait: Duration,
    /// Attempts in all with a credential that never succeeded.
    pub unproven_tries: u32,
    /// Keep in memory alone what was tried.
    pub volatile: bool,
}

/// A user and how it proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User name.
    pub user: Arc<str>,
    /// Its proof.
    pub proof: Proof,
}

/// How a user proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A password.
    Password(SecretSource),
    /// A master password, from which each vCenter's password is derived.
    MasterPassword(SecretSource),
    /// A private key in a file (OpenSSH or PEM), for SSH.
    Key(PathBuf),
}

/// Where a secret stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the environment.
    Value(Secret),
    /// In a file, read again when it changes; one trailing newline does not count.
    File(PathBuf),
}

/// What a login needs, with the secret's content of this moment.
#[derive(Debug, Clone)]
pub struct Login {
    /// User name.
    pub user: Arc<str>,
    /// The proof to present.
    pub secret: LoginSecret,
    /// Which credential this is, for the guard.
    pub credential: guard::CredentialId,
}

/// The proof to present.
#[derive(Debug, Clone)]
pub enum LoginSecret {
    /// For password and keyboard-interactive authentication, and for SOAP.
    Password(Secret),
    /// For public key authentication. Never locks an account, so the guard does not count it.
    Key(Arc<russh::keys::PrivateKey>),
}

/// The largest file that can hold a password or a private key.
const SECRET_FILE_LIMIT: u64 = 64 * 1024;

/// Gives every target its login. Secrets that stand in files are read again when the file changes.
pub struct Accounts {
    config: AccountsConfig,
    credentials: Arc<guard::CredentialKey>,
    files: Mutex<HashMap<PathBuf, KnownFile>>,
    /// One at a time: whoever comes while a key is derived waits for it instead of deriving it again.
    master_key: tokio::sync::Mutex<Option<KnownMasterKey>>,
}

struct KnownFile {
    stamp: FileStamp,
    content: Secret,
    /// The content as a private key, once somebody asked for that.
    key: Option<Arc<PrivateKey>>,
}

struct KnownMasterKey {
    user: Arc<str>,
    master: Secret,
    key: MasterKey,
}

impl Accounts {
    /// The accounts of the configuration. Nothing is read before the first login. The credentials' ids are
    /// of this process only.
    pub fn new(config: AccountsConfig) -> Self {
        Self::with_credentials(config, Arc::new(guard::CredentialKey::of_process()))
    }

    /// The same, with ids that a guard knows: [`guard::Guard::credentials`].
    pub fn with_credentials(config: AccountsConfig, credentials: Arc<guard::CredentialKey>) -> Self {
        Self { config, credentials, files: Mutex::default(), master_key: tokio::sync::Mutex::default() }
    }

    /// The login for a host.
    ///
    /// # Errors
    /// [`FailureReason::NoCredentials`]: no account is configured, or its secret can't be read.
    pub async fn for_host(&self, host: &Host) -> Result<Login, Failure> {
        self.login(self.config.esxi.as_ref(), "ESXi", &host.endpoint.host).await
    }

    /// The login for a vCenter. The first one with a new master password takes about 160 ms, off the
    /// async threads.
    ///
    /// # Errors
    /// [`FailureReason::NoCredentials`]: no account is configured, or its secret can't be read.
    pub async fn for_vcenter(&self, vcenter: &Vcenter) -> Result<Login, Failure> {
        self.login(self.config.vcenter.as_ref(), "vCenter", &vcenter.endpoint.host).await
    }

    async fn login(&self, account: Option<&Account>, kind: &str, name: &str) -> Result<Login, Failure> {
        let Some(Account { user, proof }) = account else {
            return Err(no_credentials(format!("no {kind} account is configured")));
        };
        let secret = match proof {
            Proof::Password(source) => LoginSecret::Password(self.read(source).await?),
            Proof::MasterPassword(source) => {
                let master = self.read(source).await?;
                LoginSecret::Password(self.derive(user, master, name).await?)
            }
            Proof::Key(path) => LoginSecret::Key(self.read_key(path).await?),
        };
        let credential = self.credentials.id(user, &secret);
        Ok(Login { user: Arc::clone(user), secret, credential })
    }

    async fn read(&self, source: &SecretSource) -> Result<Secret, Failure> {
        match source {
            SecretSource::Value(secret) => Ok(secret.clone()),
            SecretSource::File(path) => self.read_file(path).await,
        }
    }

    async fn read_file(&self, path: &Path) -> Result<Secret, Failure> {
        let unreadable = |e: std::io::Error| no_credentials(format!("cannot read {}: {e}", path.display()));
        let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
        if let Some(known) = self.files().get(path)
            && known.stamp.is_still(&metadata)
        {
            return Ok(known.content.clone());
        }
        let stamp = FileStamp::of(&metadata);
        let owned = path.to_owned();
        let content = tokio::task::spawn_blocking(move || read_secret_file(&owned))
            .await
            .map_err(|e| no_credentials(format!("reading {} was cut short: {e}", path.display())))?
            .map_err(no_credentials)?;
        let mut files = self.files();
        let key = files.remove(path).filter(|known| known.content == content).and_then(|known| known.key);
        files.insert(path.to_owned(), KnownFile { stamp, content: content.clone(), key });
        Ok(content)
    }

    async fn read_key(&self, path: &Path) -> Result<Arc<PrivateKey>, Failure> {
        let content = self.read_file(path).await?;
        if let Some(key) = self.files().get(path).and_then(|known| known.key.clone()) {
            return Ok(key);
        }
        let key = Arc::new(parse_key(path, &content).map_err(no_credentials)?);
        if let Some(known) = self.files().get_mut(path).filter(|known| known.content == content) {
            known.key = Some(Arc::clone(&key));
        }
        Ok(key)
    }

    async fn derive(&self, user: &Arc<str>, master: Secret, name: &str) -> Result<Secret, Failure> {
        let mut known = self.master_key.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.user == *user && known.master == master) {
            return Ok(known.key.vcenter_password(name));
        }
        let user = Arc::clone(user);
        let derived = tokio::task::spawn_blocking(move || {
            let key = MasterKey::derive(&user, &master);
            KnownMasterKey { user, master, key }
        });
        let derived = derived
            .await
            .map_err(|e| no_credentials(format!("deriving the password of {name} was cut short: {e}")))?;
        let password = derived.key.vcenter_password(name);
        *known = Some(derived);
        Ok(password)
    }

    fn files(&self) -> MutexGuard<'_, HashMap<PathBuf, KnownFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a file that holds one secret; one newline at its end does not count. Errors name the file.
pub(crate) fn read_secret_file(path: &Path) -> Result<Secret, String> {
    let cannot = |why: &dyn fmt::Display| format!("cannot read {}: {why}", path.display());
    let mut bytes = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(|e| cannot(&e))?;
    file.take(SECRET_FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(|e| cannot(&e))?;
    if bytes.len() as u64 > SECRET_FILE_LIMIT {
        return Err(format!("{} is larger than {SECRET_FILE_LIMIT} bytes: no secret", path.display()));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{} is no UTF-8 text", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(Secret::new(text))
}

/// Reads the text of a private key. Errors name the file.
pub(crate) fn parse_key(path: &Path, content: &Secret) -> Result<PrivateKey, String> {
    let key = russh::keys::decode_secret_key(content.expose(), None);
    let encrypted = || format!("{} is protected by a passphrase, which is not supported", path.display());
    match key {
        Ok(key) if key.is_encrypted() => Err(encrypted()),
        Ok(key) => Ok(key),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(encrypted()),
        Err(e) => Err(format!("{} holds no private key: {e}", path.display())),
    }
}

fn no_credentials(message: impl fmt::Display) -> Failure {
    Failure::new(FailureReason::NoCredentials, message)
}

#[cfg(test)]
mod tests;
