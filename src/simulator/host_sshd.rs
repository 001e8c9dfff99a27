//! The SSH server of a simulated host as ESXi 8 configures it: algorithms, methods, host keys.

use super::faults::HostFault;
use super::host::{Fleet, FleetSpec};
use super::host_state::Host;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use russh::keys::ssh_key::Error as KeyError;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::server::Config;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// What ESXi 8 identifies itself as.
pub(super) const IDENTIFICATION: &str = "SSH-2.0-OpenSSH_8.8";

/// Which host keys a fleet has. ECDSA keys are made for each host; one RSA key is shared by all, as it
/// takes a second to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HostKeys {
    /// ECDSA with nistp256.
    Ecdsa,
    /// RSA with 2048 bits.
    Rsa,
    /// Both, as ESXi has it.
    EcdsaAndRsa,
}

/// The RSA host key of a fleet, and the one that takes its place when it changes.
#[derive(Debug)]
pub(super) struct RsaKey(PrivateKey);

impl RsaKey {
    pub fn for_fleet(keys: HostKeys, seed: u64) -> Result<Option<Self>, KeyError> {
        if keys == HostKeys::Ecdsa {
            return Ok(None);
        }
        let pair = russh::keys::ssh_key::private::RsaKeypair::random(&mut StdRng::seed_from_u64(seed), 2048)?;
        Ok(Some(Self(PrivateKey::from(pair))))
    }
}

const ECDSA: Algorithm = Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 };

// The lists of a real host of version 8.0.2, in its order. russh has no group-exchange for servers that
// would be worth having, so that one is left out.
const KEX: &[kex::Name] = &[
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
const MACS: &[mac::Name] = &[mac::HMAC_SHA256, mac::HMAC_SHA512];
const HOST_KEYS: &[Algorithm] =
    &[ECDSA, Algorithm::Rsa { hash: Some(HashAlg::Sha512) }, Algorithm::Rsa { hash: Some(HashAlg::Sha256) }];

/// The configuration for a connection at this moment. The usual one is kept.
pub(super) fn config(fleet: &Fleet, host: &Host) -> Result<Arc<Config>, KeyError> {
    let (fault, kept) = {
        let state = host.lock();
        (state.fault, state.config.clone())
    };
    match (fault, kept) {
        (Some(HostFault::HostKeyChanged), _) => make(&fleet.spec, keys(fleet, host, 1)?, KEX),
        (Some(HostFault::NoCommonAlgorithm), _) => {
            make(&fleet.spec, keys(fleet, host, 0)?, &[kex::DH_G1_SHA1])
        }
        (_, Some(kept)) => Ok(kept),
        (_, None) => {
            let made = make(&fleet.spec, keys(fleet, host, 0)?, KEX)?;
            host.lock().config = Some(made.clone());
            Ok(made)
        }
    }
}

/// The host's keys. A changed one is another ECDSA key: from a host with RSA alone that is a change, too.
fn keys(fleet: &Fleet, host: &Host, generation: u64) -> Result<Vec<PrivateKey>, KeyError> {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&fleet.spec.seed.to_le_bytes());
    seed[8..16].copy_from_slice(&(host.index as u64).to_le_bytes());
    seed[16..24].copy_from_slice(&generation.to_le_bytes());
    let ecdsa = || PrivateKey::random(&mut StdRng::from_seed(seed), ECDSA);
    Ok(match &fleet.rsa {
        Some(rsa) if generation == 0 && fleet.spec.host_keys == HostKeys::Rsa => vec![rsa.0.clone()],
        Some(rsa) if generation == 0 => vec![ecdsa()?, rsa.0.clone()],
        _ => vec![ecdsa()?],
    })
}

fn make(spec: &FleetSpec, keys: Vec<PrivateKey>, kex: &'static [kex::Name]) -> Result<Arc<Config>, KeyError> {
    let mut methods = vec![MethodKind::PublicKey, MethodKind::KeyboardInteractive];
    if spec.password_method {
        methods.push(MethodKind::Password);
    }
    Ok(Arc::new(Config {
        server_id: SshId::Standard(Cow::Borrowed(IDENTIFICATION)),
        methods: MethodSet::from(&methods[..]),
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys,
        preferred: Preferred {
            kex: Cow::Borrowed(kex),
            key: Cow::Borrowed(HOST_KEYS),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            compression: Cow::Borrowed(&[compression::NONE]),
        },
        // russh also counts the attempt without a secret that clients begin with; sshd does not.
        max_auth_attempts: spec.max_auth_tries.saturating_add(1),
        inactivity_timeout: Some(spec.inactivity),
        channel_buffer_size: 8,
        nodelay: true,
        ..Config::default()
    }))
}
