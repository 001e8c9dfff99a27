//! Prometheus `http_sd` as a source: the atlas's rows over HTTP.
//!
//! By Prometheus's rules: `GET` with `Accept: application/json` and `X-Prometheus-Refresh-Interval-Seconds`,
//! answered by status 200 and a JSON array. Beyond them: an `ETag` is sent back, and 304 means that nothing
//! has changed.

use super::InventoryConfig;
use super::atlas::{self, AddressTemplate, Atlas};
use super::look::{CONTENT_LIMIT, Found, Look};
use super::origin::Origin;
use crate::accounts::secret::read_secret_file;
use crate::outcome::chain;
use reqwest::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use reqwest::{StatusCode, redirect, retry};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Limit of name look-up, TCP connect and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the rows are, and how often they are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSdConfig {
    /// Where.
    pub url: SdUrl,
    /// Pause between two fetches.
    pub interval: Duration,
    /// PEM file with the roots to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// As whom.
    pub auth: SdAuth,
}

/// How the agent proves itself. The files are read at each fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SdAuth {
    /// Not at all.
    None,
    /// User and password.
    Basic {
        /// User.
        username: String,
        /// File with the password.
        password_file: PathBuf,
    },
    /// File with a token.
    Bearer(PathBuf),
}

/// The URL of an `http_sd` server. Shown without its query, which may hold a token.
#[derive(Clone, PartialEq, Eq)]
pub struct SdUrl(url::Url);

impl FromStr for SdUrl {
    type Err = String;

    /// The error is one line, and repeats nothing that may be a secret.
    fn from_str(text: &str) -> Result<Self, String> {
        let url: url::Url = match text.parse() {
            Ok(url) => url,
            Err(e) if text.contains(['@', '?']) => return Err(format!("is no URL: {e}")),
            Err(e) => return Err(format!("{text:?} is no URL: {e}; write https://sd.example.org/targets")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user name or password; put them into basic_auth".to_owned());
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("has the scheme {}; write https://… or http://…", url.scheme()));
        }
        Ok(Self(url))
    }
}

impl SdUrl {
    /// Whether whoever answers is surely the one who was meant: by TLS, or because it is this machine.
    pub fn is_authenticated(&self) -> bool {
        let loopback = match self.0.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
            Some(url::Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
            None => false,
        };
        loopback || self.0.scheme() == "https"
    }

    /// All of it.
    pub(super) fn exposed(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for SdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        write!(f, "{shown}{}", if self.0.query().is_some() { "?…" } else { "" })
    }
}

impl fmt::Debug for SdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The server.
pub(super) struct HttpSd {
    config: HttpSdConfig,
    template: AddressTemplate,
    only: BTreeMap<String, Vec<String>>,
    http: reqwest::Client,
    /// Of the answer that was good last.
    etag: Option<HeaderValue>,
}

