//! Managed objects as plain data.

use super::soap::Fault;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// A reference to a managed object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Type, e.g. `HostSystem`.
    pub kind: Arc<str>,
    /// Identity within the vCenter, e.g. `host-15`. Survives a renaming of the object.
    pub id: Arc<str>,
}

impl Reference {
    /// A reference.
    pub fn new(kind: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Self {
        Self { kind: kind.into(), id: id.into() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.id)
    }
}

/// One managed object with the properties that the server returned.
#[derive(Debug, Clone, PartialEq)]
pub struct ManagedObject {
    /// Type, e.g. `HostSystem`.
    pub kind: Arc<str>,
    /// Reference, e.g. `host-15`.
    pub id: Arc<str>,
    /// What it has, by path. A property that is not set is absent.
    pub properties: Vec<(Arc<str>, Value)>,
    /// What could not be read, by path, and why.
    pub missing: Vec<(Arc<str>, Fault)>,
}

/// The value of a property, as far as anybody here wants one.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string or the word of an enumeration.
    Text(Arc<str>),
    /// A boolean.
    Bool(bool),
    /// A point in time, seconds of unix time.
    Time(f64),
    /// A reference to another object.
    Reference(Reference),
    /// An array, or a data object: its elements. An array that is set and empty has none.
    Items(Vec<Item>),
    /// Something else, or more of it than anybody wants.
    Other,
}

/// An element of an array or a member of a data object, flat: the texts in it with their paths. An
/// `AlarmState` of `triggeredAlarmState`, say, with `alarm`, `entity`, `overallStatus` and so on.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its element's name: the type of an array's elements, or which member of the data object.
    pub name: Arc<str>,
    /// Its own type (`xsi:type`); empty where that goes without saying.
    pub kind: Arc<str>,
    /// The texts in the order of the document, by the names of their elements, joined by dots:
    /// `healthState.key`. An element that is empty is there with an empty text.
    pub fields: Vec<(Arc<str>, Arc<str>)>,
}

impl Item {
    /// The first text at this path.
    pub fn get(&self, path: &str) -> Option<&Arc<str>> {
        self.fields.iter().find(|(at, _)| &**at == path).map(|(_, text)| text)
    }

    /// All texts at this path.
    pub fn all<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        self.fields.iter().filter(move |(at, _)| &**at == path).map(|(_, text)| text)
    }
}

impl ManagedObject {
    /// An object about which nothing is known yet.
    pub fn new(kind: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Self {
        Self { kind: kind.into(), id: id.into(), properties: Vec::new(), missing: Vec::new() }
    }

    /// The value of a property.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.properties.iter().find(|(name, _)| &**name == path).map(|(_, value)| value)
    }

    /// The value of a property that is a string or an enumeration.
    pub fn text(&self, path: &str) -> Option<&Arc<str>> {
        match self.get(path) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The value of a property that is a boolean.
    pub fn flag(&self, path: &str) -> Option<bool> {
        match self.get(path) {
            Some(Value::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// The value of a property that is a point in time, seconds of unix time.
    pub fn time(&self, path: &str) -> Option<f64> {
        match self.get(path) {
            Some(Value::Time(time)) => Some(*time),
            _ => None,
        }
    }

    /// The elements of a property that is an array or a data object; none where it is not set.
    pub fn items(&self, path: &str) -> &[Item] {
        match self.get(path) {
            Some(Value::Items(items)) => items,
            _ => &[],
        }
    }

    /// The object above this one in the vCenter's tree.
    pub fn parent(&self) -> Option<&Reference> {
        match self.get("parent") {
            Some(Value::Reference(parent)) => Some(parent),
            _ => None,
        }
    }

    /// Its name as people see it.
    pub fn name(&self) -> Option<String> {
        self.text("name").map(|name| entity_name(name))
    }
}

/// The name of an entity as people see it. vSphere escapes `/`, `\` and `%` in names as `%2f`, `%5c` and
/// `%25`, in either case of letters, and nothing else (vSphere API, `ManagedEntity.name`).
pub fn entity_name(raw: &str) -> String {
    let mut name = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('%') {
        name.push_str(before);
        let code = after.get(..2).map(str::to_ascii_lowercase);
        let (decoded, width) = match code.as_deref() {
            Some("2f") => ('/', 2),
            Some("5c") => ('\\', 2),
            Some("25") => ('%', 2),
            _ => ('%', 0),
        };
        name.push(decoded);
        rest = after.get(width..).unwrap_or_default();
    }
    name.push_str(rest);
    name
}

/// Keeps one copy of equal strings. In the answer about 5,000 hosts most values are the same few words.
#[derive(Debug, Default)]
pub struct Interner(HashSet<Arc<str>>);

impl Interner {
    /// The one copy of `text`.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_name_has_just_three_escapes() {
        for (raw, name) in [
            ("rack%2f1", "rack/1"),
            ("rack%2F1%5C%5c", "rack/1\\\\"),
            ("100%25", "100%"),
            ("%252f", "%2f"),
            ("%20 %e4 % %2", "%20 %e4 % %2"),
            ("%ä", "%ä"),
            ("", ""),
        ] {
            assert_eq!(entity_name(raw), name, "{raw}");
        }
    }
}
