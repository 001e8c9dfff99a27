//! Events: what changed, once, in words. One task hears every change of the readings, in order, and tells
//! those that people want to know: as log records over OTLP, each with the trace of the visit that saw it, and on
//! the console.

pub mod catalog;
mod console;
mod damping;
mod own;
mod rules;

use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::readings::{Hearing, News, Readings, Transition};
use crate::span::TraceRef;
use crate::stats::Stats;
use crate::target::TargetKind;
use catalog::{EventDef, Severity};
use console::Console;
use damping::{Damping, Verdict};
use opentelemetry::logs::{AnyValue, LogRecord, Logger, Severity as Number};
use opentelemetry::{SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::logs::SdkLogger;
use own::Own;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Target of the lines on the console that are exported by themselves already.
pub(super) const TOLD: &str = "esxi_otel_agent::told";
/// Target of lines that are events because a room says so: their `name` is that of the event.
pub const TARGET: &str = "esxi_otel_agent::event";

/// Pause between two looks at what becomes stable, and at what the agent counts.
const LOOK: Duration = Duration::from_secs(5);
/// Longest time that failures of first visits are collected before they are told.
const FIRST: Duration = Duration::from_secs(60);

/// Events by what became of them.
static EVENTS: MetricDef = MetricDef {
    name: "esxi.agent.events",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Events by what became of them: told; suppressed, since it was told already that something is flapping; lost, since too many happened at once.",
    attributes: &["outcome"],
};

/// The metrics of this room.
pub static METRICS: &[&MetricDef] = &[&EVENTS];

/// Something that changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    def: &'static EventDef,
    severity: Severity,
    /// Whether that is how it should be.
    is_good: bool,
    /// It turned up in a good state: news only if a bad one was told.
    is_return: bool,
    /// One sentence.
    body: String,
    attributes: Attributes,
    seen_by: Option<TraceRef>,
}

impl Eq for Event {}

/// Begins to hear what changes. From then on nothing is missed, whenever [`Teller::run`] starts.
pub(super) fn teller(readings: Arc<Readings>, stats: Arc<Stats>, logger: Option<SdkLogger>) -> Teller {
    let hearing = readings.listen(rules::is_wanted);
    let (damping, own, firsts) = (Damping::default(), Own::default(), Firsts::default());
    Teller { readings, hearing, stats, logger, console: Console::default(), damping, own, firsts }
}

/// Tells what happens.
pub(super) struct Teller {
    readings: Arc<Readings>,
    hearing: Hearing,
    stats: Arc<Stats>,
    /// `None`: only the console is told.
    logger: Option<SdkLogger>,
    console: Console,
    damping: Damping,
    own: Own,
    firsts: Firsts,
}

impl Teller {
    /// Until `cancel`; what has happened by then is still told.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                news = self.hearing.next() => match news {
                    Some(news) => self.hear(news),
                    None => break,
                },
                _ = looks.tick() => self.look(Instant::now()),
            }
        }
        while let Some(news) = self.hearing.try_next() {
            self.hear(news);
        }
        self.look(Instant::now());
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Left(target) => self.damping.forget(&target),
            News::Changed(change) if change.is_first => self.firsts.add(&change),
            News::Changed(change) => self.hear_change(&change),
        }
    }

    fn hear_change(&mut self, change: &Transition) {
        let Some(event) = rules::event(change, &self.readings) else { return };
        match self.damping.judge(&change.target, rules::subject(change), &event, Instant::now()) {
            Verdict::Tell => self.tell(&event),
            Verdict::Flapping => self.tell(&flapping(event)),
            Verdict::Suppressed => self.count("suppressed", 1.0),
            Verdict::Nothing => {}
        }
    }

    fn look(&mut self, now: Instant) {
        for (mut event, suppressed) in self.damping.settle(now) {
            let minutes = damping::WINDOW.as_secs() / 60;
            event.body += &format!("; stable for {minutes} minutes, {suppressed} changes were not told");
            self.tell(&event);
        }
        let lost = self.hearing.take_lost();
        if lost > 0 {
            self.count("lost", lost as f64);
        }
        for ((name, severity), events) in self.console.held_back(now) {
            let fate = if self.logger.is_some() { "were told over OTLP alone" } else { "got no line" };
            say(name, severity, &format!("{events} more events of this kind within a minute {fate}"));
        }
        let own = self.own.look(&self.stats.samples(), lost, now);
        let first = self.firsts.take(now);
        own.iter().chain(&first).for_each(|event| self.tell(event));
    }

    fn tell(&mut self, event: &Event) {
        let Event { def, severity, body, .. } = event;
        if self.console.takes((def.name, *severity), Instant::now()) {
            say(def.name, *severity, body);
        }
        self.count("told", 1.0);
        let Some(logger) = &self.logger else { return };
        let mut record = logger.create_log_record();
        record.set_event_name(def.name);
        record.set_timestamp(SystemTime::now());
        record.set_severity_text(severity.word());
        record.set_severity_number(match severity {
            Severity::Info => Number::Info,
            Severity::Warn => Number::Warn,
            Severity::Error => Number::Error,
        });
        record.set_body(AnyValue::String(body.clone().into()));
        for (key, value) in event.attributes.iter() {
            record.add_attribute(key.to_owned(), AnyValue::String(Arc::clone(value).into()));
        }
        if let Some(TraceRef { trace, span }) = event.seen_by {
            let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
            record.set_trace_context(trace, span, Some(TraceFlags::SAMPLED));
        }
        logger.emit(record);
    }

    fn count(&self, outcome: &'static str, by: f64) {
        self.stats.add(&EVENTS, Attributes::new([("outcome", outcome)]), by);
    }
}

