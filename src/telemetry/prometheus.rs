//! The page for Prometheus, from the readings directly: in text format 0.0.4 or OpenMetrics 1.0, whichever
//! the scraper asks for.
//!
//! Rendered here, since no library does both: `prometheus-client` speaks OpenMetrics only, the SDK's bridge
//! 0.0.4 only and needs 1.8 s for 230,000 series. The page is made chunk by chunk while it is being sent.

use super::process;
use crate::metric::{Kind, MetricDef, Sample};
use crate::readings::{Readings, Snapshot};
use crate::stats::Stats;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

/// Bytes of a chunk, more or less.
const CHUNK: usize = 64 << 10;

/// A family up to this size is sorted, for people and for diffs; beyond it only machines read.
const SORTED: usize = 2_000;

/// An exposition format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics text 1.0.
    OpenMetrics,
}

impl Format {
    /// What a request's `Accept` asks for; the text format in case of doubt.
    pub fn negotiate(accept: &str) -> Self {
        let mut text = 0.0f32;
        let mut open_metrics = 0.0f32;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let mut quality: f32 = 1.0;
            let mut version = None;
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                match key.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match (name, version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => {
                    open_metrics = quality.max(open_metrics)
                }
                ("text/plain", None | Some("0.0.4")) => text = quality.max(text),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type` of a page.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One page: an iterator of its chunks, each rendered when it is asked for.
#[derive(Debug)]
pub struct Page {
    format: Format,
    parts: Vec<Arc<[Sample]>>,
    /// Families in the order of the catalogue, each with the places of its samples.
    families: std::vec::IntoIter<Family>,
    current: Option<(Family, usize)>,
    ended: bool,
}

#[derive(Debug)]
struct Family {
    def: &'static MetricDef,
    places: Vec<(u32, u32)>,
}

impl Page {
    /// Everything that is known now. `defs` gives the order of the families; others come last.
    pub fn new(format: Format, defs: &[&'static MetricDef], readings: &Readings, stats: &Stats) -> Self {
        let mut own = stats.samples();
        own.extend(process::samples());
        Self::of(format, defs, readings.snapshot(), own)
    }

    fn of(format: Format, defs: &[&'static MetricDef], snapshot: Snapshot, own: Vec<Sample>) -> Self {
        let mut parts = snapshot.parts;
        parts.push(own.into());
        let mut families: Vec<_> = defs.iter().map(|def| Family { def, places: vec![] }).collect();
        // By address, which is a lot cheaper than by name: a definition is a static.
        let mut by_def: HashMap<*const MetricDef, usize> =
            defs.iter().zip(0..).map(|(def, place)| (std::ptr::from_ref(*def), place)).collect();
        for (p, part) in (0u32..).zip(&parts) {
            for (s, sample) in (0u32..).zip(part.iter()) {
                let place = *by_def.entry(std::ptr::from_ref(sample.def)).or_insert(families.len());
                if place == families.len() {
                    families.push(Family { def: sample.def, places: vec![] });
                }
                if let Some(family) = families.get_mut(place) {
                    family.places.push((p, s));
                }
            }
        }
        families.retain(|family| !family.places.is_empty());
        for family in families.iter_mut().filter(|family| family.places.len() <= SORTED) {
            family.places.sort_by_key(|place| at(&parts, *place).map(|sample| &sample.attributes));
        }
        Self { format, parts, families: families.into_iter(), current: None, ended: false }
    }
}

fn at(parts: &[Arc<[Sample]>], (part, sample): (u32, u32)) -> Option<&Sample> {
    parts.get(part as usize)?.get(sample as usize)
}

impl Iterator for Page {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut text = String::with_capacity(CHUNK + 1_024);
        while text.len() < CHUNK {
            let Some((family, next)) = &mut self.current else {
                match self.families.next() {
                    Some(family) => {
                        write_head(&mut text, self.format, family.def);
                        self.current = Some((family, 0));
                        continue;
                    }
                    None => {
                        if self.format == Format::OpenMetrics {
                            text.push_str("# EOF\n");
                        }
                        self.ended = true;
                        break;
                    }
                }
            };
            let name = family.def.prometheus_name();
            while text.len() < CHUNK {
                let Some(place) = family.places.get(*next) else {
                    self.current = None;
                    break;
                };
                *next += 1;
                if let Some(sample) = at(&self.parts, *place) {
                    write_sample(&mut text, &name, sample);
                }
            }
        }
        (!text.is_empty()).then(|| Bytes::from(text))
    }
}

fn write_head(text: &mut String, format: Format, def: &MetricDef) {
    let name = def.prometheus_name();
    // OpenMetrics names a counter's family without the suffix of its samples.
    let name = match (format, def.kind) {
        (Format::OpenMetrics, Kind::Counter) => name.strip_suffix("_total").unwrap_or(&name),
        _ => &name,
    };
    text.push_str("# HELP ");
    text.push_str(name);
    text.push(' ');
    escape(text, def.help, format == Format::OpenMetrics);
    let kind = match def.kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    };
    let _ = write!(text, "\n# TYPE {name} {kind}\n");
    if let (Format::OpenMetrics, Some(unit)) = (format, def.unit.prometheus_suffix()) {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
}

fn write_sample(text: &mut String, name: &str, sample: &Sample) {
    text.push_str(name);
    for (i, (key, value)) in sample.attributes.iter().enumerate() {
        text.push(if i == 0 { '{' } else { ',' });
        if key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            text.push_str(key);
        } else {
            text.extend(key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
        }
        text.push_str("=\"");
        escape(text, value, true);
        text.push('"');
    }
    if sample.attributes.iter().len() > 0 {
        text.push('}');
    }
    text.push(' ');
    write_value(text, sample.value);
    text.push('\n');
}

/// Both formats write numbers as Go and C do; Rust differs in the names of what is no number.
fn write_value(text: &mut String, value: f64) {
    let _ = match value {
        value if value.is_nan() => write!(text, "NaN"),
        f64::INFINITY => write!(text, "+Inf"),
        f64::NEG_INFINITY => write!(text, "-Inf"),
        value => write!(text, "{value}"),
    };
}

/// Text format 0.0.4 does not escape quotes in a help text, all else does.
fn escape(text: &mut String, raw: &str, quotes: bool) {
    if !raw.bytes().any(|b| matches!(b, b'\\' | b'\n' | b'"')) {
        return text.push_str(raw);
    }
    let mut rest = raw;
    let special = |c: char| c == '\\' || c == '\n' || (quotes && c == '"');
    while let Some(place) = rest.find(special) {
        let (plain, tail) = rest.split_at(place);
        text.push_str(plain);
        let mut tail = tail.chars();
        match tail.next() {
            Some('\n') => text.push_str("\\n"),
            Some(c) => text.extend(['\\', c]),
            None => {}
        }
        rest = tail.as_str();
    }
    text.push_str(rest);
}

#[cfg(test)]
#[path = "prometheus_tests.rs"]
mod tests;
