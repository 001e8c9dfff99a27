//! Leaf: what every room that is traced needs of OpenTelemetry's spans.

use crate::outcome::Failure;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;
use std::borrow::Cow;
use std::time::SystemTime;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Marks a span as failed: status Error, `error.type` from the closed list. To be called by whoever
/// cancels a future by a time-out, too, since a cancelled span would be left without a status.
pub fn fail(span: &Span, failure: &Failure) {
    span.set_attribute("error.type", failure.reason.word());
    span.set_status(Status::error(failure.message.clone()));
}

/// Where in the traces something was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceRef {
    /// The trace's id.
    pub trace: [u8; 16],
    /// The span's id.
    pub span: [u8; 8],
}

impl TraceRef {
    /// Of a span; `None`: it is not traced.
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        let context = context.span().span_context().clone();
        context
            .is_valid()
            .then(|| Self { trace: context.trace_id().to_bytes(), span: context.span_id().to_bytes() })
    }
}

/// Key of a root span's attribute: it saw a change that somebody is told of. Its trace is kept.
pub const CHANGED: &str = "esxi.changed";

/// Notes on the root span of a visit or poll, which has to be still open, that it saw a change.
pub fn note_change(span: &Span) {
    span.set_attribute(CHANGED, true);
}

/// Makes spans whose times are known only afterwards, such as those of one script of a visit.
#[derive(Debug, Clone, Default)]
pub struct PastSpans(Option<SdkTracer>);

impl PastSpans {
    /// With the tracer of the agent's provider; `None` makes no spans.
    pub fn new(tracer: Option<SdkTracer>) -> Self {
        Self(tracer)
    }

    /// For spans below `parent`, which has to stay open while they are added.
    pub fn below(&self, parent: &Span) -> Below<'_> {
        let below = |tracer| (tracer, parent.context());
        Below(self.0.as_ref().map(below).filter(|(_, parent)| parent.span().span_context().is_valid()))
    }
}

/// Adds spans below one; see [`PastSpans::below`].
#[derive(Debug)]
pub struct Below<'a>(Option<(&'a SdkTracer, Context)>);

/// A span that has ended, to be added.
#[derive(Debug)]
pub struct PastSpan {
    /// Its name.
    pub name: Cow<'static, str>,
    /// From when to when.
    pub times: (SystemTime, SystemTime),
    /// Its attributes.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

impl Below<'_> {
    /// Adds what `span` makes, which is not called where nobody wants spans.
    pub fn add(&self, span: impl FnOnce() -> PastSpan) {
        let Some((tracer, parent)) = &self.0 else { return };
        let PastSpan { name, times: (start, end), attributes, failure } = span();
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(start)
            .with_attributes(attributes);
        let mut span = tracer.build_with_context(builder, parent);
        if let Some(failure) = failure {
            span.set_attribute(KeyValue::new("error.type", failure.reason.word()));
            span.set_status(Status::error(failure.message));
        }
        span.end_with_timestamp(end);
    }
}
