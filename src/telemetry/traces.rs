//! Spans: the provider, the layer that makes them of `tracing`'s, and the export that survives a Collector
//! that is away for a while.

use super::TelemetryError;
use super::export::SPANS;
use super::export::peer::{Peer, Presence, Signal};
use super::filter;
use super::sampling::{Caps, TailSampler};
use crate::config::{Compression, TracesConfig};
use crate::metric::Attributes;
use crate::stats::Stats;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

/// Spans that may wait, in the batch processor and again behind it. The default of 2,048 loses nearly all
/// spans of a round over 3,000 hosts.
const WAITING: usize = 65_536;

/// The provider. To be made inside a runtime.
pub(super) fn provider(
    peer: &Peer,
    compression: Compression,
    keep: TracesConfig,
    resource: Resource,
    presence: Arc<Presence>,
    stats: Arc<Stats>,
) -> Result<SdkTracerProvider, TelemetryError> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(peer.limited_channel())
        .with_metadata(peer.metadata().clone())
        .with_timeout(peer.limit());
    if let Some(compression) = super::signal_compression(compression) {
        exporter = exporter.with_compression(compression);
    }
    let exporter = exporter.build().map_err(|error| TelemetryError::Exporter("traces", error))?;
    let exporter = Patient::new(exporter, presence, Arc::clone(&stats));
    let batches = BatchConfigBuilder::default().with_max_queue_size(WAITING).build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::AlwaysOn)
        .with_span_processor(TailSampler::new(batches, keep, Caps::default(), stats))
        .build())
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

/// Keeps the batches that could not be exported, up to [`WAITING`] spans, and sends them first the next
/// time: the batch processor would drop them.
#[derive(Debug)]
struct Patient<E> {
    exporter: E,
    waiting: Mutex<VecDeque<Vec<SpanData>>>,
    presence: Arc<Presence>,
    stats: Arc<Stats>,
}

impl<E: SpanExporter> Patient<E> {
    fn new(exporter: E, presence: Arc<Presence>, stats: Arc<Stats>) -> Self {
        Self { exporter, waiting: Mutex::default(), presence, stats }
    }

    fn count(&self, outcome: &'static str, spans: usize) {
        if spans > 0 {
            self.stats.add(&SPANS, Attributes::new([("outcome", outcome)]), spans as f64);
        }
    }
}

impl<E: SpanExporter> SpanExporter for Patient<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        // The processor exports one batch at a time, so nobody else looks for what is taken out here.
        let take = || std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let mut waiting = take();
        waiting.push_back(batch);
        while let Some(batch) = waiting.pop_front() {
            match self.exporter.export(batch.clone()).await {
                Ok(()) => {
                    self.presence.is_there(Signal::Traces);
                    self.count("exported", batch.len());
                }
                Err(error) if super::is_passing(&error) => {
                    self.presence.is_lost(Signal::Traces, &error.to_string());
                    waiting.push_front(batch);
                    break;
                }
                Err(error) => {
                    self.count("dropped", batch.len());
                    self.presence.say(|| tracing::debug!("OTLP: spans are refused: {error}"));
                }
            }
        }
        let mut spans: usize = waiting.iter().map(Vec::len).sum();
        while spans > WAITING {
            let dropped = waiting.pop_front().map_or(0, |batch| batch.len());
            self.count("dropped", dropped);
            spans -= dropped;
        }
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
        // An error would be logged by the SDK with each try.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::taken::Taken;
    use opentelemetry::trace::{Span, Tracer};
    use opentelemetry_sdk::error::OTelSdkError;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug, Clone, Default)]
    struct Flaky {
        away: Arc<AtomicBool>,
        taken: Taken,
    }

    impl SpanExporter for Flaky {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            match self.away.load(Ordering::Relaxed) {
                true => {
                    Err(OTelSdkError::InternalFailure("export failed with gRPC code: Unavailable".into()))
                }
                false => self.taken.export(batch).await,
            }
        }
    }

    fn spans(names: &[&'static str]) -> Vec<SpanData> {
        let memory = Taken::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(memory.clone()).build();
        names.iter().for_each(|name| provider.tracer("t").start(*name).end());
        memory.spans()
    }

    #[tokio::test]
    async fn spans_wait_for_a_collector_that_is_away_and_come_first_when_it_is_back() {
        let flaky = Flaky::default();
        let stats = Stats::new();
        let patient = Patient::new(flaky.clone(), Arc::new(Presence::new("test")), Arc::clone(&stats));
        flaky.away.store(true, Ordering::Relaxed);
        patient.export(spans(&["a"])).await.expect("kept");
        patient.export(spans(&["b"])).await.expect("kept");
        flaky.away.store(false, Ordering::Relaxed);
        patient.export(spans(&["c"])).await.expect("exported");
        assert_eq!(flaky.taken.names(), ["a", "b", "c"]);
        assert_eq!(stats.samples()[0].value, 3.0);
    }

    #[tokio::test]
    async fn spans_that_wait_are_capped_the_oldest_go() {
        let flaky = Flaky::default();
        let stats = Stats::new();
        let patient = Patient::new(flaky.clone(), Arc::new(Presence::new("test")), Arc::clone(&stats));
        flaky.away.store(true, Ordering::Relaxed);
        let one = spans(&["old"]);
        patient.export(one).await.expect("kept");
        let many = spans(&["new"]).into_iter().cycle().take(WAITING).collect();
        patient.export(many).await.expect("kept");
        flaky.away.store(false, Ordering::Relaxed);
        patient.export(spans(&["newest"])).await.expect("exported");
        let taken = flaky.taken.spans();
        assert_eq!(taken.len(), WAITING + 1);
        assert!(taken.iter().all(|span| span.name != "old"));
    }
}
