//! Log records: to the console, and over OTLP.

use super::TelemetryError;
use super::export::peer::{Peer, Presence, Signal};
use super::filter::{self, Verbosity};
use crate::config::Compression;
use opentelemetry::InstrumentationScope;
use opentelemetry::logs::LoggerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder, BatchLogProcessor, LogBatch, LogExporter, SdkLogRecord, SdkLogger, SdkLoggerProvider,
};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, fmt};

/// Records that may wait, in the batch processor and again behind it.
const WAITING: usize = 16_384;
/// Records of one request, as many as the batch processor takes at once.
const AT_ONCE: usize = 512;

/// Where the lines for people go, and how many.
pub struct Console {
    verbosity: Verbosity,
    colours: bool,
    writer: BoxMakeWriter,
}

impl Console {
    /// Standard error, with colours on a terminal.
    pub fn stderr(verbosity: Verbosity) -> Self {
        Self {
            verbosity,
            colours: std::io::stderr().is_terminal(),
            writer: BoxMakeWriter::new(std::io::stderr),
        }
    }

    /// Somewhere else: above a progress bar, into a test. Without colours.
    pub fn to(verbosity: Verbosity, writer: BoxMakeWriter) -> Self {
        Self { verbosity, colours: false, writer }
    }

    /// A subscriber that does nothing else.
    pub fn dispatch(self) -> Dispatch {
        Dispatch::new(tracing_subscriber::registry().with(self.layer()))
    }

    /// One line an event.
    pub(super) fn layer<S>(self) -> impl Layer<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let mut layer = fmt::layer().with_writer(self.writer);
        // On a terminal the layer's own choice stands, which honours NO_COLOR.
        if !self.colours {
            layer = layer.with_ansi(false);
        }
        layer.with_target(self.verbosity >= Verbosity::Debug).with_filter(filter::console(self.verbosity))
    }
}

/// The provider of exported records. To be made inside a runtime.
pub(super) fn provider(
    peer: &Peer,
    compression: Compression,
    resource: Resource,
    presence: Arc<Presence>,
) -> Result<SdkLoggerProvider, TelemetryError> {
    let mut exporter = opentelemetry_otlp::LogExporter::builder()
        .with_tonic()
        .with_channel(peer.limited_channel())
        .with_metadata(peer.metadata().clone())
        .with_timeout(peer.limit());
    if let Some(compression) = super::signal_compression(compression) {
        exporter = exporter.with_compression(compression);
    }
    let exporter = exporter.build().map_err(|error| TelemetryError::Exporter("logs", error))?;
    let batches = BatchConfigBuilder::default().with_max_queue_size(WAITING).build();
    let batches =
        BatchLogProcessor::builder(Patient::new(exporter, presence)).with_batch_config(batches).build();
    Ok(SdkLoggerProvider::builder().with_resource(resource).with_log_processor(batches).build())
}

/// Makes records that are events.
pub(super) fn logger(provider: &SdkLoggerProvider) -> SdkLogger {
    provider.logger("esxi-otel-agent")
}

/// The layer that exports what the agent logs: all `records`, and those lines that are `events`.
pub(super) fn layer<S>(provider: &SdkLoggerProvider, records: bool, events: bool) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    OpenTelemetryTracingBridge::new(provider).with_filter(filter::exported(records, events))
}

/// A record with the scope that it came from.
type Record = (SdkLogRecord, InstrumentationScope);

/// Keeps the records that could not be exported, up to [`WAITING`], the oldest go first, and sends them
/// first the next time: the batch processor would drop them. What is dropped here still stood on the
/// console.
#[derive(Debug)]
struct Patient<E> {
    exporter: E,
    waiting: Mutex<VecDeque<Record>>,
    presence: Arc<Presence>,
}

impl<E: LogExporter> Patient<E> {
    fn new(exporter: E, presence: Arc<Presence>) -> Self {
        Self { exporter, waiting: Mutex::default(), presence }
    }
}

