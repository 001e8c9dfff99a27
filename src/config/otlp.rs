//! The section `otlp`, and OpenTelemetry's variables.
//!
//! Metrics, traces and logs share one connection, which is set up like that of the metrics. Honoured:
//! - `OTEL_EXPORTER_OTLP_METRICS_…` before `OTEL_EXPORTER_OTLP_…`: `ENDPOINT`, `HEADERS`, `COMPRESSION`,
//!   `CERTIFICATE`, `CLIENT_CERTIFICATE`, `CLIENT_KEY`, `TIMEOUT` (ms); `PROTOCOL` may only be `grpc`.
//!   Their `TRACES_` and `LOGS_` variants are not, which is said in a note.
//! - `OTEL_SDK_DISABLED`, `OTEL_METRICS_EXPORTER`, `OTEL_TRACES_EXPORTER`, `OTEL_LOGS_EXPORTER` (`otlp` or
//!   `none`), `OTEL_METRIC_EXPORT_INTERVAL` (ms).
//! - `OTEL_TRACES_SAMPLER` `always_on`, `always_off`, `traceidratio` and their `parentbased_` forms, with
//!   `OTEL_TRACES_SAMPLER_ARG`: they say which share of the plain traces is kept. Slow and failed ones are
//!   kept as `otlp.traces.keep` says.
//! - `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` (percent-decoded).

use super::section::{At, By, Context, Section};
use super::values::{
    DAY, SECOND, boolean, bytes, duration, endpoint, integer, milliseconds, one_of, pairs, ratio, text,
};
use super::{Compression, OtlpConfig, SpoolConfig, TracesConfig};
use crate::accounts::Secret;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};

const PREFIX: &str = "OTEL_EXPORTER_OTLP";
/// A message of this many points stays below the 4 MiB that a Collector takes.
const MOST_POINTS: usize = 35_000;
const INTERVALS: RangeInclusive<Duration> = SECOND..=DAY;
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

