//! Which change of a reading is which event. Metrics are known here by their names: a collector need not
//! know that people are told of its series.

use super::Event;
use super::catalog::{self, EventDef, Severity};
use crate::metric::{Attributes, MetricDef};
use crate::outcome::FailureReason;
use crate::readings::{Readings, Transition};
use crate::target::TargetKind;
use std::collections::BTreeSet;

const SERVICE: &str = "esxi.critical_service.status";
const PROBLEM: &str = "esxi.critical_service.problem";
const STATUS: &str = "esxi.overall_status";
const ALARM: &str = "esxi.host.alarm";
const CONNECTION: &str = "esxi.host.connection_state";
const HOST_UP: &str = "esxi.host.ssh.up";
const HOST_FAILURE: &str = "esxi.host.ssh.failure";
const VCENTER_UP: &str = "esxi.vcenter.up";
const VCENTER_FAILURE: &str = "esxi.vcenter.failure";

/// All of them.
#[cfg(test)]
pub(super) const METRICS: &[&str] =
    &[SERVICE, PROBLEM, STATUS, ALARM, CONNECTION, HOST_UP, HOST_FAILURE, VCENTER_UP, VCENTER_FAILURE];

/// Alarms that are named in the text of an event.
const NAMED: usize = 10;

/// Whether changes of a metric can be events; in a first report only failures are.
pub(super) fn is_wanted(def: &MetricDef, is_first: bool) -> bool {
    match def.name {
        HOST_FAILURE | VCENTER_FAILURE => true,
        SERVICE | PROBLEM | STATUS | ALARM | CONNECTION | HOST_UP | VCENTER_UP => !is_first,
        _ => false,
    }
}

/// The event that a change is, if it is one.
pub(super) fn event(change: &Transition, readings: &Readings) -> Option<Event> {
    let of = |key| change.attributes.get(key).unwrap_or("?").to_owned();
    let (host, vcenter) = (of("hostsystem"), of("vcenter"));
    let now = change.after;
    let is_by = |reason: FailureReason| change.attributes.get("reason") == Some(reason.word());
    let seen = |def: &'static EventDef, is_good: bool, body: String| {
        Some(Event {
            def,
            severity: def.severity,
            is_good,
            is_return: is_good && change.before.is_none(),
            body,
            attributes: change.attributes.clone(),
            seen_by: change.seen_by,
        })
    };
    match change.def.name {
        // One that was asked about for the first time, as after a change of the configuration, has not changed.
        SERVICE if now == Some(0.0) && change.before.is_none() => None,
        SERVICE if now == Some(0.0) => {
            let body = format!("host {host}: service {} has stopped", of("service"));
            seen(&catalog::SERVICE_STOPPED, false, body)
        }
        SERVICE if now == Some(1.0) => seen(
            &catalog::SERVICE_RUNNING,
            true,
            format!("host {host}: service {} runs again", of("service")),
        ),
        // That is told as far as it is known: there is none.
        PROBLEM if is_by(FailureReason::NotInstalled) => None,
        // What has hung is left out for a while: no news, and nobody can tell as yet.
        PROBLEM if now.is_some() && is_by(FailureReason::SkippedHung) => None,
        PROBLEM if now.is_none() && is_unknown(change, readings) => None,
        PROBLEM if now.is_some() => {
            let body = format!("host {host}: service {} can't be told: {}", of("service"), of("reason"));
            seen(&catalog::SERVICE_UNKNOWN, false, body)
        }
        PROBLEM => {
            let body = format!("host {host}: service {} can be told again", of("service"));
            seen(&catalog::SERVICE_KNOWN, true, body)
        }
        HOST_FAILURE if now.is_some() => {
            let is_key = is_by(FailureReason::HostKeyChanged) || is_by(FailureReason::HostKeyRevoked);
            let def = if is_key { &catalog::HOST_KEY_CHANGED } else { &catalog::HOST_UNREACHABLE };
            seen(def, false, format!("host {host} is unreachable: {}", why(change, readings)))
        }
        HOST_UP if now == Some(1.0) => {
            seen(&catalog::HOST_REACHABLE, true, format!("host {host} answers again"))
        }
        VCENTER_FAILURE if now.is_some() => {
            let body = format!("vCenter {vcenter} is unreachable: {}", why(change, readings));
            seen(&catalog::VCENTER_UNREACHABLE, false, body)
        }
        VCENTER_UP if now == Some(1.0) => {
            seen(&catalog::VCENTER_REACHABLE, true, format!("vCenter {vcenter} answers again"))
        }
        ALARM if now.is_some() => {
            let mut event = seen(
                &catalog::ALARM_TRIGGERED,
                false,
                format!("host {host}: alarm {:?} ({})", of("alarm"), of("severity")),
            )?;
            if change.attributes.get("severity") == Some("red") {
                event.severity = Severity::Error;
            }
            Some(event)
        }
        // It has left together with its host.
        ALARM if !is_listed(change, readings, &host) => None,
        // It goes on with another severity.
        ALARM if alarms_of(change, readings, &host).contains(&of("alarm")) => None,
        ALARM => seen(&catalog::ALARM_CLEARED, true, format!("host {host}: alarm {:?} is over", of("alarm"))),
        CONNECTION if now == Some(1.0) => {
            let is_good = change.attributes.get("state") == Some("connected");
            let body = format!("host {host} is {} to its vCenter {vcenter}", of("state"));
            let mut event = seen(&catalog::HOST_CONNECTION, is_good, body)?;
            event.severity = if is_good { Severity::Info } else { Severity::Warn };
            Some(event)
        }
        STATUS => status(change, readings, &host, &vcenter),
        _ => None,
    }
}

