//! The property collector: the one question that reads a vCenter's whole tree, and its paged answers.
//!
//! No view is made: a recursive traversal from the root folder is one request without state, which
//! survives a restart of the server and brings the clusters and datacenters along.

use super::model::{Interner, ManagedObject, Reference, Value};
use super::soap::{self, FaultKind, Method, NoResult, ServiceContent};
use super::xml::{Cursor, Element, Unreadable};
use std::fmt::Write;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Most objects of one page. A vCenter sends about 100 of its own accord.
const MAX_OBJECTS: usize = 100_000;
/// Longest token, bytes.
const MAX_TOKEN: usize = 1024;

/// One page of objects.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// Asks for the next page, once, in the same session; `None`: this was the last one. `"0"` is a token
    /// like any other.
    pub token: Option<String>,
    /// The objects.
    pub objects: Vec<ManagedObject>,
}

/// What to read.
#[derive(Debug, Clone, Copy)]
pub enum Query<'a> {
    /// Folders, datacenters, compute resources (clusters are some) with name and parent, and hosts with
    /// these properties.
    Tree(&'a [&'a str]),
    /// Some objects of one type, without anything around them.
    Objects {
        /// Their type.
        kind: &'a str,
        /// Which ones. At least one.
        ids: &'a [Arc<str>],
        /// The properties.
        properties: &'a [&'a str],
    },
}

impl Query<'_> {
    /// Whether it asks for this very object, by its name.
    pub fn names(&self, id: &str) -> bool {
        match self {
            Self::Tree(_) => false,
            Self::Objects { ids, .. } => ids.iter().any(|known| &**known == id),
        }
    }
}

/// The request for the first page. `page_size` 0: the server decides.
pub fn retrieve(service: &ServiceContent, query: &Query<'_>, page_size: u32) -> Zeroizing<String> {
    let mut spec = String::from("<specSet>");
    match query {
        Query::Tree(host_properties) => tree(&mut spec, service, host_properties),
        Query::Objects { kind, ids, properties } => {
            property_set(&mut spec, kind, properties);
            for id in *ids {
                spec.push_str("<objectSet>");
                reference(&mut spec, kind, id);
                spec.push_str("</objectSet>");
            }
        }
    }
    spec.push_str("</specSet>");
    if page_size == 0 {
        spec.push_str("<options/>");
    } else {
        let _ = write!(spec, "<options><maxObjects>{page_size}</maxObjects></options>");
    }
    soap::request(Method::RetrievePropertiesEx, &service.property_collector, &spec)
}

fn tree(spec: &mut String, service: &ServiceContent, host_properties: &[&str]) {
    for kind in ["Folder", "Datacenter", "ComputeResource"] {
        property_set(spec, kind, &["name", "parent"]);
    }
    property_set(spec, "HostSystem", host_properties);
    host_traversal(spec, service);
}

/// From the root folder to every host.
pub(super) fn host_traversal(spec: &mut String, service: &ServiceContent) {
    spec.push_str("<objectSet>");
    reference(spec, &service.root_folder.kind, &service.root_folder.id);
    spec.push_str("<skip>false</skip>");
    traversal(spec, "folder", "Folder", "childEntity", &["folder", "datacenter", "compute"]);
    traversal(spec, "datacenter", "Datacenter", "hostFolder", &["folder"]);
    traversal(spec, "compute", "ComputeResource", "host", &[]);
    spec.push_str("</objectSet>");
}

fn reference(spec: &mut String, kind: &str, id: &str) {
    use quick_xml::escape::escape;
    let _ = write!(spec, "<obj type=\"{}\">{}</obj>", escape(kind), escape(id));
}

/// The request for the next page.
pub fn continue_retrieve(service: &ServiceContent, token: &str) -> Zeroizing<String> {
    let token = soap::element("token", token);
    soap::request(Method::ContinueRetrievePropertiesEx, &service.property_collector, &token)
}

fn property_set(spec: &mut String, kind: &str, paths: &[&str]) {
    let _ = write!(spec, "<propSet><type>{kind}</type>");
    for path in paths {
        spec.push_str(&soap::element("pathSet", path));
    }
    spec.push_str("</propSet>");
}

/// A traversal from objects of `kind` along their property `path`; `then` names the traversals that go on
/// from there, which is how one recurses into itself.
fn traversal(spec: &mut String, name: &str, kind: &str, path: &str, then: &[&str]) {
    let _ = write!(
        spec,
        "<selectSet xsi:type=\"TraversalSpec\"><name>{name}</name><type>{kind}</type><path>{path}</path>\
         <skip>false</skip>"
    );
    for next in then {
        let _ = write!(spec, "<selectSet><name>{next}</name></selectSet>");
    }
    spec.push_str("</selectSet>");
}

