//! For tests: a span exporter that keeps what it is given.

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use std::sync::{Arc, Mutex};

/// What was exported, shared by its clones.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken(Arc<Mutex<Vec<SpanData>>>);

impl Taken {
    pub(super) fn spans(&self) -> Vec<SpanData> {
        self.0.lock().expect("no panic").clone()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.spans().into_iter().map(|span| span.name.into_owned()).collect()
    }
}

impl SpanExporter for Taken {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().expect("no panic").extend(batch);
        Ok(())
    }
}
