//! What arrived at the Collector, told to somebody who watches: each change in a line, and a summary now
//! and then.

use crate::simulator::sink::{Seen, Series, Signal, Sink, Span};
use jiff::Zoned;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

/// Pause between two summaries.
const SUMMARY: Duration = Duration::from_secs(5);
/// A visit that took longer is told with the span that took longest.
const SLOW: Duration = Duration::from_secs(1);
/// What is good at first is a summary's matter.
const FIRST: Duration = Duration::from_secs(6);
/// So long first results are gathered, to be told in one go.
const GATHERED: Duration = Duration::from_secs(3);
/// From so many hosts on the same is told once for all of them.
const MANY: usize = 4;

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
        if self.started.elapsed() < GATHERED {
            return Vec::new();
        }
        let mut lines = sink.seen(|seen| {
            let mut lines = self.states(seen);
            lines.extend(self.slow_visits(seen));
            lines
        });
        if self.summary.elapsed() >= SUMMARY {
            self.summary = Instant::now();
            lines.push(format!("{}  {}", now(), Self::summary(sink)));
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
        let mut changes: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
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
                match reason(seen, metric, series).filter(|_| !is_good(metric, value)) {
                    // It is a state of its own, although its value is that of a stopped one.
                    Some(reason) if reason == "not_installed" => text = "not installed".to_owned(),
                    Some(reason) => text = format!("{text} ({reason})"),
                    None => {}
                }
                changes.entry((what.to_owned(), text)).or_default().push(self.who(series));
            }
        }
        told(changes)
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
                "{:.1} s, {:.1} s in {}",
                visit.took.as_secs_f64(),
                longest.took.as_secs_f64(),
                longest.name,
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

    /// How the fleet is, by what has arrived.
    fn summary(sink: &Sink) -> String {
        sink.seen(|seen| {
            let now = |metric: &str| -> Vec<f64> {
                let series = seen.series(metric, &[]);
                series.filter_map(|(_, points)| points.back().and_then(|point| point.value)).collect()
            };
            let count = |values: &[f64], wanted: f64| values.iter().filter(|value| **value == wanted).count();
            let hosts = now("esxi.host.ssh.up");
            let services = now("esxi.critical_service.status");
            let status = now("esxi.overall_status");
            format!(
                "{}/{} hosts up, {}/{} services run, {} green, {} yellow, {} red",
                count(&hosts, 1.0),
                hosts.len(),
                count(&services, 1.0),
                services.len(),
                count(&status, 2.0),
                count(&status, 1.0),
                count(&status, 0.0),
            )
        })
    }

    /// What has arrived in all.
    pub fn total(sink: &Sink) -> String {
        let arrived = sink.seen(|seen| {
            let metrics = seen.messages.iter().filter(|message| message.signal == Signal::Metrics).count();
            let (points, spans) = (seen.points(), seen.spans.len());
            format!("The Collector received {points} points in {metrics} messages, and {spans} spans.")
        });
        format!("{arrived}\nAt the end: {}.", Self::summary(sink))
    }
}

/// A line for each, and a single one for what is the same with many.
fn told(changes: BTreeMap<(String, String), Vec<String>>) -> Vec<String> {
    let mut lines = Vec::new();
    for ((what, text), who) in changes {
        if who.len() >= MANY {
            let kind = if what == "soap" { "vCenters" } else { "hosts" };
            lines.push(line(&format!("{} {kind}", who.len()), &what, &text));
        } else {
            lines.extend(who.iter().map(|who| line(who, &what, &text)));
        }
    }
    lines
}

fn is_good(metric: &str, value: f64) -> bool {
    value == if metric == "esxi.overall_status" { 2.0 } else { 1.0 }
}

/// The word that came along with a failure; the alarms that came along with a status.
fn reason(seen: &Seen, metric: &str, series: &Series) -> Option<String> {
    let (metric, key) = match metric {
        "esxi.host.ssh.up" => ("esxi.host.ssh.failure", "reason"),
        "esxi.vcenter.up" => ("esxi.vcenter.failure", "reason"),
        "esxi.critical_service.status" => ("esxi.critical_service.problem", "reason"),
        "esxi.overall_status" => ("esxi.host.alarm", "alarm"),
        _ => return None,
    };
    let same: Vec<(&str, &str)> = series.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let now = seen
        .series(metric, &same)
        .filter(|(_, points)| points.back().is_some_and(|point| point.value.is_some()))
        .filter_map(|(series, _)| series.get(key).map(String::as_str));
    let words: Vec<&str> = now.collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn line(who: &str, what: &str, text: &str) -> String {
    // With a name of usual length it fits into 80 columns.
    format!("{}  {who:<16} {what:<14} {text}", now())
}

fn now() -> impl fmt::Display {
    Zoned::now().strftime("%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_with_many_hosts_is_one_line() {
        let hosts = |count: usize| (1..=count).map(|n| format!("h{n}")).collect::<Vec<_>>();
        let key = |what: &str, text: &str| (what.to_owned(), text.to_owned());
        let changes = [(key("nsxa", "not installed"), hosts(24)), (key("ntpd", "stopped"), hosts(2))];
        let lines = told(changes.into());
        let lines: Vec<_> =
            lines.iter().map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>()).collect();
        assert_eq!(
            lines,
            [
                vec!["24", "hosts", "nsxa", "not", "installed"],
                vec!["h1", "ntpd", "stopped"],
                vec!["h2", "ntpd", "stopped"]
            ]
        );
    }
}
