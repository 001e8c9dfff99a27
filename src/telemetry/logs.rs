//! Log records: to the console, and over OTLP.

use super::export::peer::{Presence, Signal};
use super::export::transport::Destination;
use super::filter::{self, Verbosity};
use super::outbox::{Outbox, Post, Postman};
use super::{TelemetryError, signals};
use crate::metric::{Cadence, Kind, MetricDef, Unit};
use crate::stats::Stats;
use opentelemetry::InstrumentationScope;
use opentelemetry::logs::LoggerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    LogBatch, LogExporter, LogProcessor, SdkLogRecord, SdkLogger, SdkLoggerProvider,
};
use std::io::IsTerminal;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, fmt};

/// Records that may wait for a Collector. What goes beyond still stood on the console.
pub(super) const WAITING: usize = 16_384;

/// Records by what became of them.
static RECORDS: MetricDef = MetricDef {
    name: "esxi.agent.export.records",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Log records, those of events among them, by what became of them: exported, or dropped because too many were waiting or the Collector refused them.",
    attributes: &["outcome"],
};

/// The metrics of this room.
pub(super) static METRICS: &[&MetricDef] = &[&RECORDS];

/// Where records wait.
pub(super) fn outbox(stats: Arc<Stats>) -> Outbox<Record> {
    Outbox::new(WAITING, &RECORDS, stats)
}

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

/// The provider of exported records, which go into `outbox`.
pub(super) fn provider(outbox: Outbox<Record>, resource: Resource) -> SdkLoggerProvider {
    SdkLoggerProvider::builder().with_resource(resource).with_log_processor(outbox).build()
}

/// Who sends the records.
pub(super) fn postman(
    outbox: Outbox<Record>,
    destination: watch::Receiver<Destination>,
    resource: Resource,
    presence: Arc<Presence>,
) -> Result<Postman<RecordPost>, TelemetryError> {
    let build = move |destination: &Destination| {
        let exporter =
            signals::along(destination, opentelemetry_otlp::LogExporter::builder().with_tonic()).build();
        let mut exporter = exporter.map_err(|error| TelemetryError::Exporter("logs", error))?;
        exporter.set_resource(&resource);
        Ok(RecordPost(exporter))
    };
    Postman::new(outbox, destination, build, presence)
}

/// A record with the scope that it came from.
pub(super) type Record = (SdkLogRecord, InstrumentationScope);

/// Sends records once.
pub(super) struct RecordPost(opentelemetry_otlp::LogExporter);

impl Post for RecordPost {
    type Item = Record;
    const SIGNAL: Signal = Signal::Logs;

    async fn post(&self, items: Vec<Record>) -> OTelSdkResult {
        let batch: Vec<_> = items.iter().map(|(record, scope)| (record, scope)).collect();
        self.0.export(LogBatch::new(&batch)).await
    }
}

impl LogProcessor for Outbox<Record> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        self.push((record.clone(), scope.clone()));
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
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