/// A line on the console.
fn say(event: &'static str, severity: Severity, body: &str) {
    match severity {
        Severity::Info => tracing::info!(target: TOLD, event, "{body}"),
        Severity::Warn => tracing::warn!(target: TOLD, event, "{body}"),
        Severity::Error => tracing::error!(target: TOLD, event, "{body}"),
    }
}

fn flapping(event: Event) -> Event {
    let (changes, minutes) = (damping::CHANGES, damping::WINDOW.as_secs() / 60);
    Event {
        def: &catalog::FLAPPING,
        severity: catalog::FLAPPING.severity,
        body: format!(
            "{}; that is flapping, more than {changes} changes in {minutes} minutes: no more is told until it is stable",
            event.body
        ),
        attributes: event.attributes.with("event", event.def.name),
        ..event
    }
}

/// Failures of first visits and polls: one line for all of them, so that a start pages nobody.
#[derive(Debug, Default)]
struct Firsts {
    /// How many, and one of them.
    failures: BTreeMap<(TargetKind, String), (usize, Arc<str>)>,
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Firsts {
    fn add(&mut self, change: &Transition) {
        let Some(failure) = rules::first_failure(change) else { return };
        let example = || (0, Arc::clone(&change.target.address));
        self.failures.entry(failure).or_insert_with(example).0 += 1;
        let now = Instant::now();
        self.since.get_or_insert(now);
        self.last = Some(now);
    }

    /// One event, once no more come, or it takes too long.
    fn take(&mut self, now: Instant) -> Option<Event> {
        let (since, last) = (self.since?, self.last?);
        if now < last + LOOK && now < since + FIRST {
            return None;
        }
        let all = std::mem::take(self).failures;
        let of_kind = |kind: TargetKind, name: &str| {
            let of_kind = || all.iter().filter(move |((of, _), _)| *of == kind);
            let count: usize = of_kind().map(|(_, (count, _))| count).sum();
            let reasons: Vec<_> = of_kind()
                .map(|((_, reason), (count, example))| format!("{count} {reason} (such as {example})"))
                .collect();
            (count > 0).then(|| format!("{count} {name}: {}", reasons.join(", ")))
        };
        let parts = [of_kind(TargetKind::Vcenter, "vCenters"), of_kind(TargetKind::Host, "hosts")];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        let body = format!("the first visit or poll failed of {}", parts.join("; "));
        Some(Event::own(&catalog::FIRST_ROUND, false, body, []))
    }
}

impl Event {
    /// One of the agent itself.
    fn own(
        def: &'static EventDef,
        is_good: bool,
        body: String,
        attributes: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        let attributes = Attributes::new(attributes);
        Self { def, severity: def.severity, is_good, is_return: false, body, attributes, seen_by: None }
    }
}

#[cfg(test)]
mod tests;
