//! One SOAP call over HTTPS: limits, classification of what can go wrong, span and counters. Knows nothing
//! of sessions but that cookies are kept.

mod cookies;
mod proxy;
mod trouble;

use super::resolver::AllowedOnly;
use super::soap::{Method, NoResult, SOAP_ACTION};
use super::tls::{Certificate, Tls, Trust};
use crate::config::{ProxyUrl, VcenterConfig};
use crate::inventory::{Allow, Endpoint, Vcenter};
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason, chain};
use crate::stats::Stats;
use crate::steps::Steps;
use bytes::Bytes;
use cookies::Cookies;
use proxy::Tunnel;
use reqwest::cookie::CookieStore as _;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Span;
use trouble::{causes, check_head, classify, is_about_the_certificate};
use zeroize::Zeroizing;

/// Most bytes of one answer, unpacked. 10,000 hosts in one page are some 20 MB.
pub const MAX_BODY: usize = 64 * 1024 * 1024;

/// Limit of the call that ends a session: it must not hold up a shutdown.
pub const LOGOUT_TIMEOUT: Duration = Duration::from_secs(3);

/// Limit of the calls that take apart what a session has at the server, just before its end.
const DESTROY_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a server may keep an answer to `WaitForUpdatesEx` back until there is news.
pub const WAIT: Duration = Duration::from_secs(60);
/// How much later than that the answer may come.
const WAIT_MARGIN: Duration = Duration::from_secs(30);

/// Calls by method and outcome.
pub static REQUESTS: MetricDef = MetricDef {
    name: "esxi.agent.soap.requests",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "SOAP calls to vCenters; outcome is ok, fault (the server answered with one), or the reason of the failure.",
    attributes: &["method", "outcome"],
};

/// Bytes by direction.
pub static BYTES: MetricDef = MetricDef {
    name: "esxi.agent.soap.bytes",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    cadence: Cadence::Periodic,
    help: "Bytes of SOAP bodies, before compression; direction is sent or received.",
    attributes: &["direction"],
};

/// What is counted here.
pub static METRICS: &[&MetricDef] = &[&REQUESTS, &BYTES];

/// Reads an answer while it comes.
pub trait ReadAnswer {
    /// What it is about.
    type Output;

    /// More of the body has come: XML, by its content type.
    fn take(&mut self, more: &[u8]);

    /// The body has come to its end.
    ///
    /// # Errors
    /// When it is a fault, or can't be understood.
    fn finish(self) -> Result<Self::Output, NoResult>;
}

/// An answer has come whole.
#[derive(Debug)]
pub struct Answer {
    /// Its span, still open, to be told how reading the body went.
    pub span: Span,
}

/// A call that brought no answer.
#[derive(Debug)]
pub struct CallError {
    /// Why.
    pub failure: Failure,
    /// How far it came.
    pub stage: Stage,
}

/// How far a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// There was no connection, so nothing was sent.
    Connecting,
    /// The request was sent, whole or in part.
    Asking,
    /// The response began.
    Answering,
}

/// The way to one vCenter. Clones share connections and cookies.
#[derive(Debug, Clone)]
pub struct Transport {
    http: reqwest::Client,
    url: url::Url,
    cookies: Arc<Cookies>,
    line: Arc<Line>,
    call_timeout: Duration,
    max_body: usize,
    stats: Arc<Stats>,
    steps: Steps,
}

/// What a connection is made of.
#[derive(Debug)]
struct Line {
    vcenter: Arc<str>,
    tls: Tls,
    /// `None`: directly.
    tunnel: Option<Tunnel>,
    /// Where names lead to; `None`: wherever the system says.
    resolver: Option<Arc<AllowedOnly>>,
    connect_timeout: Duration,
}

impl Line {
    fn client(&self, cookies: Arc<Cookies>) -> Result<reqwest::Client, Failure> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("esxi-otel-agent/", env!("CARGO_PKG_VERSION")))
            .cookie_provider(cookies)
            .http1_only()
            .gzip(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .https_only(true)
            .connect_timeout(self.connect_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
            .tls_backend_preconfigured(self.tls.config.clone());
        if let Some(resolver) = &self.resolver {
            builder = builder.dns_resolver(Arc::clone(resolver));
        }
        if let Some(tunnel) = &self.tunnel {
            builder = builder.proxy(tunnel.proxy());
        }
        builder.build().map_err(|error| {
            Failure::new(
                FailureReason::Tls,
                format!("setting up TLS for vCenter {}: {}", self.vcenter, chain(&error)),
            )
        })
    }
}

