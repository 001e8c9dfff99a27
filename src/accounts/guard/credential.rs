//! What stands for a credential: a keyed hash of user and secret's content.

use crate::accounts::{LoginSecret, master_password};
use hmac::Mac as _;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use zeroize::Zeroizing;

/// Identity of a credential: a keyed hash of user and secret's content. The key stays in the state folder
/// (or in the process), so the hash tells nothing to whoever reads a dump, a log or the journal alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CredentialId(pub [u8; 16]);

impl CredentialId {
    /// Of every credential while the key is not known. Never granted a try.
    pub(super) const UNKNOWN: Self = Self([0; 16]);

    /// The first characters, enough for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<CredentialId> for String {
    fn from(id: CredentialId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for CredentialId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        number.map(|number| Self(number.to_be_bytes())).ok_or("no credential's id")
    }
}

/// A key of [`CredentialKey::LENGTH`] bytes.
pub(super) type Key = Zeroizing<[u8; CredentialKey::LENGTH]>;

/// The key of the hashes, once it is known, and the users of the credentials seen so far.
#[derive(Default)]
pub struct CredentialKey {
    key: OnceLock<Key>,
    users: Mutex<HashMap<CredentialId, Arc<str>>>,
}

impl fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialKey")
    }
}

impl CredentialKey {
    pub(super) const LENGTH: usize = 32;

    /// A key that nobody else has, for as long as the process lives.
    pub fn of_process() -> Self {
        Self::of(rand::random())
    }

    pub(in crate::accounts) fn of(key: [u8; Self::LENGTH]) -> Self {
        Self { key: OnceLock::from(Zeroizing::new(key)), users: Mutex::default() }
    }

    /// Takes over the key, unless it has another one already; says whether it is this one now.
    pub(super) fn set(&self, key: &Key) -> bool {
        self.key.get_or_init(|| key.clone()) == key
    }

    /// The identity of a credential. While the key is not known all are one, which gets no try.
    pub fn id(&self, user: &Arc<str>, secret: &LoginSecret) -> CredentialId {
        let Some(key) = self.key.get() else { return CredentialId::UNKNOWN };
        let mut mac = master_password::keyed(&**key);
        // The length keeps user "a" with secret "bc" apart from user "ab" with secret "c".
        mac.update(&user.len().to_be_bytes());
        mac.update(user.as_bytes());
        match secret {
            // A key beside it makes it no other password.
            LoginSecret::Password(password) | LoginSecret::KeyAndPassword(_, password) => {
                mac.update(b"password");
                mac.update(password.expose().as_bytes());
            }
            LoginSecret::Key(key) => {
                mac.update(b"key");
                mac.update(key.private().fingerprint(russh::keys::HashAlg::Sha256).as_bytes());
            }
        }
        let digest = <[u8; 32]>::from(mac.finalize().into_bytes());
        let mut id = [0; 16];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        let id = CredentialId(id);
        self.users
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(id)
            .or_insert_with(|| Arc::clone(user));
        id
    }

    /// The user of a credential that was seen in this process.
    pub(super) fn user(&self, id: CredentialId) -> Option<Arc<str>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// What a journal says of the key that it was written with, without telling anything about it.
pub(super) fn fingerprint(key: &Key) -> String {
    let mut mac = master_password::keyed(&**key);
    mac.update(b"the guard's journal");
    let digest = <[u8; 32]>::from(mac.finalize().into_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
