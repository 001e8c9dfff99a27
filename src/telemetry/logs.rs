//! Log records: to the console, and over OTLP.

use super::TelemetryError;
use super::export::peer::{Peer, Presence, Signal};
use super::filter::{self, Verbosity};
use crate::config::Compression;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder, BatchLogProcessor, LogBatch, LogExporter, SdkLoggerProvider,
};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, fmt};

/// Records that may wait.
const WAITING: usize = 16_384;

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
        BatchLogProcessor::builder(Watched { exporter, presence }).with_batch_config(batches).build();
    Ok(SdkLoggerProvider::builder().with_resource(resource).with_log_processor(batches).build())
}

/// The layer that exports records.
pub(super) fn layer<S>(provider: &SdkLoggerProvider) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    OpenTelemetryTracingBridge::new(provider).with_filter(filter::records())
}

/// Notes whether the Collector is there. What is not taken is lost: the console has it.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    presence: Arc<Presence>,
}

impl<E: LogExporter> LogExporter for Watched<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        match self.exporter.export(batch).await {
            Ok(()) => self.presence.is_there(Signal::Logs),
            Err(error) if super::is_passing(&error) => {
                self.presence.is_lost(Signal::Logs, &error.to_string())
            }
            Err(error) => self.presence.say(|| tracing::debug!("OTLP: log records are refused: {error}")),
        }
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
