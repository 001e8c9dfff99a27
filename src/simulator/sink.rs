//! An OpenTelemetry Collector, as far as an exporter can tell: OTLP over gRPC, for metrics, traces and
//! logs. It answers as one made with grpc-go, fails on demand, and remembers what arrived.
//!
//! It has a runtime of its own, so that it ends as a killed process does, and goes on while a test's clock
//! is paused.

mod seen;

pub use seen::{Log, Message, Point, Seen, Series, Signal, Span};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// What grpc-go takes unless told otherwise, counted after decompression.
pub const LARGEST_MESSAGE: usize = 4 << 20;

/// How a sink is set up.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Speak TLS.
    pub tls: Option<SinkTls>,
    /// Whether zstd is known; gzip always is.
    pub zstd: bool,
    /// Remember points, spans and records; otherwise messages are only counted.
    pub record: bool,
    /// How it fails from the start.
    pub fault: Option<Fault>,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 0).into(), tls: None, zstd: true, record: true, fault: None }
    }
}

/// The sink's certificate, in PEM.
#[derive(Debug, Clone)]
pub struct SinkTls {
    /// Its certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// Clients have to show a certificate of this authority.
    pub client_ca: Option<String>,
}

/// A way to fail, for all signals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers UNAVAILABLE.
    Unavailable,
    /// Does not answer.
    Hang,
    /// Takes a request of metrics but for so many of its points.
    Partial {
        /// How many.
        rejected: i64,
        /// What it says.
        message: String,
    },
    /// Answers with this code.
    Code(i32),
    /// Answers RESOURCE_EXHAUSTED and when to come back.
    Busy(Duration),
    /// Does not take messages larger than this.
    Small(usize),
}

/// Nothing of the kind arrived in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not seen within {limit:?}; what arrived: {arrived}")]
pub struct NotSeen {
    limit: Duration,
    arrived: String,
}

/// A running sink.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    tls: bool,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    fault: Mutex<Option<Fault>>,
    record: bool,
    changed: watch::Sender<()>,
}

