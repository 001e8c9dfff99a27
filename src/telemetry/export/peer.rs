//! The Collector as a peer: how to reach it, and whether it is there.

use crate::config::OtlpConfig;
use crate::outcome::chain;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tracing::dispatcher::{Dispatch, WeakDispatch};

/// Longest time for a TCP connection, and for a TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// Why nothing could be set up. Names the configuration's key.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The address is no URL, or TLS can't be set up.
    #[error("otlp.endpoint: {endpoint}: {cause}")]
    Endpoint {
        /// The address, without user information.
        endpoint: String,
        /// What is wrong.
        cause: String,
    },
    /// A file can't be read.
    #[error("otlp.tls.{key}: {path}: {source}")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Certificate without key, or key without certificate.
    #[error("otlp.tls: cert_file and key_file are needed together")]
    HalfIdentity,
    /// A header's name or value has characters that HTTP does not allow.
    #[error("otlp.headers: {0}: name or value is not allowed in HTTP")]
    Header(String),
}

/// The address, TLS and headers of a Collector, resolved once.
#[derive(Debug, Clone)]
pub struct Peer {
    endpoint: Endpoint,
    metadata: MetadataMap,
    name: String,
    limit: Duration,
}

impl Peer {
    /// The Collector of `endpoint`. Reads the files that `config` names.
    pub fn new(config: &OtlpConfig) -> Result<Self, PeerError> {
        Self::at(&config.endpoint, config)
    }

    /// All Collectors that `config` names, the first one first. TLS and headers are the same for all.
    pub fn all(config: &OtlpConfig) -> Result<Vec<Self>, PeerError> {
        let addresses = [&config.endpoint].into_iter().chain(&config.failover);
        addresses.map(|address| Self::at(address, config)).collect()
    }

