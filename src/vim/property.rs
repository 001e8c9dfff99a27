//! The property collector: the one question that reads a vCenter's whole tree, and its paged answers.
//!
//! No view is made: a recursive traversal from the root folder is one request without state, which
//! survives a restart of the server and brings the clusters and datacenters along.

use super::model::{Interner, Item, ManagedObject, Reference, Value};
use super::page::Progress;
use super::soap::{self, Fault, FaultKind, Method, NoResult, ServiceContent};
use super::xml::{Cursor, Element, Inside, Unreadable};
use std::fmt::Write;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Most objects of one page. A vCenter sends about 100 of its own accord.
const MAX_OBJECTS: usize = 100_000;
/// Longest token, bytes.
const MAX_TOKEN: usize = 1024;
/// Longest text that is a value, bytes. vSphere's own limit for names is 80 characters.
const MAX_VALUE: usize = 4096;
/// Most texts in an array or a data object. A server with 200 sensors has some 2,500 in them.
const MAX_FIELDS: usize = 20_000;

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

/// How the objects are to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// In pages of so many objects; 0: the server decides.
    Pages(u32),
    /// All in one answer, by the method of API 4.0.
    None,
}

/// The request for the first page, or for everything, and its method.
pub fn retrieve(service: &ServiceContent, query: &Query<'_>, paging: Paging) -> (Method, Zeroizing<String>) {
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
    let method = match paging {
        Paging::None => Method::RetrieveProperties,
        Paging::Pages(0) => {
            spec.push_str("<options/>");
            Method::RetrievePropertiesEx
        }
        Paging::Pages(size) => {
            let _ = write!(spec, "<options><maxObjects>{size}</maxObjects></options>");
            Method::RetrievePropertiesEx
        }
    };
    (method, soap::request(method, &service.property_collector, &spec))
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

/// Reads a page: the answer to `RetrievePropertiesEx` or `ContinueRetrievePropertiesEx`, or everything: the
/// answer to `RetrieveProperties`, whose results are the objects themselves. An answer without a result
/// (nothing matched) is an empty page.
pub fn read_page(method: Method, body: &[u8], strings: &mut Interner) -> Result<Page, NoResult> {
    let mut page = Page::default();
    read_part(method, body, strings, &mut page, &mut Progress::none())?;
    Ok(page)
}

/// Adds what stands in a part of an answer to `page`; the token, too. Tells `progress` after each object how far
/// it came.
pub(super) fn read_part(
    method: Method,
    part: &[u8],
    strings: &mut Interner,
    page: &mut Page,
    progress: &mut Progress,
) -> Result<(), NoResult> {
    let check = |cursor: &Cursor<'_>, objects: &[ManagedObject]| match objects.len() {
        0..MAX_OBJECTS => Ok(()),
        _ => Err(cursor.unreadable("more objects than the limit")),
    };
    soap::read_answer(method, part, |cursor| {
        if method == Method::RetrieveProperties {
            check(cursor, &page.objects)?;
            page.objects.extend(read_object(cursor, strings)?);
            progress.reached(cursor, page.objects.len());
            return Ok(());
        }
        while let Some(part) = cursor.child()? {
            if part.is_vim("objects") {
                check(cursor, &page.objects)?;
                page.objects.extend(read_object(cursor, strings)?);
                progress.reached(cursor, page.objects.len());
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
    })
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
            let (mut path, mut fault) = (None, Fault::from(FaultKind::Other("".into())));
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
    // They are kept for as long as the others of the answer take.
    properties.shrink_to_fit();
    Ok(object.map(|object| ManagedObject { properties, missing, ..object }))
}

/// Reads a LocalizedMethodFault, of which `fault` is the fault itself.
fn read_missing_fault(cursor: &mut Cursor<'_>) -> Result<Fault, Unreadable> {
    let mut fault = Fault::from(FaultKind::Other("".into()));
    while let Some(part) = cursor.child()? {
        if part.is_vim("fault") {
            let kind = FaultKind::from_name(part.xsi_type.as_deref().unwrap_or_default());
            let (subject, object) = soap::read_subject(cursor)?;
            fault = Fault { kind, subject, object };
        } else {
            cursor.skip()?;
        }
    }
    Ok(fault)
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
/// known and holds text alone is text. A text beyond its limit is no value: one host with such a name must
/// not make the others unreadable.
fn read_value(
    cursor: &mut Cursor<'_>,
    element: &Element<'_>,
    strings: &mut Interner,
) -> Result<Value, Unreadable> {
    match element.xsi_type.as_deref() {
        Some("ManagedObjectReference") => Ok(Value::Reference(read_reference(cursor, element, strings)?)),
        Some("boolean") => Ok(match cursor.text_within(MAX_VALUE)?.as_deref().map(str::trim) {
            Some("true" | "1") => Value::Bool(true),
            Some("false" | "0") => Value::Bool(false),
            _ => Value::Other,
        }),
        Some("dateTime") => {
            let text = cursor.text_within(MAX_VALUE)?.unwrap_or_default();
            Ok(text.trim().parse::<jiff::Timestamp>().map_or(Value::Other, |time| {
                // Milliseconds fit a double for the next 285,000 years.
                Value::Time(time.as_millisecond() as f64 / 1000.0)
            }))
        }
        Some(kind) if is_textual(kind) => {
            Ok(cursor.text_within(MAX_VALUE)?.map_or(Value::Other, |text| Value::Text(strings.get(&text))))
        }
        Some(_) => read_items(cursor, strings),
        None => cursor.skip().map(|()| Value::Other),
    }
}

/// Strings and the enumerations of the vSphere API whose words are read.
fn is_textual(kind: &str) -> bool {
    kind == "string"
        || kind == "ManagedEntityStatus"
        || kind == "HostSystemConnectionState"
        || kind == "HostSystemPowerState"
}

/// Reads an array or a data object. A number and the like has no elements, and is something else.
fn read_items(cursor: &mut Cursor<'_>, strings: &mut Interner) -> Result<Value, Unreadable> {
    let (mut items, mut left, mut is_plain) = (Vec::new(), MAX_FIELDS, false);
    let mut path = String::new();
    loop {
        match cursor.inside()? {
            Inside::Close if is_plain && items.is_empty() => return Ok(Value::Other),
            Inside::Close => return Ok(Value::Items(items)),
            Inside::Text(text) => is_plain |= !text.trim().is_empty(),
            Inside::Open(element) => {
                let name = strings.get(element.name());
                let kind = strings.get(element.xsi_type.as_deref().unwrap_or_default());
                let mut fields = Vec::new();
                read_fields(cursor, strings, &mut path, &mut fields, &mut left)?;
                if left == 0 {
                    // The array is still open.
                    cursor.skip()?;
                    return Ok(Value::Other);
                }
                items.push(Item { name, kind, fields });
            }
        }
    }
}

/// Reads what is in an element: its own text if it holds no others. Recursion ends where the cursor's
/// limit of nesting does.
fn read_fields(
    cursor: &mut Cursor<'_>,
    strings: &mut Interner,
    path: &mut String,
    fields: &mut Vec<(Arc<str>, Arc<str>)>,
    left: &mut usize,
) -> Result<(), Unreadable> {
    let (mut text, mut is_leaf) = (std::borrow::Cow::Borrowed(""), true);
    loop {
        match cursor.inside()? {
            Inside::Open(element) => {
                is_leaf = false;
                let outside = path.len();
                if outside > 0 {
                    path.push('.');
                }
                path.push_str(element.name());
                read_fields(cursor, strings, path, fields, left)?;
                path.truncate(outside);
            }
            // A long message is cut, and the rest of the data object still is of use.
            Inside::Text(more) if text.len() + more.len() > MAX_VALUE => {}
            Inside::Text(more) if text.is_empty() => text = more,
            Inside::Text(more) => text.to_mut().push_str(&more),
            Inside::Close => break,
        }
    }
    if is_leaf && *left > 0 {
        *left -= 1;
        fields.push((strings.get(path), strings.get(&text)));
    }
    Ok(())
}

#[cfg(test)]
#[path = "property_tests.rs"]
mod tests;
