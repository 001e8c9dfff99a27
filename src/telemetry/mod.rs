//! Out of the readings, into OTLP and Prometheus: metrics, traces and logs. Knows neither SSH nor SOAP.
//!
//! Everything belongs to one agent: the library sets no global subscriber, provider or meter, so that
//! several agents, and simulated peers beside them, run in one process.

pub mod catalog;
pub mod events;
pub mod export;
pub mod metrics;
pub mod process;
pub mod prometheus;
pub mod sampling;

mod failover;
mod filter;
mod logs;
mod outbox;
mod signals;
#[cfg(test)]
mod taken;
mod traces;

pub use filter::Verbosity;
pub use logs::Console;

use crate::config::{Config, OtlpConfig, TracesConfig};
use crate::readings::Readings;
use crate::span::PastSpans;
use crate::stats::Stats;
use export::encode::Limits;
use export::peer::{Peer, PeerError, Presence};
use export::queue::{Caps, Queue};
use export::sender::Sender;
use export::spool::{Keeper, SpoolOptions};
use export::transport::{Destination, GrpcTransport};
use export::{Exporter, Options, Parts, SPANS};
use failover::{Collectors, Connect, Failover};
use opentelemetry::KeyValue;
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData};
use outbox::Outbox;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::SubscriberExt;

/// Longest time that traces and logs get to send what is left. Metrics, of which a large fleet has some
/// hundred thousand points, may take all the time that there is.
const FLUSH: Duration = Duration::from_secs(3);

/// Longest time that the last events get to be told.
const TELL: Duration = Duration::from_millis(500);

/// Why telemetry can't start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The Collector's address, TLS or headers.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The exporter of a signal.
    #[error("setting up the export of {0}: {1}")]
    Exporter(&'static str, #[source] ExporterBuildError),
}

/// The telemetry of one agent.
#[derive(Debug)]
pub struct Telemetry {
    /// The agent's subscriber, to run all its tasks with.
    pub dispatch: Dispatch,
    past_spans: PastSpans,
    exporter: Option<Exporter>,
    ways: Option<Ways>,
    /// Tells what happens, until it is told to end.
    events: (JoinHandle<()>, CancellationToken),
    /// What else may change while it runs.
    signals: Option<Signals>,
}

/// Traces and logs.
#[derive(Debug)]
struct Signals {
    keep: watch::Sender<TracesConfig>,
    spans: Outbox<SpanData>,
    closing: watch::Sender<bool>,
    senders: JoinSet<()>,
    /// What they are made with, which ends with them.
    _providers: (Option<SdkTracerProvider>, Option<SdkLoggerProvider>),
    _failover: AbortOnDropHandle<()>,
}

impl Telemetry {
    /// Starts what `config` asks for, on the current runtime; without `otlp` only the console's log.
    /// `cancel` ends the export at once, without a word to the Collector: for an orderly end call
    /// [`Telemetry::shutdown`].
    pub fn start(
        config: &Config,
        readings: Arc<Readings>,
        stats: Arc<Stats>,
        console: Option<Console>,
        cancel: CancellationToken,
    ) -> Result<Self, TelemetryError> {
        let Some(otlp) = &config.otlp else {
            let dispatch = Dispatch::new(tracing_subscriber::registry().with(console.map(Console::layer)));
            let past_spans = PastSpans::default();
            let events = tell_events(readings, stats, None, &dispatch, &cancel);
            return Ok(Self { dispatch, past_spans, exporter: None, ways: None, events, signals: None });
        };
        let first = Destination { peer: Peer::new(otlp)?, compression: otlp.compression };
        let presence = Arc::new(Presence::new(first.peer.name()));
        let resource = resource(otlp);
        let (destination, follow) = watch::channel(first);
        let failover = Failover::new(Connect, destination, Arc::clone(&presence), Arc::clone(&stats));
        let (collectors, listed) = watch::channel(collectors(otlp, Peer::all(otlp)?));
        let (options, paced) = watch::channel(options(otlp));
        let (keep, kept) = watch::channel(otlp.traces.clone().unwrap_or(TracesConfig::NOTHING));
        let spans = Outbox::new(traces::cap(0), &SPANS, Arc::clone(&stats));
        let span_postman =
            traces::postman(spans.clone(), follow.clone(), resource.clone(), Arc::clone(&presence))?;
        let traces = otlp.traces.is_some().then(|| {
            let (presence, stats) = (Arc::clone(&presence), Arc::clone(&stats));
            traces::provider(spans.clone(), kept, resource.clone(), presence, stats)
        });
        let records = logs::outbox(Arc::clone(&stats));
        let record_postman =
            logs::postman(records.clone(), follow.clone(), resource.clone(), Arc::clone(&presence))?;
        let logs = (otlp.logs || otlp.events).then(|| logs::provider(records, resource.clone()));
        let tracer = traces.as_ref().map(traces::tracer);
        let subscriber = tracing_subscriber::registry()
            .with(tracer.clone().map(traces::layer))
            .with(logs.as_ref().map(|logs| logs::layer(logs, otlp.logs, otlp.events)))
            .with(console.map(Console::layer));
        let dispatch = Dispatch::new(subscriber);
        presence.log_to(&dispatch);
        let (closing, closes) = watch::channel(false);
        let mut senders = JoinSet::new();
        senders.spawn(span_postman.run(closes.clone()).with_subscriber(dispatch.clone()));
        senders.spawn(record_postman.run(closes).with_subscriber(dispatch.clone()));
        let failover = tokio::spawn(failover.run(listed).with_subscriber(dispatch.clone()));
        let failover = AbortOnDropHandle::new(failover);
        let logger = logs.as_ref().filter(|_| otlp.events).map(logs::logger);
        let events = tell_events(Arc::clone(&readings), Arc::clone(&stats), logger, &dispatch, &cancel);
        let exporter = otlp.metrics.then(|| {
            tracing::dispatcher::with_default(&dispatch, || {
                exporter(otlp, (follow, paced), presence, resource, readings, stats, cancel)
            })
        });
        let signals =
            Signals { keep, spans, closing, senders, _providers: (traces, logs), _failover: failover };
        let ways = Some(Ways { collectors, options });
        let (past_spans, signals) = (PastSpans::new(tracer), Some(signals));
        Ok(Self { dispatch, past_spans, exporter, ways, events, signals })
    }

