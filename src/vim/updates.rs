//! What a vCenter tells of its own accord: a property collector of one's own that watches hosts and a
//! collector of events, and the answers of `WaitForUpdatesEx`. No I/O.
//!
//! Since API 5.0 a server need not tell of changes of `overallStatus`, so it is watched and not relied on;
//! a change of an alarm's status is an event, of which it does tell.

use super::model::Reference;
use super::property::host_traversal;
use super::soap::{self, Method, NoResult, ServiceContent};
use super::xml::{Cursor, Element, Unreadable};
use std::collections::HashSet;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Properties of hosts whose changes are worth a read.
pub const WATCHED: [&str; 5] =
    ["name", "overallStatus", "parent", "runtime.connectionState", "runtime.inMaintenanceMode"];

/// How many of the latest events the server shows. All of them come with each new one.
pub const EVENTS_SHOWN: usize = 20;

/// Most hosts of one answer; a server sends news of about 100.
const MAX_HOSTS: usize = 100_000;
/// Longest version, bytes.
const MAX_VERSION: usize = 1024;

/// The request for a property collector of one's own.
pub fn create_property_collector(service: &ServiceContent) -> Zeroizing<String> {
    soap::request(Method::CreatePropertyCollector, &service.property_collector, "")
}

/// The request that ends it, and its filters.
pub fn destroy_property_collector(collector: &Reference) -> Zeroizing<String> {
    soap::request(Method::DestroyPropertyCollector, collector, "")
}

/// The request that makes a property collector watch all hosts below the root.
pub fn watch_hosts(service: &ServiceContent, collector: &Reference) -> Zeroizing<String> {
    let mut spec = String::from("<spec><propSet><type>HostSystem</type>");
    for path in WATCHED {
        spec.push_str(&soap::element("pathSet", path));
    }
    spec.push_str("</propSet>");
    host_traversal(&mut spec, service);
    spec.push_str("</spec><partialUpdates>false</partialUpdates>");
    soap::request(Method::CreateFilter, collector, &spec)
}

/// The request that makes a property collector watch the latest events of a collector of events.
pub fn watch_events(collector: &Reference, events: &Reference) -> Zeroizing<String> {
    let object = soap::reference("obj", events);
    let spec = format!(
        "<spec><propSet><type>EventHistoryCollector</type><pathSet>latestPage</pathSet></propSet>\
         <objectSet>{object}</objectSet></spec><partialUpdates>false</partialUpdates>"
    );
    soap::request(Method::CreateFilter, collector, &spec)
}

/// The request for a collector of changes of alarms, from `since` on (as `CurrentTime` says it).
pub fn collect_alarms(event_manager: &Reference, since: &str) -> Zeroizing<String> {
    let since = soap::element("beginTime", since);
    let filter = format!(
        "<filter><time>{since}</time><disableFullMessage>true</disableFullMessage>\
         <eventTypeId>AlarmStatusChangedEvent</eventTypeId></filter>"
    );
    soap::request(Method::CreateCollectorForEvents, event_manager, &filter)
}

/// The request that limits how many events come at a time.
pub fn limit_events(events: &Reference) -> Zeroizing<String> {
    let most = soap::element("maxCount", &EVENTS_SHOWN.to_string());
    soap::request(Method::SetCollectorPageSize, events, &most)
}

/// The request that ends a collector of events.
pub fn destroy_event_collector(events: &Reference) -> Zeroizing<String> {
    soap::request(Method::DestroyCollector, events, "")
}

/// The request for news since `version`; empty: for everything. The server answers after `seconds` at the
/// latest.
pub fn wait(collector: &Reference, version: &str, seconds: u64) -> Zeroizing<String> {
    let parameters = soap::element("version", version)
        + &format!("<options><maxWaitSeconds>{seconds}</maxWaitSeconds></options>");
    soap::request(Method::WaitForUpdatesEx, collector, &parameters)
}