    fn at(address: &str, config: &OtlpConfig) -> Result<Self, PeerError> {
        let name = without_user(address);
        let wrong = |cause: String| PeerError::Endpoint { endpoint: name.clone(), cause };
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| wrong(chain(&error)))?;
        let scheme = endpoint.uri().scheme_str().unwrap_or_default();
        if !matches!(scheme, "http" | "https") || endpoint.uri().host().is_none() {
            return Err(wrong("not of the form http://host:port or https://host:port".into()));
        }
        let secure = scheme == "https";
        let mut endpoint = endpoint
            .connect_timeout(config.timeout.min(CONNECT))
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .user_agent(concat!("esxi-otel-agent/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| wrong(chain(&error)))?;
        if secure {
            endpoint = endpoint.tls_config(tls(config)?).map_err(|error| wrong(chain(&error)))?;
        }
        Ok(Self { endpoint, metadata: metadata(config)?, name, limit: config.timeout })
    }

    /// Without TLS and headers.
    #[cfg(test)]
    pub(crate) fn of_test(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(address.to_owned()).expect("a URL");
        Self { endpoint, metadata: MetadataMap::new(), name: address.to_owned(), limit: CONNECT }
    }

    /// A channel that connects when it is first used. For callers that put a limit around their calls.
    pub fn channel(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// A channel whose calls have a limit of their own.
    pub fn limited_channel(&self) -> Channel {
        self.endpoint.clone().timeout(self.limit).connect_lazy()
    }

    /// Whether it takes a connection. Returns within the limit of one call.
    pub async fn takes_connections(&self) -> bool {
        let connecting = tokio::time::timeout(self.limit, self.endpoint.connect());
        connecting.await.is_ok_and(|connected| connected.is_ok())
    }

    /// The headers of every call.
    pub fn metadata(&self) -> &MetadataMap {
        &self.metadata
    }

    /// Its address, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name and port, if it has a name that may come to mean other addresses.
    pub fn looked_up(&self) -> Option<(String, u16)> {
        let uri = self.endpoint.uri();
        let host = uri.host()?;
        let is_address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        (!is_address).then(|| (host.to_owned(), port))
    }

    /// Limit of one call.
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

fn tls(config: &OtlpConfig) -> Result<ClientTlsConfig, PeerError> {
    // The handshake is not covered by the time-out of the connection.
    let mut tls = ClientTlsConfig::new().timeout(config.timeout.min(CONNECT));
    tls = match &config.ca_file {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read("ca_file", path)?)),
        None => tls.with_enabled_roots(),
    };
    match (&config.cert_file, &config.key_file) {
        (Some(cert), Some(key)) => {
            Ok(tls.identity(Identity::from_pem(read("cert_file", cert)?, read("key_file", key)?)))
        }
        (None, None) => Ok(tls),
        _ => Err(PeerError::HalfIdentity),
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, PeerError> {
    std::fs::read(path).map_err(|source| PeerError::File { key, path: path.to_owned(), source })
}

fn metadata(config: &OtlpConfig) -> Result<MetadataMap, PeerError> {
    let mut metadata = MetadataMap::new();
    for (name, value) in &config.headers {
        let wrong = || PeerError::Header(name.clone());
        let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| wrong())?;
        let mut value: MetadataValue<Ascii> = value.expose().parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// An address with what stands before an `@` taken out: that is a secret.
fn without_user(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            let (start, end) = (address.get(..scheme + 3), address.get(at + 1..));
            format!("{}{}", start.unwrap_or_default(), end.unwrap_or_default())
        }
        _ => address.to_owned(),
    }
}

/// Shortest pause between two complaints in the log, whatever a Collector thinks of.
const COMPLAINTS: Duration = Duration::from_secs(60);

/// What of a Collector's answers is told: the same one is not repeated with each request.
#[derive(Debug, Default)]
pub struct Complaints {
    last: Option<(String, Instant)>,
    is_over: bool,
}

impl Complaints {
    /// Whether this has to be told.
    pub fn is_news(&mut self, complaint: &str) -> bool {
        let is_new =
            |(last, at): &(String, Instant)| (self.is_over || last != complaint) && at.elapsed() > COMPLAINTS;
        let is_news = self.last.as_ref().is_none_or(is_new);
        if is_news {
            *self = Self { last: Some((complaint.to_owned(), Instant::now())), is_over: false };
        }
        is_news
    }

    /// All was well since: the same is news again.
    pub fn is_over(&mut self) {
        self.is_over = true;
    }
}

/// A failure in gRPC's words, with what it usually means.
pub fn with_hint(failure: String) -> String {
    const HINTS: [(&str, &str); 3] = [
        (
            "frame with invalid size",
            "something else than OTLP over gRPC answers there: its usual port is 4317, and with TLS it is https://",
        ),
        ("InvalidContentType", "no TLS is spoken there: is it http:// instead of https://?"),
        ("NoApplicationProtocol", "that TLS server has no HTTP/2, so it is no OTLP over gRPC"),
    ];
    match HINTS.iter().find(|(words, _)| failure.contains(words)) {
        Some((_, hint)) => format!("{failure} ({hint})"),
        None => failure,
    }
}

/// A kind of telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Metrics.
    Metrics,
    /// Traces.
    Traces,
    /// Logs.
    Logs,
}

impl Signal {
    /// What it is made of, for people.
    pub fn items(self) -> &'static str {
        match self {
            Self::Metrics => "points",
            Self::Traces => "spans",
            Self::Logs => "log records",
        }
    }
}

/// Whether the Collector is there, for all signals together: one line in the log when it goes and one
/// when it is back, however many tries there are between.
#[derive(Debug)]
pub struct Presence {
    state: Mutex<State>,
    /// Wakes whoever waits until it is away.
    lost: Notify,
    /// Weak, since the log's own export belongs to it. Needed because the SDK's threads have no subscriber.
    log: OnceLock<WeakDispatch>,
}

#[derive(Debug)]
struct State {
    /// The one that everything goes to.
    peer: String,
    absence: Option<Absence>,
}

#[derive(Debug)]
struct Absence {
    since: Instant,
    /// The reasons that were told.
    reasons: Complaints,
    /// Those that found out. The success of another one proves nothing: a Collector may well take metrics
    /// and no traces, and that is no coming and going.
    of: Vec<Signal>,
}