impl<E: LogExporter> LogExporter for Patient<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        // The processor exports one batch at a time, so nobody else looks for what is taken out here.
        let take = || std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let mut waiting = take();
        waiting.extend(batch.iter().map(|(record, scope)| (record.clone(), scope.clone())));
        while !waiting.is_empty() {
            let portion: Vec<_> =
                waiting.iter().take(AT_ONCE).map(|(record, scope)| (record, scope)).collect();
            let sent = portion.len();
            match self.exporter.export(LogBatch::new(&portion)).await {
                Ok(()) => self.presence.is_there(Signal::Logs),
                Err(error) if super::is_passing(&error) => {
                    self.presence.is_lost(Signal::Logs, &error.to_string());
                    break;
                }
                Err(error) => self.presence.say(|| tracing::debug!("OTLP: log records are refused: {error}")),
            }
            waiting.drain(..sent);
        }
        waiting.drain(..waiting.len().saturating_sub(WAITING));
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
        // An error would be logged by the SDK with each try.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::logs::{AnyValue, LogRecord, Logger};
    use opentelemetry_sdk::error::OTelSdkError;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A Collector that is away for a while.
    #[derive(Debug, Clone, Default)]
    struct Flaky {
        away: Arc<AtomicBool>,
        taken: Arc<Mutex<Vec<String>>>,
    }

    impl LogExporter for Flaky {
        async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
            if self.away.load(Ordering::Relaxed) {
                return Err(OTelSdkError::Timeout(Duration::from_secs(1)));
            }
            let body = |record: &SdkLogRecord| match record.body() {
                Some(AnyValue::String(text)) => text.to_string(),
                other => panic!("{other:?}"),
            };
            self.taken.lock().expect("no panic").extend(batch.iter().map(|(record, _)| body(record)));
            Ok(())
        }
    }

    impl Flaky {
        fn taken(&self) -> Vec<String> {
            self.taken.lock().expect("no panic").clone()
        }
    }

    async fn say(patient: &Patient<Flaky>, bodies: &[String]) {
        let scope = InstrumentationScope::default();
        let logger = SdkLoggerProvider::builder().build().logger("test");
        let record = |body: &String| {
            let mut record = logger.create_log_record();
            record.set_body(body.clone().into());
            record
        };
        let records: Vec<_> = bodies.iter().map(record).collect();
        let batch: Vec<_> = records.iter().map(|record| (record, &scope)).collect();
        patient.export(LogBatch::new(&batch)).await.expect("kept or exported");
    }

    #[tokio::test]
    async fn records_wait_for_a_collector_that_is_away_and_come_first_when_it_is_back() {
        let flaky = Flaky::default();
        let patient = Patient::new(flaky.clone(), Arc::new(Presence::new("test")));
        flaky.away.store(true, Ordering::Relaxed);
        say(&patient, &["a".into()]).await;
        say(&patient, &["b".into()]).await;
        assert!(flaky.taken().is_empty());
        flaky.away.store(false, Ordering::Relaxed);
        say(&patient, &["c".into()]).await;
        say(&patient, &["d".into()]).await;
        assert_eq!(flaky.taken(), ["a", "b", "c", "d"]);
    }

    #[tokio::test]
    async fn records_that_wait_are_capped_the_oldest_go() {
        let flaky = Flaky::default();
        let patient = Patient::new(flaky.clone(), Arc::new(Presence::new("test")));
        flaky.away.store(true, Ordering::Relaxed);
        let bodies: Vec<_> = (0..WAITING + 2).map(|i| i.to_string()).collect();
        say(&patient, &bodies).await;
        flaky.away.store(false, Ordering::Relaxed);
        say(&patient, &["newest".into()]).await;
        let taken = flaky.taken();
        assert_eq!(taken.len(), WAITING + 1);
        assert_eq!(
            (taken.first().map(String::as_str), taken.last().map(String::as_str)),
            (Some("2"), Some("newest"))
        );
    }
}
