//! Accounts: as whom to log in at a target, and whether a login may be tried at all.
//!
//! Which account a target gets is told by the configuration alone (`choice`); what stands in files is read
//! again when it changes (`files`, `keys`).

mod choice;
mod files;
pub mod guard;
mod keys;
pub mod master_password;
pub(crate) mod secret;

pub use choice::{Chosen, CredentialRule, Matcher};
pub use keys::SshKey;
pub use secret::Secret;

pub(crate) use files::read_secret_file;
pub(crate) use keys::read_key_files;

use crate::inventory::{Host, Vcenter};
use crate::outcome::{Failure, FailureReason};
use files::SecretFiles;
use keys::Keys;
use master_password::MasterKey;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The accounts of the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AccountsConfig {
    /// For some targets; the first one that matches and has an account of the target's kind wins.
    pub rules: Vec<CredentialRule>,
    /// For SSH to all other hosts.
    pub esxi: Option<Account>,
    /// For SOAP to all other vCenters.
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
    /// A private key, for SSH.
    Key(KeySource),
}

/// Where a private key stands, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySource {
    /// The file (OpenSSH or PEM). An OpenSSH certificate in `<file>-cert.pub` is used with it.
    pub file: PathBuf,
    /// What the key is encrypted with; `None`: it is not.
    pub passphrase: Option<SecretSource>,
    /// For hosts that want a password beside the key (`AuthenticationMethods` of OpenSSH).
    pub password: Option<SecretSource>,
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
    /// Which credential this is, for the guard: the password where there is one.
    pub credential: guard::CredentialId,
}

/// The proof to present.
#[derive(Debug, Clone)]
pub enum LoginSecret {
    /// For password and keyboard-interactive authentication, and for SOAP.
    Password(Secret),
    /// For public key authentication. Never locks an account, so the guard does not count it.
    Key(SshKey),
    /// For hosts that want both, or either.
    KeyAndPassword(SshKey, Secret),
}

impl LoginSecret {
    /// What a lockout could count.
    pub fn password(&self) -> Option<&Secret> {
        match self {
            LoginSecret::Password(password) | LoginSecret::KeyAndPassword(_, password) => Some(password),
            LoginSecret::Key(_) => None,
        }
    }

    /// What is presented by public key authentication.
    pub fn key(&self) -> Option<&SshKey> {
        match self {
            LoginSecret::Key(key) | LoginSecret::KeyAndPassword(key, _) => Some(key),
            LoginSecret::Password(_) => None,
        }
    }
}

/// Gives every target its login. Secrets that stand in files are read again when the file changes.
pub struct Accounts {
    config: AccountsConfig,
    credentials: Arc<guard::CredentialKey>,
    files: SecretFiles,
    keys: Keys,
    /// One at a time: whoever comes while a key is derived waits for it instead of deriving it again.
    master_keys: tokio::sync::Mutex<Vec<KnownMasterKey>>,
}

struct KnownMasterKey {
    user: Arc<str>,
    master: Secret,
    key: MasterKey,
}

/// Most derived keys that are kept: one for each user with a master password, and the older contents go.
const MASTER_KEYS: usize = 64;

impl Accounts {
    /// The accounts of the configuration. Nothing is read before the first login. The credentials' ids are
    /// of this process only.
    pub fn new(config: AccountsConfig) -> Self {
        Self::with_credentials(config, Arc::new(guard::CredentialKey::of_process()))
    }

    /// The same, with ids that a guard knows: [`guard::Guard::credentials`].
    pub fn with_credentials(config: AccountsConfig, credentials: Arc<guard::CredentialKey>) -> Self {
        Self {
            config,
            credentials,
            files: SecretFiles::default(),
            keys: Keys::default(),
            master_keys: tokio::sync::Mutex::default(),
        }
    }

    /// As whom to log in at a host; `None`: no account is configured for it. Reads nothing.
    pub fn user_of_host(&self, host: &Host) -> Option<&Arc<str>> {
        self.config.of_host(host).map(|chosen| &chosen.account.user)
    }

    /// How to log in at a vCenter, by the configuration; `None`: no account is configured for it.
    pub fn account_of_vcenter(&self, vcenter: &Vcenter) -> Option<&Account> {
        self.config.of_vcenter(vcenter).map(|chosen| chosen.account)
    }

    /// The login for a host.
    ///
    /// # Errors
    /// [`FailureReason::NoCredentials`]: no account is configured, or its secret can't be read.
    pub async fn for_host(&self, host: &Host) -> Result<Login, Failure> {
        self.login(self.config.of_host(host), "ESXi", &host.endpoint.host).await
    }

    /// The login for a vCenter. The first one with a new master password takes about 160 ms, off the
    /// async threads.
    ///
    /// # Errors
    /// [`FailureReason::NoCredentials`]: no account is configured, or its secret can't be read.
    pub async fn for_vcenter(&self, vcenter: &Vcenter) -> Result<Login, Failure> {
        self.login(self.config.of_vcenter(vcenter), "vCenter", &vcenter.endpoint.host).await
    }

    async fn login(&self, chosen: Option<Chosen<'_>>, kind: &str, name: &str) -> Result<Login, Failure> {
        let Some(Chosen { account: Account { user, proof }, .. }) = chosen else {
            let matches = if self.config.rules.is_empty() { "" } else { ", and no credentials match" };
            return Err(no_credentials(format!("no {kind} account is configured{matches}")));
        };
        let secret = match proof {
            Proof::Password(source) => LoginSecret::Password(self.files.secret(source).await?),
            Proof::MasterPassword(source) => {
                let master = self.files.secret(source).await?;
                LoginSecret::Password(self.derive(user, master, name).await?)
            }
            Proof::Key(source) => {
                let key = self.keys.key(source, &self.files).await?;
                match &source.password {
                    Some(password) => LoginSecret::KeyAndPassword(key, self.files.secret(password).await?),
                    None => LoginSecret::Key(key),
                }
            }
        };
        let credential = self.credentials.id(user, &secret);
        Ok(Login { user: Arc::clone(user), secret, credential })
    }

    async fn derive(&self, user: &Arc<str>, master: Secret, name: &str) -> Result<Secret, Failure> {
        let mut all = self.master_keys.lock().await;
        if let Some(known) = all.iter().find(|known| known.user == *user && known.master == master) {
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
        all.insert(0, derived);
        all.truncate(MASTER_KEYS);
        Ok(password)
    }
}

fn no_credentials(message: impl fmt::Display) -> Failure {
    Failure::new(FailureReason::NoCredentials, message)
}

#[cfg(test)]
mod tests;