pub(super) fn resolve(root: &mut Section<'_>, host_name: &str, state_dir: &Path) -> Option<OtlpConfig> {
    const COMPRESSIONS: &[(&str, Compression)] =
        &[("zstd", Compression::Zstd), ("gzip", Compression::Gzip), ("none", Compression::None)];
    let context = root.context;
    let path = |value: &_| context.path(value);
    let [metrics_of, all_of] =
        ["_METRICS", ""].map(|signal| move |what: &str| format!("{PREFIX}{signal}_{what}"));

    let mut section = root.section("otlp");
    let disabled = |text: &str| Ok(text.eq_ignore_ascii_case("true").then_some(false));
    let enabled = section.setting("enabled", boolean).env_maybe("OTEL_SDK_DISABLED", disabled).or(true).value;
    let place = section
        .setting("endpoint", endpoint)
        .env(&metrics_of("ENDPOINT"), endpoint)
        .env(&all_of("ENDPOINT"), endpoint)
        .or("http://localhost:4317".to_owned());
    let failover = failover(&mut section, &place);
    let compression = section
        .setting("compression", one_of(COMPRESSIONS))
        .env(&metrics_of("COMPRESSION"), one_of(COMPRESSIONS))
        .env(&all_of("COMPRESSION"), one_of(COMPRESSIONS))
        .or(Compression::Zstd)
        .value;
    let headers = headers(&mut section, &[metrics_of("HEADERS"), all_of("HEADERS")]);

    let mut tls = section.section("tls");
    let mut pem =
        |key, what| tls.setting(key, path).env(&metrics_of(what), path).env(&all_of(what), path).optional();
    let ca_file = pem("ca_file", "CERTIFICATE");
    let cert_file = pem("cert_file", "CLIENT_CERTIFICATE");
    let key_file = pem("key_file", "CLIENT_KEY");
    drop(tls);
    check_tls(context, &place, &failover, [&ca_file, &cert_file, &key_file]);

    let interval = section
        .setting("interval", duration(INTERVALS))
        .env("OTEL_METRIC_EXPORT_INTERVAL", milliseconds(INTERVALS))
        .or(SECOND * 60);
    let timeout = section
        .setting("timeout", duration(TIMEOUTS))
        .env(&metrics_of("TIMEOUT"), milliseconds(TIMEOUTS))
        .env(&all_of("TIMEOUT"), milliseconds(TIMEOUTS))
        .or((SECOND * 10).min(interval.value));
    if timeout.is_given() && !interval.bad && timeout.value > interval.value {
        context.problem_at(&timeout, "is longer than otlp.interval");
    }
    let max_points = section.setting("max_points", integer(1..=MOST_POINTS)).or(8000).value;

    let mut queue = section.section("queue");
    let queue_max_bytes = queue.setting("max_bytes", bytes(1 << 20..=1 << 36)).or(128 << 20).value;
    let queue_max_age = queue.setting("max_age", duration(SECOND..=DAY * 7)).or(SECOND * 3600).value;
    drop(queue);
    let spool = spool(&mut section, state_dir);
    let metrics = exporter(context, "OTEL_METRICS_EXPORTER").is_none_or(|on| on.value);
    let traces = traces(&mut section);
    let (logs, events) = logs(&mut section);
    let resource = resource(context, host_name);
    refuse_protocols(context, &[metrics_of("PROTOCOL"), all_of("PROTOCOL")]);
    note_other_signals(context);
    enabled.then_some(OtlpConfig {
        endpoint: place.value,
        failover,
        compression,
        headers,
        ca_file: ca_file.map(|file| file.value),
        cert_file: cert_file.map(|file| file.value),
        key_file: key_file.map(|file| file.value),
        interval: interval.value,
        timeout: timeout.value,
        max_points,
        queue_max_bytes,
        queue_max_age,
        spool,
        resource,
        traces,
        metrics,
        logs,
        events,
    })
}

fn failover(otlp: &mut Section<'_>, first: &At<String>) -> Vec<String> {
    let place = otlp.place_of("failover");
    let mut endpoints: Vec<String> = Vec::new();
    for element in otlp.list("failover").unwrap_or_default() {
        let Some(endpoint) = element.parse(endpoint) else { continue };
        if endpoint == first.value || endpoints.contains(&endpoint) {
            element.problem(format!("{endpoint} is named twice"));
        }
        endpoints.push(endpoint);
    }
    if !endpoints.is_empty() {
        otlp.context.record("otlp.failover", endpoints.join(", "), place);
    }
    endpoints
}

fn spool(otlp: &mut Section<'_>, state_dir: &Path) -> Option<SpoolConfig> {
    let mut section = otlp.section("spool");
    let context = section.context;
    let enabled = section.setting("enabled", boolean).or(true).value;
    let path = section.setting("path", |value| context.path(value)).or(state_dir.join("spool")).value;
    // Whatever is smaller could not hold one export of a large fleet.
    let max_bytes = section.setting("max_bytes", bytes(16 << 20..=1 << 40)).or(1 << 30).value;
    let max_age = section.setting("max_age", duration(SECOND * 60..=DAY * 7)).or(DAY).value;
    if !enabled {
        context
            .note("otlp.spool is off: what waits for the Collector is in memory alone, and lost at the end");
    }
    enabled.then_some(SpoolConfig { path, max_bytes: max_bytes as u64, max_age })
}

