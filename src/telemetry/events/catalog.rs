//! The one list of all events; `docs/events.md` is made from it.

use std::fmt::Write;

/// How bad it is. OpenTelemetry's numbers are given by the teller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It is over, or was meant.
    Info,
    /// Somebody should look at it some time.
    Warn,
    /// Somebody should look at it now.
    Error,
}

impl Severity {
    /// As OpenTelemetry and the console write it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// A kind of event.
#[derive(Debug, PartialEq, Eq)]
pub struct EventDef {
    /// The event's name.
    pub name: &'static str,
    /// Its severity, unless the rule says otherwise.
    pub severity: Severity,
    /// What it means, one sentence.
    pub meaning: &'static str,
    /// The keys of its attributes.
    pub attributes: &'static [&'static str],
}

macro_rules! events {
    ($($id:ident = $name:literal, $severity:ident, [$($attribute:literal),*], $meaning:literal;)+) => {
        $(
            #[doc = $meaning]
            pub static $id: EventDef = EventDef {
                name: $name,
                severity: Severity::$severity,
                meaning: $meaning,
                attributes: &[$($attribute),*],
            };
        )+

        /// All of them, in the order of the documentation.
        pub static ALL: &[&EventDef] = &[$(&$id),+];
    };
}

events! {
    SERVICE_STOPPED = "esxi.service.stopped", Warn, ["hostsystem", "service", "site"],
        "A critical service of a host has stopped.";
    SERVICE_RUNNING = "esxi.service.running", Info, ["hostsystem", "service", "site"],
        "A critical service runs again.";
    SERVICE_UNKNOWN = "esxi.service.unknown", Warn, ["hostsystem", "reason", "service", "site"],
        "It can no longer be told whether a critical service runs, with the reason.";
    SERVICE_KNOWN = "esxi.service.known", Info, ["hostsystem", "reason", "service", "site"],
        "It can be told again whether a critical service runs, with the reason that is over.";
    HOST_UNREACHABLE = "esxi.host.unreachable", Warn, ["hostsystem", "reason", "site"],
        "The SSH visit of a host failed, or fails for another reason now.";
    HOST_REACHABLE = "esxi.host.reachable", Info, ["hostsystem", "site"],
        "The SSH visit of a host succeeded again.";
    HOST_KEY_CHANGED = "esxi.host.key_changed", Error, ["hostsystem", "reason", "site"],
        "A host shows another SSH host key than the known one, or a revoked one. It gets no password.";
    HOST_STATUS = "esxi.host.status_changed", Warn, ["hostsystem", "site", "status", "vcenter"],
        "The overall status of a host has changed: ERROR when it is red now, INFO when it is green. The text names the alarms.";
    ALARM_TRIGGERED = "esxi.host.alarm_triggered", Warn, ["address", "alarm", "hostsystem", "severity", "site", "vcenter"],
        "An alarm of a host was triggered: ERROR when it is a red one.";
    ALARM_CLEARED = "esxi.host.alarm_cleared", Info, ["address", "alarm", "hostsystem", "severity", "site", "vcenter"],
        "An alarm of a host is over.";
    HOST_CONNECTION = "esxi.host.connection_changed", Warn, ["address", "hostsystem", "site", "state", "vcenter"],
        "A host is in another state of connection to its vCenter: INFO when it is connected again.";
    VCENTER_UNREACHABLE = "esxi.vcenter.unreachable", Error, ["reason", "site", "vcenter"],
        "The poll of a vCenter failed, or fails for another reason now.";
    VCENTER_REACHABLE = "esxi.vcenter.reachable", Info, ["site", "vcenter"],
        "The poll of a vCenter succeeded again.";
    FIRST_ROUND = "esxi.agent.first_failures", Warn, [],
        "Hosts or vCenters whose first visit or poll after the start failed: how many of them, by reason, with an example each.";
    FLAPPING = "esxi.flapping", Warn, ["event"],
        "Something has changed so often that its changes are no longer told until it is stable, with the name of its last event and that event's own attributes.";
    GUARD_CLOSED = "esxi.agent.guard_closed", Error, [],
        "So many logins were rejected that a credential is no longer tried.";
    GUARD_OPENED = "esxi.agent.guard_opened", Info, [],
        "Credentials that were not tried are tried again.";
    GUARD_UNUSABLE = "esxi.agent.guard_unusable", Error, [],
        "What logins were tried can't be written down, so no password login is tried.";
    GUARD_USABLE = "esxi.agent.guard_usable", Info, [],
        "What logins were tried can be written down again.";
    CONFIG_APPLIED = "esxi.agent.config_applied", Info, [],
        "A changed configuration was taken over.";
    CONFIG_REFUSED = "esxi.agent.config_refused", Warn, [],
        "A changed configuration can't be used, the old one goes on; the text says why, with the places.";
    CONFIG_GOOD = "esxi.agent.config_good", Info, [],
        "The configuration's files can be used again.";
    POINTS_DROPPED = "esxi.agent.points_dropped", Error, ["points"],
        "Points were lost: too old, no room, damaged on disk, or refused by the Collector. The log and `esxi.agent.export.drops` say why.";
    EVENTS_LOST = "esxi.agent.events_lost", Error, ["events"],
        "More changed at once than could be told.";
}

