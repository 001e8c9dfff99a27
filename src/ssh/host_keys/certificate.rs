//! Host certificates (OpenSSH, PROTOCOL.certkeys): a key that an authority vouches for.

use super::table::glob;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};
use std::time::{SystemTime, UNIX_EPOCH};

/// The key that the certificate is about.
pub(super) fn subject(certificate: &Certificate) -> PublicKey {
    PublicKey::new(certificate.public_key().clone(), "")
}

/// The authority that has signed it, as the certificate says.
pub(super) fn authority(certificate: &Certificate) -> PublicKey {
    PublicKey::new(certificate.signature_key().clone(), "")
}

/// Whether `host` (lower case, without a port) may show this certificate at this time, provided that its
/// authority is trusted. Stricter than OpenSSH up to version 10.2 in one thing: a certificate without names
/// is for no host, not for all.
///
/// # Errors
/// Why not, in a few words.
pub(super) fn check(certificate: &Certificate, host: &str, now: SystemTime) -> Result<(), String> {
    if certificate.cert_type() != CertType::Host {
        return Err("it is no host's certificate".to_owned());
    }
    // A signature by SHA-1 can be had for another certificate.
    if matches!(certificate.signature().algorithm(), Algorithm::Rsa { hash: None } | Algorithm::Dsa) {
        return Err("it is signed by an algorithm that is too weak".to_owned());
    }
    // None is defined for hosts, and one that is not understood has to be refused.
    if let Some((name, _)) = certificate.critical_options().iter().next() {
        return Err(format!("its critical option {name:?} is not understood"));
    }
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = seconds(now);
    if now < certificate.valid_after() {
        return Err("it is not valid yet".to_owned());
    }
    if now >= certificate.valid_before() {
        return Err("it has expired".to_owned());
    }
    let names = certificate.valid_principals();
    if !names.iter().any(|name| glob(name.to_lowercase().as_bytes(), host.as_bytes())) {
        let names: Vec<_> = names.iter().take(5).map(|name| format!("{name:?}")).collect();
        let of = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
        return Err(format!("it is for {of}"));
    }
    let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
    certificate.validate_at(now, [&authority]).map_err(|_| "its signature is wrong".to_owned())
}