/// Of the variables the first one that is set; else the file's.
fn headers(section: &mut Section<'_>, variables: &[String]) -> Vec<(String, Secret)> {
    let context = section.context;
    let mut headers = BTreeMap::new();
    for (name, element) in section.map("headers") {
        let value = element.parse(text).and_then(|value| {
            let checked = check_header(name, &value);
            checked.map_err(|why| element.problem(why)).ok().map(|()| Secret::new(value))
        });
        headers.extend(value.map(|value| (name.to_owned(), value)));
    }
    let variable = variables.iter().find_map(|name| Some((name, context.variable(name)?)));
    let mut by = section.place_of("headers");
    if let Some((name, text)) = variable {
        by = By::Variable(name.clone());
        headers.clear();
        match pairs(&super::file::Value::Loose(text)) {
            Ok(pairs) => {
                for (name, value) in pairs {
                    let name = name.to_ascii_lowercase();
                    if let Err(why) = check_header(&name, &value) {
                        context.problem(by.clone(), "", why);
                    }
                    headers.insert(name, Secret::new(value));
                }
            }
            Err(why) => context.problem(by.clone(), "", why),
        }
    }
    if !headers.is_empty() {
        let shown: Vec<_> = headers.keys().map(|name| format!("{name}=***")).collect();
        context.record("otlp.headers", shown.join(","), by);
    }
    headers.into_iter().collect()
}

fn check_header(name: &str, value: &str) -> Result<(), String> {
    let key = MetadataKey::<Ascii>::from_bytes(name.as_bytes());
    if name.bytes().any(|b| b.is_ascii_uppercase()) || key.is_err() {
        return Err(format!(
            "{name:?} is no gRPC header: lower-case letters, digits, '-', '_', '.', not …-bin"
        ));
    }
    let value = value.parse::<MetadataValue<Ascii>>();
    value.map(|_| ()).map_err(|_| format!("the value of {name} has other than visible ASCII characters"))
}

fn check_tls(
    context: &Context<'_>,
    place: &At<String>,
    failover: &[String],
    files: [&Option<At<PathBuf>>; 3],
) {
    if let Some(file) = files.into_iter().flatten().next()
        && [&place.value].into_iter().chain(failover).all(|endpoint| endpoint.starts_with("http://"))
        && !place.bad
    {
        let message = format!("is given, but the endpoint {} is without TLS; write https://", place.value);
        context.problem_at(file, message);
    }
    let [ca_file, cert_file, key_file] = files;
    for certificates in [ca_file, cert_file].into_iter().flatten() {
        check_certificates(context, certificates);
    }
    if let Some(file) = key_file
        && let Err(e) = PrivateKeyDer::from_pem_file(&file.value)
    {
        context.problem_at(file, format!("{}: {}", file.value.display(), pem_problem(e, "private key")));
    }
    match (cert_file, key_file) {
        (Some(file), None) => context.problem_at(file, "needs otlp.tls.key_file, too"),
        (None, Some(file)) => context.problem_at(file, "needs otlp.tls.cert_file, too"),
        _ => {}
    }
}

/// Reports a file that does not hold certificates.
fn check_certificates(context: &Context<'_>, file: &At<PathBuf>) {
    let all = CertificateDer::pem_file_iter(&file.value).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let problem = match all {
        Ok(all) if all.is_empty() => "holds no certificate in PEM form".to_owned(),
        Ok(_) => return,
        Err(e) => pem_problem(e, "certificate"),
    };
    context.problem_at(file, format!("{}: {problem}", file.value.display()));
}

fn pem_problem(error: rustls::pki_types::pem::Error, wanted: &str) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(e) => format!("cannot be read: {e}"),
        rustls::pki_types::pem::Error::NoItemsFound => format!("holds no {wanted} in PEM form"),
        other => format!("holds no {wanted} in PEM form: {other}"),
    }
}

fn exporter(context: &Context<'_>, name: &str) -> Option<At<bool>> {
    const EXPORTERS: &[(&str, bool)] = &[("otlp", true), ("none", false)];
    let value = super::file::Value::Loose(context.variable(name)?);
    let by = By::Variable(name.to_owned());
    match one_of(EXPORTERS)(&value) {
        Ok(value) => Some(At { value, key: name.to_owned(), by, bad: false }),
        Err(why) => {
            context.problem(by, "", why);
            None
        }
    }
}