impl Transport {
    /// Fails when `ca_file` or the proxy's password can't be used or the address is none.
    /// Or when the address is not of `allow`; where it is a name and only its address can tell, the call
    /// fails by that.
    pub fn new(
        config: &VcenterConfig,
        vcenter: &Vcenter,
        allow: &Arc<Allow>,
        stats: Arc<Stats>,
    ) -> Result<Self, Failure> {
        let host = &*vcenter.endpoint.host;
        if !allow.may_hold(host) {
            let line = format!("{}: {host} is not in inventory.allow", vcenter.id());
            return Err(Failure::new(FailureReason::AddressNotAllowed, line));
        }
        let url = url_of(&vcenter.endpoint)?;
        // What no address is by our reading may be one by that of URLs (`3405803785`, `203.0.113.9.`), which is
        // connected to without a look-up.
        let address = match url.host() {
            Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(url::Host::Domain(_)) | None => None,
        };
        if let Some(address) = address.filter(|address| !allow.holds(*address)) {
            let line = format!("{}: {host} is {address}, which is not in inventory.allow", vcenter.id());
            return Err(Failure::new(FailureReason::AddressNotAllowed, line));
        }
        let cookies = Arc::new(Cookies::default());
        let line = Line {
            vcenter: Arc::clone(&vcenter.address),
            tls: Tls::new(config, &vcenter.address, host)?,
            tunnel: Tunnel::to(vcenter, config, allow)?,
            resolver: (!allow.names(host)).then(|| Arc::new(AllowedOnly(Arc::clone(allow)))),
            connect_timeout: config.connect_timeout,
        };
        Ok(Self {
            http: line.client(Arc::clone(&cookies))?,
            url,
            cookies,
            line: Arc::new(line),
            call_timeout: config.call_timeout,
            max_body: MAX_BODY,
            stats,
            steps: Steps::default(),
        })
    }

    /// What makes a request part of the session that there is now.
    pub(super) fn session_cookies(&self) -> Option<HeaderValue> {
        self.cookies.cookies(&self.url)
    }

    /// A second way, on a connection of its own, in the session of these cookies. It never takes others: an
    /// answer that crosses a login must not put an older session in the place of the new one.
    ///
    /// # Errors
    /// When the connection's parts can't be put together.
    pub(super) fn beside(&self, cookies: Option<HeaderValue>) -> Result<Self, Failure> {
        let cookies = Arc::new(Cookies::Fixed(cookies));
        Ok(Self { http: self.line.client(Arc::clone(&cookies))?, cookies, ..self.clone() })
    }

