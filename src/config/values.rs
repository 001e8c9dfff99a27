//! How single values are read and written. Each reader says what it found and what is allowed.

use super::file::Value;
use super::{Compression, HostKeyPolicy, NotInstalled, ProxyUrl};
use crate::inventory::{AddressTemplate, SdUrl, Shard};
use jiff::SignedDuration;
use jiff::fmt::friendly::{Spacing, SpanPrinter};
use percent_encoding::percent_decode_str;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// For limits and defaults.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// For limits and defaults.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A value as it is named in a problem.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Text(text) | Value::Loose(text) => quoted(text),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a section".to_owned(),
    }
}

pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{dots}")
}

/// The words of YAML 1.1, too: the Python exporter's reader took them.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Text(text) | Value::Loose(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(format!("{} is neither true nor false", quoted(text))),
        },
        _ => Err(format!("{} is neither true nor false", describe(value))),
    }
}

pub(super) fn integer<T>(allowed: RangeInclusive<T>) -> impl Fn(&Value) -> Result<T, String>
where
    T: TryFrom<i128> + PartialOrd + Show,
{
    move |value| {
        let number = match value {
            Value::Int(number) => *number,
            Value::Loose(text) => {
                text.parse().map_err(|_| format!("{} is no whole number", describe(value)))?
            }
            _ => return Err(format!("{} is no whole number", describe(value))),
        };
        let fitting = T::try_from(number).ok().filter(|number| allowed.contains(number));
        fitting.ok_or_else(|| out_of_range(&number.to_string(), &allowed))
    }
}

fn out_of_range<T: Show>(found: &str, allowed: &RangeInclusive<T>) -> String {
    format!("{found} is out of range; allowed are {} to {}", allowed.start().show(), allowed.end().show())
}

pub(super) fn ratio(value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Int(number) => *number as f64,
        Value::Float(number) => *number,
        Value::Loose(text) => text.parse().map_err(|_| format!("{} is no number", describe(value)))?,
        _ => return Err(format!("{} is no number", describe(value))),
    };
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err(out_of_range(&number.to_string(), &(0.0..=1.0)))
    }
}

/// Durations with their unit: `500ms`, `30s`, `5m`, `1h30m`.
pub(super) fn duration(allowed: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, String> {
    move |value| {
        let text = match value {
            Value::Text(text) | Value::Loose(text) => text,
            Value::Int(_) | Value::Float(_) => return Err(without_unit(&describe(value))),
            _ => return Err(format!("{} is no duration; write 30s, 5m or 1h30m", describe(value))),
        };
        if text.parse::<f64>().is_ok() {
            return Err(without_unit(text));
        }
        let parsed = text.parse::<SignedDuration>().ok().and_then(|parsed| Duration::try_from(parsed).ok());
        let parsed =
            parsed.ok_or_else(|| format!("{} is no duration; write 30s, 5m or 1h30m", quoted(text)))?;
        if allowed.contains(&parsed) { Ok(parsed) } else { Err(out_of_range(text, &allowed)) }
    }
}

fn without_unit(number: &str) -> String {
    format!("{number} has no unit; write {number}s for seconds, {number}m for minutes")
}

/// Milliseconds without a unit, as OpenTelemetry's variables have them.
pub(super) fn milliseconds(allowed: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, String> {
    move |value| {
        let number = integer(0..=u64::MAX)(value)
            .map_err(|_| format!("{} is no number of milliseconds", describe(value)))?;
        let parsed = Duration::from_millis(number);
        if allowed.contains(&parsed) {
            Ok(parsed)
        } else {
            Err(out_of_range(&format!("{number} ms"), &allowed))
        }
    }
}

/// A number of bytes: `67108864`, `64MiB`.
pub(super) fn bytes(allowed: RangeInclusive<usize>) -> impl Fn(&Value) -> Result<usize, String> {
    move |value| {
        let no_size = || format!("{} is no size; write 64MiB, 1GiB or a number of bytes", describe(value));
        let number = match value {
            Value::Int(number) => Some(*number),
            Value::Text(text) | Value::Loose(text) => {
                let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
                let (digits, unit) = text.split_at_checked(split).ok_or_else(no_size)?;
                let shift = match unit.trim() {
                    "" | "B" => 0,
                    "KiB" => 10,
                    "MiB" => 20,
                    "GiB" => 30,
                    _ => return Err(no_size()),
                };
                digits.parse::<i128>().ok().and_then(|n| n.checked_mul(1 << shift))
            }
            _ => None,
        };
        let number = number.ok_or_else(no_size)?;
        let fitting = usize::try_from(number).ok().filter(|number| allowed.contains(number));
        let mebibytes = |size: &usize| format!("{}MiB", size >> 20);
        let range = || format!("{} to {}", mebibytes(allowed.start()), mebibytes(allowed.end()));
        fitting.ok_or_else(|| format!("{} is out of range; allowed are {}", describe(value), range()))
    }
}

pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text.is_empty() => Err("must not be empty".to_owned()),
        Value::Text(text) | Value::Loose(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            Err(format!("{} is no text here; put it in quotes", describe(value)))
        }
        _ => Err(format!("{} is no text", describe(value))),
    }
}

/// Text that has a form of its own.
pub(super) fn parsed<T>(value: &Value) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text(value)?.parse().map_err(|e: T::Err| e.to_string())
}