/// `enabled` of a signal. Its variable switches off, but not on: `otlp` is the specification's default.
fn switch(section: &mut Section<'_>, variable: &str) -> bool {
    let off = exporter(section.context, variable).filter(|on| !on.value);
    let setting = section.setting("enabled", boolean);
    setting.env_maybe(variable, |_| Ok(off.as_ref().map(|_| false))).or(true).value
}

/// Whether the agent's own log, and whether events are exported.
fn logs(otlp: &mut Section<'_>) -> (bool, bool) {
    let mut section = otlp.section("logs");
    let enabled = switch(&mut section, "OTEL_LOGS_EXPORTER");
    let events = section.setting("events", boolean).or(true).value;
    let records = section.setting("records", boolean).or(false).value;
    (enabled && records, enabled && events)
}

fn traces(otlp: &mut Section<'_>) -> Option<TracesConfig> {
    let mut section = otlp.section("traces");
    let context = section.context;
    let enabled = switch(&mut section, "OTEL_TRACES_EXPORTER");
    let mut keep = section.section("keep");
    let slower_than = keep.setting("slower_than", duration(Duration::ZERO..=DAY)).or(SECOND * 5).value;
    let errors = keep.setting("errors", boolean).or(true).value;
    let argument = context.variable("OTEL_TRACES_SAMPLER_ARG");
    let share = |sampler: &str| match sampler.trim_start_matches("parentbased_") {
        "always_on" => Ok(Some(1.0)),
        "always_off" => Ok(Some(0.0)),
        "traceidratio" => match &argument {
            Some(argument) => ratio(&super::file::Value::Loose(argument.clone()))
                .map(Some)
                .map_err(|why| format!("its OTEL_TRACES_SAMPLER_ARG {why}")),
            None => Ok(Some(1.0)),
        },
        _ => Err(format!("{sampler:?} is none of always_on, always_off, traceidratio and parentbased_…")),
    };
    let ratio = keep.setting("ratio", ratio).env_maybe("OTEL_TRACES_SAMPLER", share).or(0.05).value;
    enabled.then_some(TracesConfig { slower_than, errors, ratio })
}

fn resource(context: &Context<'_>, host_name: &str) -> Vec<(String, String)> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let given = context.variable(ATTRIBUTES).map(|text| pairs(&super::file::Value::Loose(text)));
    let given = given.unwrap_or_else(|| Ok(Vec::new())).unwrap_or_else(|why| {
        context.problem(By::Variable(ATTRIBUTES.to_owned()), "", why);
        Vec::new()
    });
    let mut all = BTreeMap::from([
        ("service.name".to_owned(), "esxi-otel-agent".to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id".to_owned(), host_name.to_owned()),
    ]);
    all.extend(given);
    all.extend(context.variable("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
    all.retain(|_, value| !value.is_empty());
    all.into_iter().collect()
}

fn refuse_protocols(context: &Context<'_>, variables: &[String]) {
    let Some((name, protocol)) = variables.iter().find_map(|name| Some((name, context.variable(name)?)))
    else {
        return;
    };
    if protocol != "grpc" {
        let message = format!("{protocol:?} is not supported; only grpc is");
        context.problem(By::Variable(name.clone()), "", message);
    }
}

fn note_other_signals(context: &Context<'_>) {
    for signal in ["TRACES", "LOGS"] {
        for what in [
            "ENDPOINT",
            "HEADERS",
            "COMPRESSION",
            "CERTIFICATE",
            "CLIENT_CERTIFICATE",
            "CLIENT_KEY",
            "TIMEOUT",
        ] {
            let name = format!("{PREFIX}_{signal}_{what}");
            if context.variable(&name).is_some() {
                context
                    .note(format!("{name} is not honoured: metrics, traces and logs share one connection"));
            }
        }
    }
}