    /// Makes spans whose times are known only afterwards.
    pub fn past_spans(&self) -> PastSpans {
        self.past_spans.clone()
    }

    /// The Collectors that `otlp` names, for [`Telemetry::reconfigure`].
    ///
    /// # Errors
    /// When their addresses, headers or files can't be used.
    pub fn peers(otlp: &OtlpConfig) -> Result<Vec<Peer>, TelemetryError> {
        Ok(Peer::all(otlp)?)
    }

    /// Everything goes to another Collector, at another pace, from the next request on: what waits already, too.
    /// Endpoints, headers, TLS, compression, time-out, interval, the size of messages and `traces.keep` are taken
    /// over; whatever else there is in `otlp` needs a new start.
    pub fn reconfigure(&self, otlp: &OtlpConfig, peers: Vec<Peer>) {
        if let Some(ways) = &self.ways {
            ways.collectors.send_replace(collectors(otlp, peers));
            ways.options.send_replace(options(otlp));
        }
        if let Some((signals, keep)) = self.signals.as_ref().zip(otlp.traces.as_ref()) {
            signals.keep.send_replace(keep.clone());
        }
    }

    /// Makes room for the spans of a round over so many hosts.
    pub fn make_room(&self, hosts: usize) {
        if let Some(signals) = &self.signals {
            signals.spans.set_cap(traces::cap(hosts));
        }
    }

    /// The exporter of metrics, if there is one.
    pub fn exporter(&self) -> Option<&Exporter> {
        self.exporter.as_ref()
    }

    /// Sends what is left, the signals side by side, and ends. Takes at most `limit`: a Collector that hangs
    /// must not keep the agent from ending.
    pub async fn shutdown(self, limit: Duration) {
        // What happened last is told before the records are sent.
        let (telling, stop) = self.events;
        stop.cancel();
        let _ = timeout(TELL, telling).await;
        let metrics = async {
            if let Some(exporter) = &self.exporter {
                // It may have been cancelled before; then there is nothing to send.
                let _ = timeout(limit, exporter.finish(Instant::now() + limit)).await;
            }
        };
        let mut signals = self.signals;
        let signals = async {
            // Borrowed: who sees to where everything goes is needed for as long as anything is sent.
            let Some(signals) = &mut signals else { return };
            signals.closing.send_replace(true);
            // What could not be sent by then is lost, and there is nobody left to tell.
            let _ = timeout(limit.min(FLUSH), async { while signals.senders.join_next().await.is_some() {} })
                .await;
        };
        tokio::join!(metrics, signals);
    }
}

/// Starts the task that tells events.
fn tell_events(
    readings: Arc<Readings>,
    stats: Arc<Stats>,
    logger: Option<SdkLogger>,
    dispatch: &Dispatch,
    cancel: &CancellationToken,
) -> (JoinHandle<()>, CancellationToken) {
    let stop = cancel.child_token();
    let telling = events::teller(readings, stats, logger).run(stop.clone());
    (tokio::spawn(telling.with_subscriber(dispatch.clone())), stop)
}

/// What of the export can change while it runs.
#[derive(Debug)]
struct Ways {
    collectors: watch::Sender<Collectors>,
    options: watch::Sender<Options>,
}

/// With everything that differs between Collectors.
fn collectors(otlp: &OtlpConfig, peers: Vec<Peer>) -> Collectors {
    peers.into_iter().map(|peer| Destination { peer, compression: otlp.compression }).collect()
}

fn exporter(
    config: &OtlpConfig,
    ways: (watch::Receiver<Destination>, watch::Receiver<Options>),
    presence: Arc<Presence>,
    resource: Resource,
    readings: Arc<Readings>,
    stats: Arc<Stats>,
    cancel: CancellationToken,
) -> Exporter {
    let (destinations, options) = ways;
    let spool = config.spool.clone().map(SpoolOptions::new);
    let max_age = spool.as_ref().map_or(config.queue_max_age, |spool| spool.config.max_age);
    let queue = Arc::new(Queue::new(Caps { bytes: config.queue_max_bytes, age: max_age }));
    let keeper = spool.and_then(|spool| {
        let started = Keeper::start(&queue, spool, Arc::clone(&stats));
        started.inspect_err(|error| tracing::warn!("OTLP: no thread for the spool: {error}")).ok()
    });
    let transport = GrpcTransport::new(destinations);
    let sender = Sender::new(transport, Arc::clone(&queue), presence, Arc::clone(&stats), config.compression);
    let parts = Parts { resource, readings, stats, queue, keeper };
    Exporter::spawn(options, parts, sender, cancel)
}

fn options(config: &OtlpConfig) -> Options {
    let limits = Limits { points: config.max_points, bytes: Limits::BYTES };
    Options { interval: config.interval, limits }
}

fn resource(config: &OtlpConfig) -> Resource {
    let pairs = config.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    // Not `builder()`: that reads the environment again, which the configuration has done.
    Resource::builder_empty().with_attributes(pairs).build()
}
