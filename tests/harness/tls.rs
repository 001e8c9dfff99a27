//! Servers that speak TLS and are no simulator's.

use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// What accepts connections to a server of this name, and its certificate, which nobody else has signed.
pub fn self_signed(name: &str) -> (TlsAcceptor, rcgen::Certificate) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    (TlsAcceptor::from(Arc::new(config)), certificate)
}
