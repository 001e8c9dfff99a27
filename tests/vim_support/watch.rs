//! Catches the spans and log lines of a story.

use opentelemetry::trace::{SpanId, Status, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use std::io::Write;
use std::sync::{Arc, Mutex};
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;

/// What was seen so far.
#[derive(Debug, Default, Clone)]
pub struct Watch {
    spans: Arc<Mutex<Vec<SpanData>>>,
    log: Arc<Mutex<Vec<u8>>>,
}

/// A span that ended.
#[derive(Debug)]
pub struct Seen {
    pub name: String,
    pub kind: String,
    pub id: SpanId,
    pub parent: Option<SpanId>,
    pub error_type: Option<String>,
    attributes: Vec<(String, String)>,
}

impl Seen {
    pub fn attribute(&self, key: &str) -> String {
        let found = self.attributes.iter().find(|(name, _)| name == key);
        found.map_or_else(|| panic!("{key} in {self:?}"), |(_, value)| value.clone())
    }
}

impl SpanExporter for Watch {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.spans.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Write for Watch {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.log.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Watch {
    /// A subscriber that tells this watch.
    pub fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        let provider = SdkTracerProvider::builder().with_simple_exporter(self.clone()).build();
        let writer = self.clone();
        tracing_subscriber::registry()
            .with(tracing_subscriber::filter::LevelFilter::INFO)
            .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("story")))
            .with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone()))
    }

    /// The spans of this crate in the order of their ends.
    pub fn spans(&self) -> Vec<Seen> {
        let seen = |span: &SpanData| {
            let attributes: Vec<(String, String)> =
                span.attributes.iter().map(|pair| (pair.key.to_string(), pair.value.to_string())).collect();
            let error =
                attributes.iter().find(|(key, _)| key == "error.type").map(|(_, value)| value.clone());
            assert_eq!(error.is_some(), matches!(span.status, Status::Error { .. }), "{span:?}");
            Seen {
                name: span.name.to_string(),
                kind: format!("{:?}", span.span_kind),
                id: span.span_context.span_id(),
                parent: (span.parent_span_id != SpanId::INVALID).then_some(span.parent_span_id),
                error_type: error,
                attributes,
            }
        };
        self.spans.lock().unwrap().iter().map(seen).collect()
    }

    /// The last span of a name.
    pub fn span(&self, name: &str) -> Seen {
        let spans = self.spans();
        spans.into_iter().rev().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"))
    }

    /// The log lines that hold `text`.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let log = String::from_utf8(self.log.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// All that was seen, as one text.
    pub fn everything(&self) -> String {
        format!("{:?}{:?}", self.spans(), self.lines_with(""))
    }
}
