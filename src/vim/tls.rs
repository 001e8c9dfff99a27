//! Which certificates of vCenters are believed, and what the one that was presented says of itself.

use crate::config::{Thumbprint, VcenterConfig, read_roots};
use crate::outcome::{Failure, FailureReason, chain};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use x509_cert::der::Decode as _;

/// Longest name of a subject or issuer that is kept, characters.
const MAX_NAME: usize = 200;
/// Most certificates of a chain whose names are kept.
const MAX_CHAIN: usize = 8;

/// Picks the one TLS implementation of this process; later calls do nothing.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that somebody else has installed one already, which is as good.
        let _ = ring::default_provider().install_default();
    });
}

/// Why a certificate is believed, or that it need not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It is the one of `vcenter.thumbprints`.
    Pinned,
    /// A root of `vcenter.ca_file` has signed it.
    CaFile,
    /// A root of the system has signed it.
    SystemRoots,
    /// Nobody looked: `vcenter.verify_tls` is off.
    Unverified,
}

impl Trust {
    /// The word in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::CaFile => "ca_file",
            Self::SystemRoots => "system_roots",
            Self::Unverified => "unverified",
        }
    }

    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Pinned => "pinned by vcenter.thumbprints",
            Self::CaFile => "signed by a root of vcenter.ca_file",
            Self::SystemRoots => "signed by a root of the system",
            Self::Unverified => "not verified",
        }
    }
}

/// The certificate that a server presented: its own, not those of its chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// SHA-256 of it.
    pub thumbprint: Thumbprint,
    /// Whose it is; `None`: it can't be read. No control characters.
    pub subject: Option<String>,
    /// Who signed it; `None`: it can't be read. No control characters.
    pub issuer: Option<String>,
    /// Until when it is valid, seconds of unix time.
    pub expires: Option<f64>,
    /// Whose the certificates are that came along: those of authorities, in the server's order.
    pub chain: Vec<String>,
}

impl Certificate {
    fn read(der: &[u8], chain: &[CertificateDer<'_>]) -> Self {
        let parsed = x509_cert::Certificate::from_der(der).ok();
        let parsed = parsed.as_ref().map(x509_cert::Certificate::tbs_certificate);
        let chain = chain.iter().take(MAX_CHAIN).filter_map(|der| {
            let authority = x509_cert::Certificate::from_der(der).ok()?;
            Some(name(authority.tbs_certificate().subject()))
        });
        let expires =
            |validity: &x509_cert::time::Validity| validity.not_after.to_unix_duration().as_secs_f64();
        Self {
            thumbprint: Thumbprint::of(der),
            subject: parsed.map(|certificate| name(certificate.subject())),
            issuer: parsed.map(|certificate| name(certificate.issuer())),
            expires: parsed.map(|certificate| expires(certificate.validity())),
            chain: chain.collect(),
        }
    }
}

fn name(name: &x509_cert::name::Name) -> String {
    name.to_string().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

/// The certificate is not the one that was pinned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the vCenter's certificate has the SHA-256 thumbprint {found}, and vcenter.thumbprints says {expected}: it \
     was replaced, or somebody stands between"
)]
pub(super) struct WrongThumbprint {
    found: Thumbprint,
    expected: Thumbprint,
}

/// The rules of TLS for one vCenter. Clones share what was presented.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    /// For whoever connects.
    pub config: ClientConfig,
    /// By which rule a certificate is believed.
    pub trust: Trust,
    presented: Presented,
}

type Presented = Arc<Mutex<Seen>>;

/// What was seen at the last handshake.
#[derive(Debug, Default)]
struct Seen {
    certificate: Option<Arc<Certificate>>,
    version: Option<&'static str>,
}

impl Tls {
    /// The rules that `config` has for the vCenter of this address and host. A thumbprint goes before all
    /// others, also where verification is off.
    pub fn new(config: &VcenterConfig, address: &str, host: &str) -> Result<Self, Failure> {
        install_crypto();
        let provider = Arc::new(ring::default_provider());
        let failed = |what: &str, cause: String| {
            Failure::new(FailureReason::Tls, format!("TLS for vCenter {address}: {what}: {cause}"))
        };
        let (rule, trust) = if let Some(expected) = config.thumbprint_of(address, host) {
            (Rule::Pinned(expected), Trust::Pinned)
        } else if !config.verify_tls {
            (Rule::Anything, Trust::Unverified)
        } else if let Some(file) = &config.ca_file {
            let what = format!("vcenter.ca_file {}", file.display());
            let mut roots = RootCertStore::empty();
            // One that can't be understood is no reason to leave the others aside; none at all is an error.
            let found = read_roots(file).map_err(|problem| failed(&what, problem))?;
            roots.add_parsable_certificates(found);
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            (Rule::Chain(inner.build().map_err(|error| failed(&what, chain(&error)))?), Trust::CaFile)
        } else {
            let inner = rustls_platform_verifier::Verifier::new(Arc::clone(&provider));
            let inner = inner.map_err(|error| failed("the system's roots", chain(&error)))?;
            (Rule::Chain(Arc::new(inner)), Trust::SystemRoots)
        };
        let presented = Presented::default();
        let verifier = Verifier { rule, provider: Arc::clone(&provider), presented: Arc::clone(&presented) };
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| failed("versions", chain(&error)))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config, trust, presented })
    }

    /// The certificate that was presented last, whatever became of it.
    pub fn presented(&self) -> Option<Arc<Certificate>> {
        seen(&self.presented).certificate.clone()
    }

    /// The version of TLS that the server spoke last, once it has proved that it has its certificate's key.
    pub fn version(&self) -> Option<&'static str> {
        seen(&self.presented).version
    }
}

fn seen(presented: &Presented) -> MutexGuard<'_, Seen> {
    presented.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
enum Rule {
    Pinned(Thumbprint),
    Chain(Arc<dyn ServerCertVerifier>),
    Anything,
}

/// Notes what is presented, and decides by its rule. That the server has the certificate's key is verified
/// always.
#[derive(Debug)]
struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
    presented: Presented,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let read = Certificate::read(certificate, chain);
        let found = read.thumbprint;
        *seen(&self.presented) = Seen { certificate: Some(Arc::new(read)), version: None };
        match &self.rule {
            Rule::Chain(inner) => inner.verify_server_cert(certificate, chain, name, ocsp, now),
            Rule::Pinned(expected) if *expected != found => {
                let wrong = WrongThumbprint { found, expected: *expected };
                Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
            }
            Rule::Pinned(_) | Rule::Anything => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        seen(&self.presented).version = Some("TLS 1.2");
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        seen(&self.presented).version = Some("TLS 1.3");
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a certificate was refused, if this is about one.
pub(super) fn refusal(error: &rustls::Error) -> Option<String> {
    let rustls::Error::InvalidCertificate(cause) = error else { return None };
    if let CertificateError::Other(OtherError(other)) = cause
        && let Some(wrong) = other.downcast_ref::<WrongThumbprint>()
    {
        return Some(wrong.to_string());
    }
    let cause = match cause {
        CertificateError::Other(OtherError(other)) if other.to_string().contains("CaUsedAsEndEntity") => {
            "it is an authority's own, as a self-signed one is; `vcenter.thumbprints` can name it".to_owned()
        }
        cause => cause.to_string(),
    };
    Some(format!("the vCenter's certificate is not trusted: {cause}"))
}