impl Presence {
    /// Thought to be there.
    pub fn new(peer: &str) -> Self {
        let state = State { peer: peer.to_owned(), absence: None };
        Self { state: Mutex::new(state), lost: Notify::new(), log: OnceLock::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody found out that it is away.
    pub fn is_away(&self) -> bool {
        self.state().absence.is_some()
    }

    /// Waits until it is away. For one waiter.
    pub async fn away(&self) {
        loop {
            let lost = self.lost.notified();
            if self.is_away() {
                return;
            }
            lost.await;
        }
    }

    /// From now on everything goes to this one, which is thought to be there if it is another one.
    pub fn moves_to(&self, peer: &str) {
        let mut state = self.state();
        if state.peer != peer {
            *state = State { peer: peer.to_owned(), absence: None };
        }
    }

    /// Where the lines go, for callers on threads without a subscriber.
    pub fn log_to(&self, dispatch: &Dispatch) {
        let _ = self.log.set(dispatch.downgrade());
    }

    /// A signal was not taken by `peer`, for a reason that may pass. One that everything has left is not
    /// missed.
    pub fn is_lost(&self, signal: Signal, peer: &str, why: &str) {
        let mut state = self.state();
        if state.peer != peer {
            return;
        }
        match &mut state.absence {
            Some(absence) => {
                if !absence.of.contains(&signal) {
                    absence.of.push(signal);
                }
                let is_news = absence.reasons.is_news(why);
                drop(state);
                if is_news {
                    self.say(|| {
                        tracing::warn!("OTLP: {peer} still takes nothing, now for another reason: {why}")
                    });
                }
            }
            None => {
                let mut reasons = Complaints::default();
                reasons.is_news(why);
                state.absence = Some(Absence { since: Instant::now(), reasons, of: vec![signal] });
                drop(state);
                self.say(|| tracing::warn!("OTLP: {peer} takes nothing for now, it is tried again: {why}"));
                self.lost.notify_one();
            }
        }
    }

    /// A signal was answered by `peer`.
    pub fn is_there(&self, signal: Signal, peer: &str) {
        let mut state = self.state();
        if state.peer != peer {
            return;
        }
        let ended = state.absence.take_if(|absence| absence.of.contains(&signal));
        drop(state);
        if let Some(Absence { since, .. }) = ended {
            let seconds = since.elapsed().as_secs();
            self.say(|| tracing::info!("OTLP: {peer} is back after {seconds} s"));
        }
    }

    /// Logs on behalf of a thread that has no subscriber.
    pub fn say(&self, line: impl FnOnce()) {
        match self.log.get().and_then(WeakDispatch::upgrade) {
            Some(dispatch) => tracing::dispatcher::with_default(&dispatch, line),
            None => line(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_complaint_is_told_once_and_again_after_all_was_well() {
        let mut complaints = Complaints::default();
        assert!(complaints.is_news("a"));
        tokio::time::advance(COMPLAINTS * 10).await;
        assert!(!complaints.is_news("a"));
        complaints.is_over();
        assert!(complaints.is_news("a"));
        assert!(!complaints.is_news("b"), "not more than one a minute");
        tokio::time::advance(COMPLAINTS * 2).await;
        assert!(complaints.is_news("b"));
    }

    #[test]
    fn what_gets_no_sense_out_of_the_peer_says_what_that_may_be() {
        let text = with_hint("Internal: transport error: frame with invalid size".to_owned());
        assert!(text.contains("its usual port is 4317"), "{text}");
        assert_eq!(
            with_hint("Unavailable: connection refused".to_owned()),
            "Unavailable: connection refused"
        );
    }

    #[test]
    fn an_address_is_shown_without_the_user() {
        assert_eq!(without_user("https://me:secret@otel.example.org:4317"), "https://otel.example.org:4317");
        assert_eq!(without_user("http://localhost:4317"), "http://localhost:4317");
    }
}