    /// The certificate that the server presented last, whether it was believed or not.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.line.tls.presented()
    }

    /// By which rule certificates are believed.
    pub fn trust(&self) -> Trust {
        self.line.tls.trust
    }

    /// The proxy that stands between.
    pub fn proxy(&self) -> Option<&ProxyUrl> {
        self.line.tunnel.as_ref().map(|tunnel| &tunnel.url)
    }

    /// Address of the vCenter, as the inventory has it.
    pub fn vcenter(&self) -> &str {
        &self.line.vcenter
    }

    /// Another limit of one answer's bytes.
    pub fn set_max_body(&mut self, max_body: usize) {
        self.max_body = max_body;
    }

    /// Takes down what is learned of the connection.
    pub fn set_steps(&mut self, steps: Steps) {
        self.steps = steps;
    }

    /// Forgets every cookie, so that the next call starts afresh.
    pub fn drop_cookies(&self) {
        self.cookies.clear();
    }

    /// Makes a call, which ends within the call time-out and before `deadline`. `page` is the number of the
    /// page, from 1, for the span. `take` is given the body of the answer as it comes; the caller reports how
    /// reading it went by [`Transport::conclude`].
    pub async fn call(
        &self,
        method: Method,
        request: Zeroizing<String>,
        page: Option<u32>,
        deadline: Option<Instant>,
        take: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Answer, CallError> {
        let span = self.span(method, page);
        self.count_bytes("sent", request.len());
        // The request is wiped when the connection has done with it.
        let body = Bytes::from_owner(ZeroizedBody(request));
        let exchange = tracing::Instrument::instrument(self.exchange(&span, body, take), span.clone());
        let limit = match method {
            Method::Logout => self.call_timeout.min(LOGOUT_TIMEOUT),
            Method::DestroyPropertyCollector | Method::DestroyCollector => DESTROY_TIMEOUT,
            Method::WaitForUpdatesEx => WAIT + WAIT_MARGIN,
            _ => self.call_timeout,
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = left.map_or(limit, |left| limit.min(left));
        let result = tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
            let waited = format!("no whole answer within {:.1} s", limit.as_secs_f64());
            let failure = Failure::new(FailureReason::CommandTimeout, waited);
            Err(CallError { failure, stage: Stage::Answering })
        });
        match result {
            Ok(()) => Ok(Answer { span }),
            Err(CallError { failure, stage }) => {
                let subject = format_args!("{} of vCenter {}", method.name(), self.line.vcenter);
                let failure = failure.during(subject);
                crate::span::fail(&span, &failure);
                self.count(method, failure.reason.word());
                Err(CallError { failure, stage })
            }
        }
    }

    /// Ends the span of an answer and counts it: it was good (`None`), a fault, or made no sense.
    pub fn conclude(&self, method: Method, answer: Answer, problem: Option<(&'static str, &Failure)>) {
        if let Some((_, failure)) = problem {
            crate::span::fail(&answer.span, failure);
        }
        self.count(method, problem.map_or("ok", |(outcome, _)| outcome));
    }

    /// The span of a call. A wait has none: how long it takes says nothing, and it would be the slowest of all.
    fn span(&self, method: Method, page: Option<u32>) -> Span {
        if method == Method::WaitForUpdatesEx {
            return Span::none();
        }
        tracing::info_span!(
            "soap",
            otel.name = method.name(),
            otel.kind = "client",
            rpc.system.name = "soap",
            rpc.method = format!("VimPort/{}", method.name()),
            server.address = self.url.host_str().unwrap_or_default(),
            server.port = self.url.port_or_known_default().unwrap_or_default(),
            http.response.status_code = tracing::field::Empty,
            http.response.body.size = tracing::field::Empty,
            vim.page = page,
            vim.fault = tracing::field::Empty,
        )
    }

    async fn exchange(
        &self,
        span: &Span,
        body: Bytes,
        take: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<(), CallError> {
        let request = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, "text/xml; charset=utf-8")
            .header("SOAPAction", SOAP_ACTION)
            .body(body);
        let mut response = request.send().await.map_err(|error| {
            let stage = if error.is_connect() { Stage::Connecting } else { Stage::Asking };
            let failure = self.classify(&error.without_url());
            let failure = match self.line.tunnel.as_ref().filter(|_| stage == Stage::Connecting) {
                Some(tunnel) => tunnel.explain(failure),
                None => failure,
            };
            CallError { failure, stage }
        })?;
        if let Some(version) = self.line.tls.version() {
            self.steps.fact("tls", version);
        }
        let status = response.status();
        span.record("http.response.status_code", status.as_u16());
        let lost = |failure| CallError { failure, stage: Stage::Answering };
        check_head(status, response.headers().get(CONTENT_TYPE)).map_err(lost)?;
        let mut size = 0;
        loop {
            let more = response.chunk().await.map_err(|error| {
                let cause = chain(&error.without_url());
                lost(Failure::new(FailureReason::ConnectionLost, format!("the answer broke off: {cause}")))
            })?;
            let Some(more) = more else { break };
            size += more.len();
            if size > self.max_body {
                let line = format!("the answer is larger than {} bytes", self.max_body);
                return Err(lost(Failure::new(FailureReason::AnswerTooLarge, line)));
            }
            take(&more);
        }
        span.record("http.response.body.size", size);
        self.count_bytes("received", size);
        Ok(())
    }

    /// The reason for a request that got no response.
    fn classify(&self, error: &reqwest::Error) -> Failure {
        let failure = classify(error);
        let certificate = self.certificate().filter(|_| failure.reason == FailureReason::Tls);
        match certificate.filter(|_| causes(error).any(is_about_the_certificate)) {
            Some(certificate) if self.trust() != Trust::Pinned => {
                let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "nobody".to_owned());
                let (subject, issuer) = (name(&certificate.subject), name(&certificate.issuer));
                let line = format!(
                    "{failure} (it is that of {subject}, issued by {issuer}, SHA-256 {})",
                    certificate.thumbprint
                );
                Failure::new(FailureReason::Tls, line)
            }
            _ => failure,
        }
    }

    fn count(&self, method: Method, outcome: &'static str) {
        self.stats.add(&REQUESTS, Attributes::new([("method", method.name()), ("outcome", outcome)]), 1.0);
    }

    fn count_bytes(&self, direction: &'static str, bytes: usize) {
        self.stats.add(&BYTES, Attributes::new([("direction", direction)]), bytes as f64);
    }
}

/// A request as the owner of its bytes, so that they are wiped and not only freed.
struct ZeroizedBody(Zeroizing<String>);

impl AsRef<[u8]> for ZeroizedBody {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn url_of(endpoint: &Endpoint) -> Result<url::Url, Failure> {
    let host = match endpoint.host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
        _ => endpoint.host.to_string(),
    };
    let port = endpoint.port.unwrap_or(443);
    url::Url::parse(&format!("https://{host}:{port}/sdk")).map_err(|error| {
        Failure::new(FailureReason::Dns, format!("`{}` is no address: {error}", endpoint.host))
    })
}