impl HttpSd {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// When the certificates can't be used.
    pub(super) fn new(config: HttpSdConfig, inventory: &InventoryConfig) -> Result<Self, String> {
        // An error says that the one TLS implementation of this process is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("esxi-otel-agent/", env!("CARGO_PKG_VERSION")))
            .gzip(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_max_idle_per_host(1);
        if let Some(file) = &config.ca_file {
            builder = builder.tls_certs_only(roots(file)?);
        }
        let http = builder.build().map_err(|error| format!("http_sd: setting up TLS: {}", chain(&error)))?;
        let (template, only) = (inventory.host_address.clone(), inventory.only.clone());
        Ok(Self { config, template, only, http, etag: None })
    }

    /// Reads rows that were fetched earlier.
    pub(super) async fn parse(&self, content: Vec<u8>) -> Result<(Atlas, Vec<u8>), String> {
        let (template, only) = (self.template.clone(), self.only.clone());
        let parsing =
            tokio::task::spawn_blocking(move || (atlas::parse(&content, &template, &only), content));
        let (parsed, content) = parsing.await.map_err(|e| format!("reading was cut short: {e}"))?;
        Ok((parsed.map_err(|place| format!("the answer{place}"))?.with_targets()?, content))
    }

    async fn fetch(&mut self) -> Result<Option<Found>, String> {
        let mut request = self
            .http
            .get(self.config.url.exposed())
            .header(ACCEPT, "application/json")
            .header("X-Prometheus-Refresh-Interval-Seconds", self.config.interval.as_secs());
        if let Some(etag) = &self.etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        request = match &self.config.auth {
            SdAuth::None => request,
            SdAuth::Basic { username, password_file } => {
                request.basic_auth(username, Some(secret(password_file).await?.expose()))
            }
            SdAuth::Bearer(file) => request.bearer_auth(secret(file).await?.expose()),
        };
        let mut response = request.send().await.map_err(|error| chain(&error.without_url()))?;
        if response.status() == StatusCode::NOT_MODIFIED && self.etag.is_some() {
            return Ok(None);
        }
        check_head(response.status(), response.headers())?;
        let etag = response.headers().get(ETAG).cloned();
        let mut body = Vec::new();
        loop {
            let more = response.chunk().await;
            let more = more.map_err(|e| format!("the answer broke off: {}", chain(&e.without_url())))?;
            let Some(more) = more else { break };
            if (body.len() + more.len()) as u64 > CONTENT_LIMIT {
                return Err(format!("the answer is larger than {} MB", CONTENT_LIMIT / 1_000_000));
            }
            body.extend_from_slice(&more);
        }
        if body.trim_ascii_start().starts_with(b"<") {
            return Err("the answer is HTML or XML instead of JSON: a login page?".to_owned());
        }
        let (atlas, content) = self.parse(body).await?;
        // Only what was good: a bad answer must not come back as "nothing has changed".
        self.etag = etag;
        Ok(Some(Found { atlas, content: Some(content) }))
    }
}

impl Look for HttpSd {
    fn origin(&self) -> Origin {
        Origin::HttpSd
    }

    fn pace(&self) -> Duration {
        self.config.interval
    }

    fn patience(&self) -> u32 {
        1
    }

    async fn look(&mut self) -> Result<Option<Found>, String> {
        self.fetch().await.map_err(|why| format!("http_sd {}: {why}", self.config.url))
    }
}

/// Whether the head is that of a list.
fn check_head(status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
    if status.is_redirection() {
        return Err(format!("HTTP {status}: a redirect, which is not followed"));
    }
    if status != StatusCode::OK {
        return Err(format!("HTTP {status}"));
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind: String = kind.split(';').next().unwrap_or_default().trim().chars().take(40).collect();
    if kind.eq_ignore_ascii_case("text/html") {
        return Err(format!("the answer is {kind} instead of application/json: a login page?"));
    }
    Ok(())
}

async fn secret(file: &Path) -> Result<crate::accounts::Secret, String> {
    let file = file.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_secret_file(&file));
    reading.await.map_err(|e| format!("reading a secret was cut short: {e}"))?
}

fn roots(file: &Path) -> Result<Vec<reqwest::Certificate>, String> {
    let failed = |why: String| format!("http_sd: reading ca_file {}: {why}", file.display());
    let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(chain(&error)))?;
    if roots.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_does_not_show_what_may_be_a_secret() {
        let url: SdUrl = "https://sd.example.org/targets?token=hunter2".parse().unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "https://sd.example.org/targets?… https://sd.example.org/targets?…"
        );
        for text in ["https://u:hunter2@sd/", "https://hunter2@sd/", "//u:hunter2@sd", "https://?hunter2"] {
            let problem = text.parse::<SdUrl>().unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        assert!("ftp://sd.example.org/".parse::<SdUrl>().is_err());
    }

    #[test]
    fn plain_http_is_trusted_on_this_machine_alone() {
        for (url, trusted) in [
            ("https://sd.example.org/", true),
            ("http://sd.example.org/", false),
            ("http://localhost:8080/", true),
            ("http://localhost.example.org/", false),
            ("http://127.8.8.8/", true),
            ("http://[::1]/", true),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(url.parse::<SdUrl>().unwrap().is_authenticated(), trusted, "{url}");
        }
    }
}