/// What the damping goes by: a host that fails for one reason after the other is one thing that flaps.
pub(super) fn subject(change: &Transition) -> (&'static str, Attributes) {
    let (group, of) = match change.def.name {
        HOST_FAILURE | HOST_UP => (HOST_UP, &["hostsystem", "site"][..]),
        VCENTER_FAILURE | VCENTER_UP => (VCENTER_UP, &["site", "vcenter"][..]),
        PROBLEM => (PROBLEM, &["hostsystem", "service", "site"][..]),
        CONNECTION => (CONNECTION, &["hostsystem", "vcenter"][..]),
        ALARM => (ALARM, &["alarm", "hostsystem", "vcenter"][..]),
        name => return (name, change.attributes.clone()),
    };
    let pairs = of.iter().filter_map(|key| Some((*key, change.attributes.get(key)?)));
    (group, Attributes::new(pairs))
}

fn status(change: &Transition, readings: &Readings, host: &str, vcenter: &str) -> Option<Event> {
    let word = |value: f64| match value as i64 {
        2 => "green",
        1 => "yellow",
        0 => "red",
        _ => "gray",
    };
    let now = word(change.after?);
    let was = change.before.map(|before| format!(" (was {})", word(before))).unwrap_or_default();
    let alarms = if now == "green" { String::new() } else { alarms(change, readings, host) };
    let (is_good, severity) = match now {
        "green" => (true, Severity::Info),
        "red" => (false, Severity::Error),
        _ => (false, Severity::Warn),
    };
    Some(Event {
        def: &catalog::HOST_STATUS,
        severity,
        is_good,
        is_return: is_good && change.before.is_none(),
        body: format!("host {host} is {now}{was} at vCenter {vcenter}{alarms}"),
        attributes: change.attributes.with("status", now),
        seen_by: change.seen_by,
    })
}

/// The alarms of a host at this moment, as words.
fn alarms(change: &Transition, readings: &Readings, host: &str) -> String {
    let mut names: Vec<_> = alarms_of(change, readings, host).into_iter().collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    match (names.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!(": {}", names.join(", ")),
        (false, more) => format!(": {} and {more} more", names.join(", ")),
    }
}

fn alarms_of(change: &Transition, readings: &Readings, host: &str) -> BTreeSet<String> {
    let samples = readings.of_target(&change.target);
    let of_host = samples.iter().filter(|sample| {
        sample.def.name == ALARM && sample.value > 0.0 && sample.attributes.get("hostsystem") == Some(host)
    });
    of_host.filter_map(|sample| sample.attributes.get("alarm").map(str::to_owned)).collect()
}

/// Whether the vCenter still lists the host.
fn is_listed(change: &Transition, readings: &Readings, host: &str) -> bool {
    let samples = readings.of_target(&change.target);
    samples
        .iter()
        .any(|sample| sample.def.name == STATUS && sample.attributes.get("hostsystem") == Some(host))
}

/// Whether the service can't be told for another reason now.
fn is_unknown(change: &Transition, readings: &Readings) -> bool {
    let samples = readings.of_target(&change.target);
    samples.iter().any(|sample| {
        sample.def.name == PROBLEM
            && sample.attributes.get("reason") != Some(FailureReason::NotInstalled.word())
            && sample.attributes.get("service") == change.attributes.get("service")
    })
}

/// The one clear line, if it is still the one of this failure; else the word.
fn why(change: &Transition, readings: &Readings) -> String {
    let reason = change.attributes.get("reason").unwrap_or("?");
    let failure = readings.status(&change.target).and_then(|status| status.failure);
    match failure.filter(|failure| failure.reason.word() == reason) {
        Some(failure) => format!("{} ({reason})", failure.message),
        None => reason.to_owned(),
    }
}

/// For the summary of what failed first: the kind of target, and the reason.
pub(super) fn first_failure(change: &Transition) -> Option<(TargetKind, String)> {
    let reason = change.attributes.get("reason")?;
    (change.is_first && change.after.is_some()).then(|| (change.target.kind, reason.to_owned()))
}
