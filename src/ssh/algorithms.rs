//! Which algorithms are offered, in which order.
//!
//! russh's own order picks group exchange with 8,192 bits against ESXi 8, half a second of CPU for each
//! login; with ECDH first it is a millisecond.

use super::host_keys::Known;
use russh::client::{Config, GexParams};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Preferred, SshId, cipher, compression, kex, mac};
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// Key exchanges: cheap ones first; finite fields last, of which group 16 takes 80 ms.
///
/// The markers have to end the list: without the last one strict key exchange is off, and the connection
/// is open to the Terrapin attack (CVE-2023-48795). The other one asks for `server-sig-algs` (RFC 8308).
const KEX: &[kex::Name] = &[
    kex::ECDH_SHA2_NISTP256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_G14_SHA256,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

/// ESXi in its FIPS mode has GCM and CTR only.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_CTR,
    cipher::AES_192_CTR,
    cipher::AES_256_CTR,
];

/// The last one is for ESXi before 6.5 alone. HMAC does not suffer from SHA-1's collisions.
const MACS: &[mac::Name] =
    &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512, mac::HMAC_SHA1];

/// A kind of host key. One RSA key signs by several algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    EcdsaP256,
    Ed25519,
    EcdsaP384,
    EcdsaP521,
    Rsa,
}

impl Family {
    const ALL: [Self; 5] = [Self::EcdsaP256, Self::Ed25519, Self::EcdsaP384, Self::EcdsaP521, Self::Rsa];

    fn of(algorithm: &Algorithm) -> Option<Self> {
        match algorithm {
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 } => Some(Self::EcdsaP256),
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 } => Some(Self::EcdsaP384),
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 } => Some(Self::EcdsaP521),
            Algorithm::Ed25519 => Some(Self::Ed25519),
            Algorithm::Rsa { .. } => Some(Self::Rsa),
            _ => None,
        }
    }

    /// The signature algorithms. Plain `ssh-rsa` (SHA-1) is what hosts before 6.0 have alone.
    fn algorithms(self) -> Vec<Algorithm> {
        match self {
            Self::EcdsaP256 => vec![Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }],
            Self::EcdsaP384 => vec![Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 }],
            Self::EcdsaP521 => vec![Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 }],
            Self::Ed25519 => vec![Algorithm::Ed25519],
            Self::Rsa => [Some(HashAlg::Sha256), Some(HashAlg::Sha512), None]
                .map(|hash| Algorithm::Rsa { hash })
                .into(),
        }
    }

    const fn bit(self) -> usize {
        1 << self as usize
    }
}

/// For hosts with an authority; beside the families' bits.
const CERTIFICATES: usize = 1 << Family::ALL.len();

/// The client's configuration towards a host of which these keys are `known`: those of their kinds come
/// first. Otherwise a host that is known by RSA and also offers ECDSA would look as if its key had changed.
/// A certificate is asked for only if it could be verified.
pub(super) fn config(known: &Known) -> Arc<Config> {
    static CONFIGS: [OnceLock<Arc<Config>>; CERTIFICATES << 1] =
        [const { OnceLock::new() }; CERTIFICATES << 1];
    let certificates = if known.has_authority { CERTIFICATES } else { 0 };
    let families = known.algorithms.iter().filter_map(Family::of);
    let known = families.fold(certificates, |set, family| set | family.bit());
    match CONFIGS.get(known) {
        Some(config) => config.get_or_init(|| Arc::new(build(known))).clone(),
        None => Arc::new(build(known)),
    }
}

fn build(known: usize) -> Config {
    let mut families = Family::ALL;
    families.sort_by_key(|family| known & family.bit() == 0);
    let key: Vec<_> = families.into_iter().flat_map(Family::algorithms).collect();
    // An RSA certificate's key signs by SHA-2, or not at all.
    let certified = key.iter().filter(|key| **key != Algorithm::Rsa { hash: None }).cloned().collect();
    let preferred = Preferred {
        kex: Cow::Borrowed(KEX),
        host_key_certificates: if known & CERTIFICATES == 0 { Cow::default() } else { certified },
        key: key.into(),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
    };
    Config {
        // RFC 4253, 4.2: no minus sign in a software version.
        client_id: SshId::Standard(Cow::Borrowed(concat!(
            "SSH-2.0-esxi_otel_agent_",
            env!("CARGO_PKG_VERSION")
        ))),
        preferred,
        gex: GexParams::new(2048, 3072, 8192).unwrap_or_default(),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(algorithms: &[Algorithm]) -> Known {
        Known { algorithms: algorithms.to_vec(), has_authority: false }
    }

    #[test]
    fn strict_key_exchange_and_extension_info_are_asked_for() {
        let config = config(&known(&[]));
        let ends = [kex::EXTENSION_SUPPORT_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];
        assert!(config.preferred.kex.ends_with(&ends));
        assert_eq!(config.preferred.kex[0], kex::ECDH_SHA2_NISTP256);
    }

    #[test]
    fn the_recorded_kinds_of_keys_come_first() {
        let rsa = Algorithm::Rsa { hash: None };
        let first = |algorithms: &[Algorithm]| config(&known(algorithms)).preferred.key[0].to_string();
        assert_eq!(first(&[]), "ecdsa-sha2-nistp256");
        assert_eq!(first(std::slice::from_ref(&rsa)), "rsa-sha2-256");
        assert_eq!(first(&[rsa.clone(), Algorithm::Ed25519]), "ssh-ed25519");
        assert_eq!(
            config(&known(std::slice::from_ref(&rsa))).preferred.key.len(),
            config(&known(&[])).preferred.key.len(),
            "the others stay on offer"
        );
        assert!(
            Arc::ptr_eq(
                &config(&known(std::slice::from_ref(&rsa))),
                &config(&known(std::slice::from_ref(&rsa)))
            ),
            "one for all hosts of a kind"
        );
    }

    #[test]
    fn certificates_are_asked_for_only_where_there_is_an_authority() {
        let vouched = |has_authority| {
            config(&Known { algorithms: vec![Algorithm::Ed25519], has_authority })
                .preferred
                .host_key_certificates
                .iter()
                .map(Algorithm::to_certificate_type)
                .collect::<Vec<_>>()
        };
        assert!(vouched(false).is_empty());
        assert_eq!(vouched(true)[0], "ssh-ed25519-cert-v01@openssh.com", "the recorded kind comes first");
        assert!(!vouched(true).iter().any(|name| name == "ssh-rsa-cert-v01@openssh.com"), "no SHA-1");
    }
}