pub(super) fn one_of<T: Copy>(allowed: &'static [(&'static str, T)]) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let found = match value {
            Value::Text(text) | Value::Loose(text) => allowed.iter().find(|(word, _)| word == text),
            _ => None,
        };
        let words = || allowed.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        found.map(|(_, value)| *value).ok_or_else(|| format!("{} is none of {}", describe(value), words()))
    }
}

pub(super) fn listen(value: &Value) -> Result<SocketAddr, String> {
    let text = text(value)?;
    let wrong = |_| format!("{} is no address to listen on; write 0.0.0.0:9666 or [::]:9666", quoted(&text));
    text.parse().map_err(wrong)
}

/// One or several texts.
pub(super) fn texts(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::List(list) if list.is_empty() => Err("must not be empty".to_owned()),
        Value::List(list) => list.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// An OTLP endpoint: scheme, host and port, nothing else.
pub(super) fn endpoint(value: &Value) -> Result<String, String> {
    let text = text(value)?;
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    // What stands before an @ may be a password.
    if text.contains('@') {
        return Err("must not hold a user name or password; put them into otlp.headers".to_owned());
    }
    if !matches!(scheme.as_deref(), Some("http" | "https")) {
        let bare = text.rsplit_once("://").map_or(text.as_str(), |(_, rest)| rest);
        return Err(format!("{} has no scheme; write http://{bare} or https://{bare}", quoted(&text)));
    }
    let url: url::Url = text.parse().map_err(|e| format!("{} is no endpoint: {e}", quoted(&text)))?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{} has a path; OTLP over gRPC wants http://host:port", quoted(&text)));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// `key=value,key=value`, the values percent-decoded: OpenTelemetry's form of headers and resource
/// attributes (W3C Baggage without its properties). Errors don't repeat values, which may be secrets.
pub(super) fn pairs(value: &Value) -> Result<Vec<(String, String)>, String> {
    let text = text(value)?;
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').ok_or("is no list of key=value, separated by commas")?;
        let value = percent_decode_str(value.trim()).decode_utf8();
        let value = value.map_err(|_| format!("the value of {} is no UTF-8 text", key.trim()))?;
        match key.trim() {
            "" => Err("has a value without a key".to_owned()),
            key => Ok((key.to_owned(), value.into_owned())),
        }
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

/// How a value is shown in the report of `check`: as a file would have it.
pub(super) trait Show {
    fn show(&self) -> String;
}

macro_rules! show_by_display {
    ($($type:ty),+) => {
        $(impl Show for $type {
            fn show(&self) -> String {
                self.to_string()
            }
        })+
    };
}

show_by_display!(
    bool,
    u16,
    u32,
    u64,
    usize,
    f64,
    String,
    SocketAddr,
    AddressTemplate,
    ProxyUrl,
    SdUrl,
    Shard
);

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Show for Duration {
    fn show(&self) -> String {
        SpanPrinter::new().spacing(Spacing::None).unsigned_duration_to_string(self)
    }
}

impl Show for HostKeyPolicy {
    fn show(&self) -> String {
        match self {
            HostKeyPolicy::AcceptNew => "accept-new",
            HostKeyPolicy::Strict => "strict",
            HostKeyPolicy::Insecure => "insecure",
        }
        .to_owned()
    }
}

impl Show for NotInstalled {
    fn show(&self) -> String {
        match self {
            NotInstalled::Stopped => "stopped",
            NotInstalled::Absent => "absent",
        }
        .to_owned()
    }
}

impl Show for Compression {
    fn show(&self) -> String {
        match self {
            Compression::Zstd => "zstd",
            Compression::Gzip => "gzip",
            Compression::None => "none",
        }
        .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(1_000_000);

    fn loose(text: &str) -> Value {
        Value::Loose(text.to_owned())
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h30m", 5_400_000)] {
            let parsed = duration(ANY)(&loose(text)).unwrap();
            assert_eq!(parsed, Duration::from_millis(millis), "{text}");
            assert_eq!(parsed.show(), text);
        }
        for (value, problem) in [
            (Value::Int(30), "30 has no unit; write 30s for seconds, 30m for minutes"),
            (loose("1.5"), "1.5 has no unit; write 1.5s for seconds, 1.5m for minutes"),
            (loose("-30s"), r#""-30s" is no duration; write 30s, 5m or 1h30m"#),
            (loose("soon"), r#""soon" is no duration; write 30s, 5m or 1h30m"#),
            (Value::Bool(true), "true is no duration; write 30s, 5m or 1h30m"),
        ] {
            assert_eq!(duration(ANY)(&value), Err(problem.to_owned()), "{value:?}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        let size = |text| bytes(1 << 20..=1 << 30)(&loose(text));
        assert_eq!(
            (size("2000000"), size("64MiB"), size("1 GiB")),
            (Ok(2_000_000), Ok(64 << 20), Ok(1 << 30))
        );
        assert_eq!(size("64MB").unwrap_err(), r#""64MB" is no size; write 64MiB, 1GiB or a number of bytes"#);
        assert_eq!(size("0").unwrap_err(), r#""0" is out of range; allowed are 1MiB to 1024MiB"#);
    }

    #[test]
    fn pairs_are_decoded_and_problems_keep_the_values_to_themselves() {
        let found = pairs(&loose("a=b%2Cc, d = e=f ,,")).unwrap();
        assert_eq!(found, [("a".into(), "b,c".into()), ("d".into(), "e=f".into())]);
        for text in ["hunter2", "=hunter2", "a=hunter2%ff"] {
            assert!(!pairs(&loose(text)).unwrap_err().contains("hunter2"));
        }
    }
}
