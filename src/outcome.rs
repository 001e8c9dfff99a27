//! Leaf: how a visit, a poll or the question for one service ended.
//!
//! A failure is one of a closed list of reasons. The same word stands in the metric's `reason`, in the
//! span's `error.type` and in the log, so that a dashboard, Jaeger and the log can be joined.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+) => {
        /// Why a visit, a poll or one service's answer failed. Closed: a new reason is a new variant here.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum FailureReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl FailureReason {
            /// Every reason, in the order of the steps of a visit.
            pub const ALL: &'static [FailureReason] = &[$(FailureReason::$variant,)+];

            /// The word that stands in metrics, spans and logs.
            pub const fn word(self) -> &'static str {
                match self {
                    $(FailureReason::$variant => $word,)+
                }
            }

            /// What it means, in one sentence, for the documentation.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(FailureReason::$variant => concat!($($doc,)+),)+
                }
            }
        }
    };
}

reasons! {
    /// The name could not be resolved.
    Dns = "dns",
    /// No route to the address, or the network said that it is unreachable.
    Unreachable = "unreachable",
    /// The port refused the connection.
    ConnectRefused = "connect_refused",
    /// The connection was not established within its time-out.
    ConnectTimeout = "connect_timeout",
    /// The peer does not speak the protocol, or broke its rules.
    ProtocolError = "protocol_error",
    /// Client and server share no key exchange, cipher, MAC or host key algorithm.
    NoCommonAlgorithm = "no_common_algorithm",
    /// The host key differs from the one that is known.
    HostKeyChanged = "host_key_changed",
    /// The host key is not known, and the policy is strict.
    HostKeyUnknown = "host_key_unknown",
    /// The host key is marked as revoked.
    HostKeyRevoked = "host_key_revoked",
    /// No account is configured for this target, or its secret can't be read.
    NoCredentials = "no_credentials",
    /// Key exchange and authentication did not end within their time-out.
    LoginTimeout = "login_timeout",
    /// The account was rejected.
    AuthFailed = "auth_failed",
    /// Not tried, to keep the account from being locked.
    AuthGuarded = "auth_guarded",
    /// TLS failed: certificate not trusted, expired, for another name, or no common version.
    Tls = "tls",
    /// The command or call did not answer within its time-out.
    CommandTimeout = "command_timeout",
    /// The command or call was refused, or answered with an error.
    CommandFailed = "command_failed",
    /// The answer was larger than its limit.
    AnswerTooLarge = "answer_too_large",
    /// The answer could not be understood.
    AnswerUnreadable = "answer_unreadable",
    /// The connection ended while it was in use.
    ConnectionLost = "connection_lost",
    /// The peer allows no further session or channel.
    SessionLimit = "session_limit",
    /// vCenter says that the host's SSH service is switched off.
    SshDisabled = "ssh_disabled",
    /// vCenter is down or starting (HTTP 502 or 503).
    VcenterUnavailable = "vcenter_unavailable",
    /// The account lacks a privilege.
    PermissionDenied = "permission_denied",
    /// The address is not among those that may be given a password.
    AddressNotAllowed = "address_not_allowed",
    /// The service's init script is not on the host.
    NotInstalled = "not_installed",
    /// Not asked, because the service's script hung in earlier rounds.
    SkippedHung = "skipped_hung",
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A failure with its reason and one clear line for people: the operation, the subject, the cause.
///
/// The line never holds a secret, a command line or an answer's raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The word for metric, span and log.
    pub reason: FailureReason,
    /// One line for people.
    pub message: String,
}

impl Failure {
    /// A failure of `reason`, explained by `message`.
    pub fn new(reason: FailureReason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }

    /// The same reason, with the operation and subject put before the message.
    #[must_use]
    pub fn during(self, operation: impl fmt::Display) -> Self {
        Self { reason: self.reason, message: format!("{operation}: {}", self.message) }
    }
}

/// An error and all its sources as one line, `outer: inner: innermost`, without repetitions (many
/// libraries print their source themselves).
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = inner.source();
    }
    line.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_a_word_of_its_own_in_snake_case() {
        let words: HashSet<_> = FailureReason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), FailureReason::ALL.len());
        for word in words {
            assert!(word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{word}");
        }
    }
}
