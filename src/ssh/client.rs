//! What russh tells while a session lives, and what its errors mean.

use super::host_keys::{HostKeys, Standing};
use crate::outcome::{Failure, FailureReason, chain};
use crate::steps::Steps;
use russh::client::{DisconnectReason, Handler, Session};
use russh::keys::HashAlg;
use russh::keys::PublicKeyOrCertificate;
use russh::{Disconnect, Names};
use std::io;
use std::sync::{Arc, OnceLock};

/// The handler of one session.
pub(super) struct Client {
    pub(super) host: Arc<str>,
    pub(super) port: u16,
    pub(super) host_keys: Arc<HostKeys>,
    pub(super) told: Arc<Told>,
}

/// What the handler leaves for those who hold the session.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// For whoever wants to know each step.
    pub(super) steps: Steps,
    /// The algorithms that were agreed on first.
    pub(super) agreed: OnceLock<Agreed>,
    /// Why the host key is trusted, and its fingerprint.
    pub(super) host_key: OnceLock<(Standing, String)>,
    /// How the session ended.
    pub(super) ended: OnceLock<Ended>,
}

/// Agreed algorithms.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) kex: String,
    pub(super) host_key: String,
    pub(super) cipher: String,
    pub(super) mac: String,
}

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The server let no method of authentication remain: a rejection.
    NoMethodLeft,
    /// The server said good-bye.
    Disconnected(Disconnect, String),
    /// Anything else.
    Lost(String),
}

/// Why a session could not be set up.
#[derive(Debug)]
pub(super) enum Error {
    /// russh's own.
    Ssh(russh::Error),
    /// The host key was refused.
    Refused(Failure),
}

impl From<russh::Error> for Error {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl Handler for Client {
    type Error = Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Error> {
        let (keys, host, port) = (&self.host_keys, &self.host, self.port);
        let standing = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => keys.verify(host, port, key.clone()).await,
            PublicKeyOrCertificate::Certificate(certificate) => {
                keys.verify_certificate(host, port, certificate.clone()).await
            }
        };
        let standing = standing.map_err(Error::Refused)?;
        let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
        // Later calls are re-exchanges.
        let _ = self.told.host_key.set((standing, fingerprint));
        Ok(true)
    }

    async fn kex_done(
        &mut self,
        _shared_secret: Option<&[u8]>,
        names: &Names,
        _session: &mut Session,
    ) -> Result<(), Error> {
        let agreed = Agreed {
            kex: names.kex.as_ref().to_owned(),
            host_key: names.key.to_string(),
            cipher: names.cipher.as_ref().to_owned(),
            mac: names.client_mac.as_ref().to_owned(),
        };
        // Later calls are re-exchanges.
        let _ = self.told.agreed.set(agreed);
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Error>) -> Result<(), Error> {
        let ended = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                Ended::Disconnected(info.reason_code, clean(&info.message))
            }
            DisconnectReason::Error(Error::Ssh(russh::Error::NoAuthMethod)) => Ended::NoMethodLeft,
            DisconnectReason::Error(Error::Ssh(error)) => Ended::Lost(failure(&error).message),
            DisconnectReason::Error(Error::Refused(failure)) => Ended::Lost(failure.message),
        };
        let _ = self.told.ended.set(ended);
        Ok(())
    }
}

impl Told {
    /// How the session ended, in words.
    pub(super) fn end(&self) -> String {
        match self.ended.get() {
            Some(Ended::NoMethodLeft) => "no method of authentication is left".to_owned(),
            Some(Ended::Disconnected(reason, message)) => {
                format!("disconnected by the host: {message} ({reason:?})")
            }
            Some(Ended::Lost(why)) => why.clone(),
            None => "the session ended".to_owned(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Ssh(error) => failure(&error),
            Error::Refused(failure) => failure,
        }
    }
}

/// What an error of russh means.
pub(super) fn failure(error: &russh::Error) -> Failure {
    use russh::Error as E;
    let message = match error {
        E::NoCommonAlgo { kind, theirs, .. } => {
            let theirs = clean(&theirs.join(", "));
            format!("no common algorithm ({kind:?}), the host offers: {theirs}")
        }
        E::IO(error) if error.kind() == io::ErrorKind::UnexpectedEof => "closed by the host".to_owned(),
        E::HUP | E::Disconnect => "closed by the host".to_owned(),
        other => clean(&chain(other)),
    };
    Failure::new(reason(error), message)
}

fn reason(error: &russh::Error) -> FailureReason {
    use russh::Error as E;
    match error {
        E::NoCommonAlgo { .. } => FailureReason::NoCommonAlgorithm,
        E::IO(_)
        | E::HUP
        | E::Disconnect
        | E::SendError
        | E::RecvError
        | E::Join(_)
        | E::Elapsed(_)
        | E::ConnectionTimeout
        | E::KeepaliveTimeout
        | E::InactivityTimeout => FailureReason::ConnectionLost,
        // Raised by our own refusal alone, which brings its own reason.
        E::UnknownKey | E::KeyChanged { .. } => FailureReason::HostKeyUnknown,
        E::NoAuthMethod | E::UnsupportedAuthMethod | E::NotAuthenticated => FailureReason::AuthFailed,
        E::ChannelOpenFailure(_) => FailureReason::SessionLimit,
        E::RequestDenied => FailureReason::CommandFailed,
        _ => FailureReason::ProtocolError,
    }
}

/// Text from a peer, fit for one line of a log.
pub(super) fn clean(text: &str) -> String {
    let one_line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    one_line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_stay_on_one_short_line() {
        assert_eq!(clean("\u{1b}[31mToo many\r\nfailures\0"), "[31mToo many  failures");
        assert_eq!(clean(&"x".repeat(5_000)).len(), 200);
    }

    #[test]
    fn loss_breach_of_protocol_and_lack_of_algorithms_are_told_apart() {
        let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(failure(&russh::Error::IO(eof)).reason, FailureReason::ConnectionLost);
        assert_eq!(failure(&russh::Error::Version).reason, FailureReason::ProtocolError);
        assert_eq!(failure(&russh::Error::WrongServerSig).reason, FailureReason::ProtocolError);
        let none = russh::Error::NoCommonAlgo {
            kind: russh::AlgorithmKind::Cipher,
            ours: vec!["a".into()],
            theirs: vec!["rot13".into()],
        };
        assert_eq!(failure(&none).reason, FailureReason::NoCommonAlgorithm);
        assert!(failure(&none).message.contains("rot13"));
    }
}
