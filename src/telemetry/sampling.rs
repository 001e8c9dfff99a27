//! Which traces are kept, decided when they have ended: those with an error, the slow ones, those of visits that
//! saw a change that somebody is told of, and a share of the rest. A processor around the batch processor; the head samples everything.

use super::export::SPANS;
use super::export::peer::Presence;
use crate::config::TracesConfig;
use crate::metric::Attributes;
use crate::span;
use crate::stats::Stats;
use opentelemetry::Context;
use opentelemetry::trace::{SpanId, Status, TraceId};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How much may be open at a time, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Most traces whose root has not ended. The oldest goes first.
    pub traces: usize,
    /// Most spans in them.
    pub spans: usize,
    /// Longest time from a trace's first ended span to the end of its root.
    pub age: Duration,
}

impl Default for Caps {
    /// For some 10,000 hosts: the visits and polls under way, many times over.
    fn default() -> Self {
        Self { traces: 16_384, spans: 131_072, age: Duration::from_secs(600) }
    }
}

/// Traces that were decided lately, for spans that end after their root.
const REMEMBERED: usize = 4_096;

/// The processor.
#[derive(Debug)]
pub struct TailSampler<P> {
    next: P,
    keep: watch::Receiver<TracesConfig>,
    caps: Caps,
    stats: Arc<Stats>,
    /// Tells whether the Collector is there.
    presence: Option<Arc<Presence>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<TraceId, Open>,
    /// In the order of their first ended spans; may name traces that are no longer open.
    order: VecDeque<(Instant, TraceId)>,
    spans: usize,
    decided: HashMap<TraceId, bool>,
    decided_order: VecDeque<TraceId>,
}

#[derive(Debug, Default)]
struct Open {
    spans: Vec<SpanData>,
    failed: bool,
}

impl<P: SpanProcessor> TailSampler<P> {
    /// Hands on to `next` what `keep` says at the time.
    pub fn new(next: P, keep: watch::Receiver<TracesConfig>, caps: Caps, stats: Arc<Stats>) -> Self {
        Self { next, keep, caps, stats, presence: None, state: Mutex::default() }
    }

    /// The same, but nothing is handed on by chance alone while the Collector is away: the room in which spans
    /// wait is for those that somebody will look for.
    #[must_use]
    pub fn sparing(mut self, presence: Arc<Presence>) -> Self {
        self.presence = Some(presence);
        self
    }

    fn is_kept(&self, root: &SpanData, failed: bool) -> bool {
        let keep = self.keep.borrow();
        let is_away = || self.presence.as_ref().is_some_and(|presence| presence.is_away());
        let took = root.end_time.duration_since(root.start_time).unwrap_or_default();
        (keep.errors && failed)
            || root.attributes.iter().any(|attribute| attribute.key.as_str() == span::CHANGED)
            || took > keep.slower_than
            || (is_in_share(root.span_context.trace_id(), keep.ratio) && !is_away())
    }

    fn count(&self, outcome: &'static str, spans: usize) {
        if spans > 0 {
            self.stats.add(&SPANS, Attributes::new([("outcome", outcome)]), spans as f64);
        }
    }

    /// What is to be handed on, now that `span` has ended.
    fn settle(&self, state: &mut State, span: SpanData) -> Vec<SpanData> {
        let id = span.span_context.trace_id();
        if let Some(kept) = state.decided.get(&id) {
            if *kept {
                return vec![span];
            }
            self.count("sampled_out", 1);
            return vec![];
        }
        let is_root = span.parent_span_id == SpanId::INVALID || span.parent_span_is_remote;
        if !is_root {
            state.add(id, span);
            self.count("dropped", state.shrink(self.caps));
            return vec![];
        }
        let Open { mut spans, failed } = state.take(id);
        let kept = self.is_kept(&span, failed || is_failed(&span));
        state.remember(id, kept);
        spans.push(span);
        if kept {
            return spans;
        }
        self.count("sampled_out", spans.len());
        vec![]
    }
}

impl State {
    fn add(&mut self, id: TraceId, span: SpanData) {
        let open = self.open.entry(id).or_insert_with(|| {
            self.order.push_back((Instant::now(), id));
            Open::default()
        });
        open.failed |= is_failed(&span);
        open.spans.push(span);
        self.spans += 1;
    }

    fn take(&mut self, id: TraceId) -> Open {
        let open = self.open.remove(&id).unwrap_or_default();
        self.spans -= open.spans.len();
        open
    }

    fn remember(&mut self, id: TraceId, kept: bool) {
        if self.decided_order.len() >= REMEMBERED
            && let Some(oldest) = self.decided_order.pop_front()
        {
            self.decided.remove(&oldest);
        }
        self.decided.insert(id, kept);
        self.decided_order.push_back(id);
    }

    /// Lets the oldest traces go until the caps are kept. Returns the number of spans.
    fn shrink(&mut self, caps: Caps) -> usize {
        let mut dropped = 0;
        let now = Instant::now();
        while let Some((since, id)) = self.order.front().copied() {
            let is_open = self.open.contains_key(&id);
            let too_many = self.open.len() > caps.traces || self.spans > caps.spans;
            if is_open && !too_many && now.duration_since(since) <= caps.age {
                break;
            }
            self.order.pop_front();
            dropped += self.take(id).spans.len();
        }
        if self.order.len() > 2 * caps.traces {
            self.order.retain(|(_, id)| self.open.contains_key(id));
        }
        dropped
    }
}

fn is_failed(span: &SpanData) -> bool {
    matches!(span.status, Status::Error { .. })
}

/// The rule of the specification's TraceIdRatioBased sampler, so that one trace gets one verdict anywhere.
fn is_in_share(id: TraceId, ratio: f64) -> bool {
    let [.., a, b, c, d, e, f, g, h] = id.to_bytes();
    let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
    (low as f64) < ratio * (1u64 << 63) as f64
}

impl<P: SpanProcessor> SpanProcessor for TailSampler<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.next.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        let kept = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.settle(&mut state, span)
        };
        for span in kept {
            self.next.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
