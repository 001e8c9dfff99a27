//! Accounts: as whom to log in at a target, and whether a login may be tried at all.

pub mod guard;
pub mod master_password;
mod secret;

pub use secret::Secret;

use std::path::PathBuf;
use std::sync::Arc;

/// The accounts of the configuration.
#[derive(Debug, Clone, Default)]
pub struct AccountsConfig {
    /// For SSH to hosts.
    pub esxi: Option<Account>,
    /// For SOAP to vCenters.
    pub vcenter: Option<Account>,
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
