//! What arrived at the Collector, told to somebody who watches: each change in a line, and a summary now
//! and then.

use crate::simulator::sink::{Seen, Series, Signal, Sink, Span};
use jiff::Zoned;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Pause between two summaries.
const SUMMARY: Duration = Duration::from_secs(5);
/// A visit that took longer is told with the span that took longest.
const SLOW: Duration = Duration::from_secs(1);
/// What is told of first results in one go is a summary's matter.
const FIRST: Duration = Duration::from_secs(6);

/// Remembers what was told.
pub struct Story {
    /// Names of the hosts by their addresses.
    names: BTreeMap<String, String>,
    started: Instant,
    told: HashMap<(&'static str, Series), f64>,
    /// The span that arrived last.
    last: Option<[Vec<u8>; 3]>,
    summary: Instant,
}

impl Story {
    /// Nothing told yet.
    pub fn new(names: BTreeMap<String, String>) -> Self {
        let now = Instant::now();
        Self { names, started: now, told: HashMap::new(), last: None, summary: now }
    }

    /// The lines about what is new since the last look.
    pub fn go_on(&mut self, sink: &Sink) -> Vec<String> {
        let mut lines = sink.seen(|seen| {
            let mut lines = self.states(seen);
            lines.extend(self.slow_visits(seen));
            lines
        });
        if self.summary.elapsed() >= SUMMARY {
            self.summary = Instant::now();
            lines.push(line("received", "", &Self::summary(sink)));
        }
        lines
    }

    fn states(&mut self, seen: &Seen) -> Vec<String> {
        type Word = fn(f64) -> &'static str;
        let up: Word = |value| if value == 1.0 { "up" } else { "down" };
        let runs: Word = |value| if value == 1.0 { "running" } else { "stopped" };
        let colour: Word = |value| match value {
            2.0 => "green",
            1.0 => "yellow",
            0.0 => "red",
            _ => "gray",
        };
        let metrics: [(&str, &str, Word); 4] = [
            ("esxi.host.ssh.up", "ssh", up),
            ("esxi.vcenter.up", "soap", up),
            ("esxi.critical_service.status", "service", runs),
            ("esxi.overall_status", "overall status", colour),
        ];
        let mut lines = Vec::new();
        for (metric, what, word) in metrics {
            for (series, points) in seen.series(metric, &[]) {
                let Some(value) = points.back().and_then(|point| point.value) else { continue };
                let before = self.told.insert((metric, series.clone()), value);
                let at_start = before.is_none() && self.started.elapsed() < FIRST;
                if before == Some(value) || (at_start && is_good(metric, value)) {
                    continue;
                }
                let what = series.get("service").map_or(what, String::as_str);
                let mut text = match before {
                    Some(before) => format!("{} → {}", word(before), word(value)),
                    None => word(value).to_owned(),
                };
                if let Some(reason) = reason(seen, metric, series).filter(|_| value == 0.0) {
                    let _ = write!(text, " ({reason})");
                }
                lines.push(line(&self.who(series), what, &text));
            }
        }
        lines
    }

    /// Visits that took long, each with the one of its spans below that took longest.
    fn slow_visits(&mut self, seen: &Seen) -> Vec<String> {
        let told = self.last.take();
        let new: Vec<&Span> =
            seen.spans.iter().rev().take_while(|span| Some(&span.ids) != told.as_ref()).collect();
        self.last = seen.spans.back().map(|span| span.ids.clone());
        let is_slow = |span: &&&Span| span.name == "visit" && span.took > SLOW;
        let mut lines = Vec::new();
        for visit in new.iter().filter(is_slow) {
            let [trace, ..] = &visit.ids;
            let of_trace = seen.spans.iter().filter(|span| &span.ids[0] == trace);
            let parts = of_trace.filter(|span| !matches!(&*span.name, "visit" | "ssh.exec"));
            let Some(longest) = parts.max_by_key(|span| span.took) else { continue };
            let text = format!(
                "{:.1} s, {:.1} s of it: {} (trace {})",
                visit.took.as_secs_f64(),
                longest.took.as_secs_f64(),
                longest.name,
                trace.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            );
            lines.push(line(&self.who(&visit.attributes), "slow visit", &text));
        }
        lines
    }

    fn who(&self, attributes: &Series) -> String {
        let address =
            ["hostsystem", "esxi.hostsystem", "vcenter"].iter().find_map(|key| attributes.get(*key));
        let address = address.map_or("", String::as_str);
        self.names.get(address).map_or(address, String::as_str).to_owned()
    }

    /// What has arrived in all, and how the fleet is.
    pub fn summary(sink: &Sink) -> String {
        sink.seen(|seen| {
            let count = |metric: &str, value: f64| {
                let series = seen.series(metric, &[]);
                series.filter(|(_, points)| points.back().is_some_and(|p| p.value == Some(value))).count()
            };
            let messages = seen.messages.iter().filter(|message| message.signal == Signal::Metrics).count();
            format!(
                "{} points in {messages} messages, {} spans; hosts {} up {} down; services {} running {} stopped; \
                 status {} green {} yellow {} red",
                seen.points(),
                seen.spans.len(),
                count("esxi.host.ssh.up", 1.0),
                count("esxi.host.ssh.up", 0.0),
                count("esxi.critical_service.status", 1.0),
                count("esxi.critical_service.status", 0.0),
                count("esxi.overall_status", 2.0),
                count("esxi.overall_status", 1.0),
                count("esxi.overall_status", 0.0),
            )
        })
    }
}

fn is_good(metric: &str, value: f64) -> bool {
    value == if metric == "esxi.overall_status" { 2.0 } else { 1.0 }
}

/// The word that came along with a failure.
fn reason(seen: &Seen, metric: &str, series: &Series) -> Option<String> {
    let metric = match metric {
        "esxi.host.ssh.up" => "esxi.host.ssh.failure",
        "esxi.vcenter.up" => "esxi.vcenter.failure",
        "esxi.critical_service.status" => "esxi.critical_service.problem",
        _ => return None,
    };
    let same: Vec<(&str, &str)> = series.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    seen.series(metric, &same)
        .find(|(_, points)| points.back().is_some_and(|point| point.value.is_some()))
        .and_then(|(series, _)| series.get("reason").cloned())
}

fn line(who: &str, what: &str, text: &str) -> String {
    format!("{}  {who:<22} {what:<15} {text}", Zoned::now().strftime("%H:%M:%S"))
}