impl Sink {
    /// Listens from the moment when this returns.
    pub fn start(options: SinkOptions) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp-sink")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            fault: Mutex::new(options.fault.clone()),
            record: options.record,
            changed: watch::Sender::new(()),
        });
        let guard = runtime.enter();
        let incoming = TcpIncoming::from(TcpListener::from_std(listener)?);
        runtime.spawn(serve(incoming, server(&options)?, options.zstd, Arc::clone(&shared)));
        drop(guard);
        Ok(Self { address, tls: options.tls.is_some(), shared, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, for `otlp.endpoint`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// Fails from now on, or no more.
    pub fn set_fault(&self, fault: Option<Fault>) {
        *lock(&self.shared.fault) = fault;
    }

    /// Looks at what has arrived so far.
    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&lock(&self.shared.seen))
    }

    /// Waits until `find` finds something in what has arrived.
    pub async fn wait_for<T>(
        &self,
        mut find: impl FnMut(&Seen) -> Option<T>,
        limit: Duration,
    ) -> Result<T, NotSeen> {
        let mut changed = self.shared.changed.subscribe();
        let search = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = self.seen(&mut find) {
                    return found;
                }
                // The other end lives as long as `self`.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(limit, search)
            .await
            .map_err(|_| NotSeen { limit, arrived: self.seen(|seen| seen.to_string()) })
    }

    /// Waits until `holds` is true of what has arrived.
    pub async fn wait_until(
        &self,
        mut holds: impl FnMut(&Seen) -> bool,
        limit: Duration,
    ) -> Result<(), NotSeen> {
        self.wait_for(|seen| holds(seen).then_some(()), limit).await
    }

    /// Wakes whenever something has arrived since, or been refused: for printing.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Ends, as a killed process does. Its port is free when this returns.
    pub async fn stop(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let stop = move || runtime.shutdown_timeout(Duration::from_secs(2));
            let _ = tokio::task::spawn_blocking(stop).await;
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn server(options: &SinkOptions) -> io::Result<Server> {
    let Some(tls) = &options.tls else { return Ok(Server::builder()) };
    let identity = Identity::from_pem(&tls.certificate, &tls.key);
    let mut config = ServerTlsConfig::new().identity(identity);
    if let Some(ca) = &tls.client_ca {
        config = config.client_ca_root(Certificate::from_pem(ca));
    }
    Server::builder().tls_config(config).map_err(io::Error::other)
}

async fn serve(incoming: TcpIncoming, mut server: Server, zstd: bool, shared: Arc<Shared>) {
    // Larger than the limit that is shown to the client, whose words are those of grpc-go.
    const TAKEN: usize = 256 << 20;
    macro_rules! service {
        ($kind:ident) => {{
            let service = $kind::from_arc(Arc::clone(&shared));
            let service = service.max_decoding_message_size(TAKEN).accept_compressed(Gzip);
            if zstd { service.accept_compressed(Zstd) } else { service }
        }};
    }
    // Ends with its runtime; there is nobody to tell.
    let _ = server
        .add_service(service!(MetricsServiceServer))
        .add_service(service!(TraceServiceServer))
        .add_service(service!(LogsServiceServer))
        .serve_with_incoming(incoming)
        .await;
}

impl Shared {
    /// Whether a message is taken, by the fault of the moment and by its size.
    async fn admit(
        &self,
        size: usize,
        compressed: bool,
    ) -> Result<Option<ExportMetricsPartialSuccess>, Status> {
        let fault = lock(&self.fault).clone();
        let limit = match fault {
            Some(Fault::Small(limit)) => limit,
            _ => LARGEST_MESSAGE,
        };
        if size > limit {
            let after = if compressed { " after decompression" } else { "" };
            let text = format!("grpc: received message{after} larger than max ({size} vs. {limit})");
            return Err(self.refuse(Status::resource_exhausted(text)));
        }
        match fault {
            None | Some(Fault::Small(_)) => Ok(None),
            Some(Fault::Partial { rejected, message }) => Ok(Some(ExportMetricsPartialSuccess {
                rejected_data_points: rejected,
                error_message: message,
            })),
            Some(Fault::Unavailable) => Err(self.refuse(Status::unavailable("the pipeline is full"))),
            Some(Fault::Code(code)) => Err(self.refuse(Status::new(Code::from_i32(code), "on demand"))),
            Some(Fault::Busy(delay)) => {
                let details = ErrorDetails::with_retry_info(Some(delay));
                Err(self.refuse(Status::with_error_details(Code::ResourceExhausted, "busy", details)))
            }
            Some(Fault::Hang) => {
                let _ = self.refuse(Status::ok(""));
                std::future::pending().await
            }
        }
    }

    fn refuse(&self, status: Status) -> Status {
        lock(&self.seen).refused += 1;
        self.changed.send_replace(());
        status
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut lock(&self.seen));
        self.changed.send_replace(());
    }
}

fn compression<T>(request: &Request<T>) -> Option<String> {
    let encoding = request.metadata().get("grpc-encoding")?.to_str().ok()?;
    (encoding != "identity").then(|| encoding.to_owned())
}

fn message<T>(signal: Signal, request: &Request<T>, bytes: usize, items: usize) -> Message {
    let headers = request.metadata().clone().into_headers();
    let headers = headers.iter().filter_map(|(k, v)| Some((k.to_string(), v.to_str().ok()?.to_owned())));
    Message { signal, bytes, items, compression: compression(request), headers: headers.collect() }
}

#[tonic::async_trait]
impl MetricsService for Shared {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let size = request.get_ref().encoded_len();
        let partial_success = self.admit(size, compression(&request).is_some()).await?;
        let points = seen::count_points(request.get_ref());
        let message = message(Signal::Metrics, &request, size, points);
        self.note(|seen| seen.add_metrics(message, self.record.then(|| request.into_inner())));
        Ok(Response::new(ExportMetricsServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl TraceService for Shared {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let size = request.get_ref().encoded_len();
        self.admit(size, compression(&request).is_some()).await?;
        let scopes = request.get_ref().resource_spans.iter().flat_map(|r| &r.scope_spans);
        let spans = scopes.map(|scope| scope.spans.len()).sum();
        let message = message(Signal::Traces, &request, size, spans);
        self.note(|seen| seen.add_spans(message, self.record.then(|| request.into_inner())));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Shared {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let size = request.get_ref().encoded_len();
        self.admit(size, compression(&request).is_some()).await?;
        let scopes = request.get_ref().resource_logs.iter().flat_map(|r| &r.scope_logs);
        let records = scopes.map(|scope| scope.log_records.len()).sum();
        let message = message(Signal::Logs, &request, size, records);
        self.note(|seen| seen.add_logs(message, self.record.then(|| request.into_inner())));
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}