/// Reads the answer of a method that makes an object.
pub fn read_made(method: Method, body: &[u8]) -> Result<Reference, NoResult> {
    let mut made = None;
    soap::read_returned(method, body, |cursor, element| {
        let kind = element.attribute("type").unwrap_or_default();
        made = Some(Reference::new(kind, &*cursor.text()?));
        Ok(())
    })?;
    match made {
        Some(made) => Ok(made),
        None => Err(Cursor::new(body)?.unreadable("no reference to what was made").into()),
    }
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Updates {
    /// Where the next wait goes on from.
    pub version: String,
    /// There is more, to be asked for at once; this version can't be asked for twice.
    pub truncated: bool,
    /// Hosts that changed, came or went.
    pub hosts: HashSet<Arc<str>>,
    /// The latest events, if they changed.
    pub events: Option<Vec<Event>>,
}

/// An event, as far as anybody here wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// Grows from event to event.
    pub key: i64,
    /// The host that it is about, if it is about one.
    pub host: Option<Arc<str>>,
}

/// Reads the answer to `WaitForUpdatesEx`; `None`: there was no news until the wait was over.
pub fn read_updates(body: &[u8]) -> Result<Option<Updates>, NoResult> {
    let mut updates = None;
    soap::read_answer(Method::WaitForUpdatesEx, body, |cursor| {
        let mut found = Updates::default();
        while let Some(part) = cursor.child()? {
            match part.name() {
                "version" => {
                    found.version = cursor.text()?.into_owned();
                    if found.version.len() > MAX_VERSION {
                        return Err(cursor.unreadable("a version longer than its limit"));
                    }
                }
                "truncated" => found.truncated = matches!(cursor.text()?.trim(), "true" | "1"),
                "filterSet" => {
                    while let Some(part) = cursor.child()? {
                        if part.is_vim("objectSet") {
                            read_object(cursor, &mut found)?;
                        } else {
                            cursor.skip()?;
                        }
                    }
                }
                _ => cursor.skip()?,
            }
        }
        if found.version.is_empty() {
            return Err(cursor.unreadable("no version"));
        }
        updates = Some(found);
        Ok(())
    })?;
    Ok(updates)
}

/// Reads an ObjectUpdate.
fn read_object(cursor: &mut Cursor<'_>, found: &mut Updates) -> Result<(), Unreadable> {
    while let Some(part) = cursor.child()? {
        if part.is_vim("obj") && is_host(&part) {
            if found.hosts.len() >= MAX_HOSTS {
                return Err(cursor.unreadable("more hosts than the limit"));
            }
            found.hosts.insert(cursor.text()?.as_ref().into());
        } else if part.is_vim("changeSet") {
            let mut is_about_events = false;
            while let Some(part) = cursor.child()? {
                if part.is_vim("name") {
                    is_about_events = cursor.text()?.starts_with("latestPage");
                } else if part.is_vim("val") && is_about_events {
                    let events = found.events.get_or_insert_default();
                    if part.xsi_type.as_deref().is_some_and(|kind| kind.starts_with("ArrayOf")) {
                        while cursor.child()?.is_some() {
                            events.push(read_event(cursor)?);
                        }
                    } else {
                        events.push(read_event(cursor)?);
                    }
                } else {
                    cursor.skip()?;
                }
            }
        } else {
            cursor.skip()?;
        }
    }
    Ok(())
}

/// Reads an event: its key, and the host that it is about. That is the `entity` of an alarm's event, where
/// the alarm was triggered, and nobody else: its `host` may be the one on which a virtual machine runs.
fn read_event(cursor: &mut Cursor<'_>) -> Result<Event, Unreadable> {
    let mut event = Event::default();
    while let Some(part) = cursor.child()? {
        match part.name() {
            "key" => event.key = cursor.text()?.trim().parse().unwrap_or_default(),
            "entity" => {
                while let Some(argument) = cursor.child()? {
                    if argument.name() == "entity" && is_host(&argument) {
                        event.host = Some(cursor.text()?.as_ref().into());
                    } else {
                        cursor.skip()?;
                    }
                }
            }
            _ => cursor.skip()?,
        }
    }
    Ok(event)
}

fn is_host(element: &Element<'_>) -> bool {
    element.attribute("type").as_deref() == Some("HostSystem")
}

#[cfg(test)]
#[path = "updates_tests.rs"]
mod tests;
