//! Spans: the provider, the layer that makes them of `tracing`'s, and who sends them.

use super::export::peer::{Presence, Signal};
use super::export::transport::Destination;
use super::outbox::{Outbox, Post, Postman};
use super::sampling::{Caps, TailSampler};
use super::{TelemetryError, filter, signals};
use crate::config::TracesConfig;
use crate::stats::Stats;
use opentelemetry::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

/// Spans of a visit, about.
const SPANS_OF_A_VISIT: usize = 16;
/// Spans that may wait for a Collector, of a small fleet and of the largest.
const FEWEST: usize = 65_536;
const MOST: usize = 262_144;

/// How many spans may wait: one round of the fleet.
pub(super) fn cap(hosts: usize) -> usize {
    hosts.saturating_mul(SPANS_OF_A_VISIT).clamp(FEWEST, MOST)
}

/// The provider, whose kept spans go into `outbox`. While the Collector is away only what was kept for a
/// reason waits.
pub(super) fn provider(
    outbox: Outbox<SpanData>,
    keep: watch::Receiver<TracesConfig>,
    resource: Resource,
    presence: Arc<Presence>,
    stats: Arc<Stats>,
) -> SdkTracerProvider {
    let sampler = TailSampler::new(outbox, keep, Caps::default(), stats).sparing(presence);
    SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::AlwaysOn)
        .with_span_processor(sampler)
        .build()
}

/// Who sends the spans.
pub(super) fn postman(
    outbox: Outbox<SpanData>,
    destination: watch::Receiver<Destination>,
    resource: Resource,
    presence: Arc<Presence>,
) -> Result<Postman<SpanPost>, TelemetryError> {
    let build = move |destination: &Destination| {
        let exporter =
            signals::along(destination, opentelemetry_otlp::SpanExporter::builder().with_tonic()).build();
        let mut exporter = exporter.map_err(|error| TelemetryError::Exporter("traces", error))?;
        exporter.set_resource(&resource);
        Ok(SpanPost(exporter))
    };
    Postman::new(outbox, destination, build, presence)
}

/// Sends spans once.
pub(super) struct SpanPost(opentelemetry_otlp::SpanExporter);

impl Post for SpanPost {
    type Item = SpanData;
    const SIGNAL: Signal = Signal::Traces;

    async fn post(&self, items: Vec<SpanData>) -> OTelSdkResult {
        self.0.export(items).await
    }
}

impl SpanProcessor for Outbox<SpanData> {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The tracer of the agent's spans.
pub(super) fn tracer(provider: &SdkTracerProvider) -> SdkTracer {
    provider.tracer("esxi-otel-agent")
}

/// The layer. Never to be put into a `reload::Layer`: the look-up of a span's context would fail.
pub(super) fn layer<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_threads(false)
        .with_location(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_filter(filter::spans())
}
