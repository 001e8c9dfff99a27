//! Private keys in files, and the certificates beside them.

use super::files::{SecretFiles, read_secret_file};
use super::{KeySource, Secret, SecretSource, no_credentials};
use crate::outcome::Failure;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Certificate, PrivateKey};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// What is presented by public key authentication.
#[derive(Debug, Clone)]
pub struct SshKey {
    private: Arc<PrivateKey>,
    certificate: Option<Arc<Certificate>>,
}

impl SshKey {
    /// A key, and the OpenSSH user certificate that was issued for it, if there is one.
    pub fn new(private: PrivateKey, certificate: Option<Certificate>) -> Self {
        Self { private: Arc::new(private), certificate: certificate.map(Arc::new) }
    }

    /// The private key.
    pub fn private(&self) -> &Arc<PrivateKey> {
        &self.private
    }

    /// The certificate, which is presented in place of the public key.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref()
    }
}

/// The keys that were read. To decrypt one takes a tenth of a second or more, so it is done once for each
/// content, whatever comes of it; whoever comes meanwhile waits.
#[derive(Default)]
pub(super) struct Keys(tokio::sync::Mutex<Vec<KnownKey>>);

struct KnownKey {
    source: KeySource,
    content: Content,
    key: Result<SshKey, Failure>,
}

/// What stands in the files of a key.
#[derive(PartialEq, Eq, Clone)]
struct Content {
    key: Secret,
    passphrase: Option<Secret>,
    certificate: Option<Secret>,
}

impl Keys {
    /// The key as its files are now.
    pub(super) async fn key(&self, source: &KeySource, files: &SecretFiles) -> Result<SshKey, Failure> {
        let content = Content {
            key: files.read(&source.file).await?,
            passphrase: match &source.passphrase {
                Some(passphrase) => Some(files.secret(passphrase).await?),
                None => None,
            },
            certificate: files.read_if_there(&certificate_file(&source.file)).await?,
        };
        let mut known = self.0.lock().await;
        if let Some(known) = known.iter().find(|known| known.source == *source && known.content == content) {
            return known.key.clone().and_then(|key| not_expired(key, &source.file));
        }
        let (path, parsed) = (source.file.clone(), content.clone());
        let key = tokio::task::spawn_blocking(move || parse(&path, &parsed)).await;
        let key = key
            .map_err(|e| no_credentials(format!("opening {} was cut short: {e}", source.file.display())))?
            .map_err(no_credentials);
        known.retain(|known| known.source != *source);
        known.push(KnownKey { source: source.clone(), content, key: key.clone() });
        key.and_then(|key| not_expired(key, &source.file))
    }
}

/// Where OpenSSH keeps the certificate of a key.
fn certificate_file(key: &Path) -> PathBuf {
    let mut path = key.as_os_str().to_owned();
    path.push("-cert.pub");
    path.into()
}

/// Servers say nothing but no to a certificate that has expired.
fn not_expired(key: SshKey, path: &Path) -> Result<SshKey, Failure> {
    let end = key.certificate().and_then(Certificate::valid_before_time);
    match end.filter(|end| *end <= SystemTime::now()) {
        Some(end) => {
            let end = jiff::Timestamp::try_from(end).map(|end| format!(" at {end}")).unwrap_or_default();
            Err(no_credentials(format!("{} has expired{end}", certificate_file(path).display())))
        }
        None => Ok(key),
    }
}

/// Reads everything that belongs to a key, blocking: whether it could be used now. Errors name the file.
pub(crate) fn read_key_files(source: &KeySource) -> Result<(), String> {
    let secret = |source: &SecretSource| match source {
        SecretSource::Value(secret) => Ok(secret.clone()),
        SecretSource::File(path) => read_secret_file(path),
    };
    let certificate = certificate_file(&source.file);
    let content = Content {
        key: read_secret_file(&source.file)?,
        passphrase: source.passphrase.as_ref().map(secret).transpose()?,
        certificate: certificate.exists().then(|| read_secret_file(&certificate)).transpose()?,
    };
    let key = parse(&source.file, &content)?;
    not_expired(key, &source.file).map(drop).map_err(|failure| failure.message)
}

fn parse(path: &Path, content: &Content) -> Result<SshKey, String> {
    let name = path.display();
    let passphrase = content.passphrase.as_ref().map(Secret::expose);
    let key = match russh::keys::decode_secret_key(content.key.expose(), passphrase) {
        Ok(key) if !key.is_encrypted() => Ok(key),
        Ok(_) | Err(russh::keys::Error::KeyIsEncrypted) => Err(format!(
            "{name} is protected by a passphrase: put it into a file and name that \
             (key_passphrase_file or ESXI_KEY_PASSPHRASE_FILE)"
        )),
        Err(e) if passphrase.is_some() => Err(format!("{name} can't be opened with its passphrase: {e}")),
        Err(e) => Err(format!("{name} holds no private key: {e}")),
    }?;
    let certificate = content.certificate.as_ref().map(|text| parse_certificate(path, &key, text));
    Ok(SshKey::new(key, certificate.transpose()?))
}

fn parse_certificate(path: &Path, key: &PrivateKey, text: &Secret) -> Result<Certificate, String> {
    let name = certificate_file(path);
    let name = name.display();
    let certificate = Certificate::from_openssh(text.expose().trim())
        .map_err(|e| format!("{name} holds no OpenSSH certificate: {e}"))?;
    if certificate.cert_type() != CertType::User {
        return Err(format!("{name} is a certificate of a host, not of a user"));
    }
    if certificate.public_key() != key.public_key().key_data() {
        return Err(format!("{name} is the certificate of another key than {}", path.display()));
    }
    Ok(certificate)
}