/// The text of `docs/events.md`.
pub fn documentation() -> String {
    let mut text = String::from(INTRODUCTION);
    for event in ALL {
        let attributes: Vec<_> = event.attributes.iter().map(|key| format!("`{key}`")).collect();
        let EventDef { name, severity, meaning, .. } = event;
        let _ = writeln!(text, "| `{name}` | {} | {} | {meaning} |", severity.word(), attributes.join(", "));
    }
    text
}

const INTRODUCTION: &str = "\
# Events

<!-- Made from the code. To refresh: UPDATE_DOCS=1 cargo test --lib telemetry::events -->

What changed, once, in words: OpenTelemetry log records with an event name, over OTLP, and lines on the console.
Switched off by `otlp.logs.events: false`; the console has them all the same, those of severity INFO with `-v`.
Of one kind it gets at most 100 lines a minute, and then the number of those that got none.

- The text is a whole sentence. The attributes are those of the metric that changed, so that a dashboard finds the
  events of a host by the labels that it has already.
- `TraceId` and `SpanId` are those of the visit or poll that saw the change, and its trace is always kept.
- A start tells nothing of what it finds: one event says which first visits failed, and from then on changes are told.
- What changes more than 5 times within 10 minutes is *flapping*: that is told once, and then nothing until it has been
  stable for 10 minutes; then its state is told, with the number of changes that were not.
  `esxi.agent.events` counts what was told, suppressed and lost.
- What changed while a host or vCenter was away is told when it is back, within a day.
- A target that leaves the inventory leaves in silence.

The agent's own log goes out the same way only if `otlp.logs.records` says so.

| event | severity | attributes | meaning |
|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_attributes_and_meanings_follow_the_rules() {
        let names: HashSet<_> = ALL.iter().map(|event| event.name).collect();
        assert_eq!(names.len(), ALL.len(), "no two events share a name");
        for event in ALL {
            let name = event.name;
            assert!(name.starts_with("esxi."), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.'), "{name}");
            assert!(event.meaning.ends_with('.') && !event.meaning.contains(['|', '\n']), "{name}");
            assert!(event.attributes.is_sorted(), "{name}");
        }
    }

    #[test]
    fn the_documentation_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md");
        let wanted = documentation();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &wanted).expect("docs/events.md can be written");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        let refresh = "docs/events.md is stale; refresh it: UPDATE_DOCS=1 cargo test --lib telemetry::events";
        assert!(found == wanted, "{refresh}");
    }
}