/// Reads a page: the answer to `RetrievePropertiesEx` or `ContinueRetrievePropertiesEx`. An answer without
/// a result (nothing matched) is an empty page.
pub fn read_page(method: Method, body: &[u8], strings: &mut Interner) -> Result<Page, NoResult> {
    let mut page = Page::default();
    soap::read_answer(method, body, |cursor| {
        while let Some(part) = cursor.child()? {
            if part.is_vim("objects") {
                if page.objects.len() >= MAX_OBJECTS {
                    return Err(cursor.unreadable("more objects than the limit"));
                }
                page.objects.extend(read_object(cursor, strings)?);
            } else if part.is_vim("token") {
                let token = cursor.text()?;
                if token.len() > MAX_TOKEN {
                    return Err(cursor.unreadable("a token longer than its limit"));
                }
                page.token = Some(token.into_owned());
            } else {
                cursor.skip()?;
            }
        }
        Ok(())
    })?;
    Ok(page)
}

/// Reads an ObjectContent. One that does not say of which object it is comes to nothing.
fn read_object(cursor: &mut Cursor<'_>, strings: &mut Interner) -> Result<Option<ManagedObject>, Unreadable> {
    let mut object: Option<ManagedObject> = None;
    let mut properties = Vec::new();
    let mut missing = Vec::new();
    while let Some(part) = cursor.child()? {
        if part.is_vim("obj") {
            let reference = read_reference(cursor, &part, strings)?;
            object = Some(ManagedObject::new(reference.kind, reference.id));
        } else if part.is_vim("propSet") {
            let (mut path, mut value) = (None, Value::Other);
            while let Some(part) = cursor.child()? {
                if part.is_vim("name") {
                    path = Some(strings.get(&cursor.text()?));
                } else if part.is_vim("val") {
                    value = read_value(cursor, &part, strings)?;
                } else {
                    cursor.skip()?;
                }
            }
            properties.extend(path.map(|path| (path, value)));
        } else if part.is_vim("missingSet") {
            let (mut path, mut fault) = (None, FaultKind::Other("".into()));
            while let Some(part) = cursor.child()? {
                if part.is_vim("path") {
                    path = Some(strings.get(&cursor.text()?));
                } else if part.is_vim("fault") {
                    fault = read_missing_fault(cursor)?;
                } else {
                    cursor.skip()?;
                }
            }
            missing.extend(path.map(|path| (path, fault)));
        } else {
            cursor.skip()?;
        }
    }
    Ok(object.map(|object| ManagedObject { properties, missing, ..object }))
}

/// Reads a LocalizedMethodFault, of which `fault` is the fault itself.
fn read_missing_fault(cursor: &mut Cursor<'_>) -> Result<FaultKind, Unreadable> {
    let mut kind = FaultKind::Other("".into());
    while let Some(part) = cursor.child()? {
        if part.is_vim("fault") {
            kind = FaultKind::from_name(part.xsi_type.as_deref().unwrap_or_default());
        }
        cursor.skip()?;
    }
    Ok(kind)
}

fn read_reference(
    cursor: &mut Cursor<'_>,
    element: &Element<'_>,
    strings: &mut Interner,
) -> Result<Reference, Unreadable> {
    let kind = strings.get(&element.attribute("type").unwrap_or_default());
    Ok(Reference { kind, id: strings.get(&cursor.text()?) })
}

/// Reads a value by its type. Enumerations come with the enumeration's name for a type, so what is not
/// known and holds text alone is text.
fn read_value(
    cursor: &mut Cursor<'_>,
    element: &Element<'_>,
    strings: &mut Interner,
) -> Result<Value, Unreadable> {
    match element.xsi_type.as_deref() {
        Some("ManagedObjectReference") => Ok(Value::Reference(read_reference(cursor, element, strings)?)),
        Some("boolean") => Ok(match cursor.text()?.trim() {
            "true" | "1" => Value::Bool(true),
            "false" | "0" => Value::Bool(false),
            _ => Value::Other,
        }),
        Some("dateTime") => {
            Ok(cursor.text()?.trim().parse::<jiff::Timestamp>().map_or(Value::Other, |time| {
                // Milliseconds fit a double for the next 285,000 years.
                Value::Time(time.as_millisecond() as f64 / 1000.0)
            }))
        }
        Some(kind) if is_textual(kind) => Ok(Value::Text(strings.get(&cursor.text()?))),
        _ => cursor.skip().map(|()| Value::Other),
    }
}

/// Strings and the enumerations of the vSphere API whose words are read; anything else is data that nobody
/// here asked for.
fn is_textual(kind: &str) -> bool {
    kind == "string"
        || kind == "ManagedEntityStatus"
        || kind == "HostSystemConnectionState"
        || kind == "HostSystemPowerState"
}

#[cfg(test)]
#[path = "property_tests.rs"]
mod tests;
