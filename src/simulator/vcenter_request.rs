//! Reads the requests of SOAP clients: what was asked, not how it was spelled.

use crate::vim::xml::{Cursor, Element, Unreadable};

/// A call of a method on an object.
#[derive(Debug)]
pub(super) struct Call {
    pub method: String,
    pub this: MoRef,
    pub parameters: Node,
}

/// A reference to an object: type and identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct MoRef {
    pub kind: String,
    pub id: String,
}

/// An element with what is in it.
#[derive(Debug, Default)]
pub(super) struct Node {
    name: String,
    kind: String,
    text: String,
    children: Vec<Node>,
}

/// What `RetrievePropertiesEx` and `CreateFilter` ask for (one PropertyFilterSpec).
#[derive(Debug)]
pub(super) struct Retrieve {
    pub property_sets: Vec<PropertySet>,
    pub objects: Vec<ObjectSpec>,
    pub max_objects: Option<usize>,
}

/// Properties of the objects of a type and its subtypes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PropertySet {
    pub kind: String,
    pub paths: Vec<String>,
}

/// Where a retrieval begins, and where it goes from there.
#[derive(Debug)]
pub(super) struct ObjectSpec {
    pub object: MoRef,
    pub skip: bool,
    pub select: Vec<Selection>,
}

/// A TraversalSpec, or the name of one.
#[derive(Debug)]
pub(super) enum Selection {
    Named(String),
    Traversal { name: String, kind: String, path: String, skip: bool, then: Vec<Selection> },
}

impl Call {
    pub fn read(body: &[u8]) -> Result<Self, Unreadable> {
        let mut cursor = Cursor::new(body)?;
        match cursor.child()? {
            Some(root) if root.is_soap("Envelope") => {}
            _ => return Err(cursor.unreadable("no SOAP envelope")),
        }
        let mut call = None;
        while let Some(part) = cursor.child()? {
            if !part.is_soap("Body") {
                cursor.skip()?;
                continue;
            }
            while let Some(method) = cursor.child()? {
                call = Some(Node::read(&mut cursor, &method)?);
            }
        }
        let Some(parameters) = call else { return Err(cursor.unreadable("an empty body")) };
        let this = parameters.child("_this").map(Node::reference).unwrap_or_default();
        Ok(Self { method: parameters.name.clone(), this, parameters })
    }
}

impl Node {
    fn read(cursor: &mut Cursor<'_>, element: &Element<'_>) -> Result<Self, Unreadable> {
        let mut node = Self {
            name: element.name().to_owned(),
            kind: element.attribute("type").unwrap_or_default(),
            ..Self::default()
        };
        // The few elements that hold others are known; all the rest is text.
        let holds_others = node.name.ends_with("Set")
            || ["options", "specSet", "spec", "filter", "time"].contains(&node.name.as_str())
            || node.name.chars().next().is_some_and(char::is_uppercase);
        if holds_others && node.name != "pathSet" {
            while let Some(child) = cursor.child()? {
                node.children.push(Self::read(cursor, &child)?);
            }
        } else {
            node.text = cursor.text()?.into_owned();
        }
        Ok(node)
    }

    pub fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The texts of the children of a name.
    pub fn texts<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.children(name).map(|child| child.text.as_str())
    }

    fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Node> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of a child, empty if there is none.
    pub fn text(&self, name: &str) -> &str {
        self.child(name).map(|child| child.text.as_str()).unwrap_or_default()
    }

    pub fn reference(&self) -> MoRef {
        MoRef { kind: self.kind.clone(), id: self.text.clone() }
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.text(name).trim(), "true" | "1")
    }

    pub fn retrieve(&self) -> Option<Retrieve> {
        let spec = self.child("specSet").or_else(|| self.child("spec"))?;
        let property_sets = spec.children("propSet").map(|set| PropertySet {
            kind: set.text("type").to_owned(),
            paths: set.children("pathSet").map(|path| path.text.clone()).collect(),
        });
        let objects = spec.children("objectSet").map(|set| ObjectSpec {
            object: set.child("obj").map(Node::reference).unwrap_or_default(),
            skip: set.flag("skip"),
            select: set.selections(),
        });
        let max_objects = self.child("options").and_then(|options| options.text("maxObjects").parse().ok());
        Some(Retrieve { property_sets: property_sets.collect(), objects: objects.collect(), max_objects })
    }

    fn selections(&self) -> Vec<Selection> {
        let each = |set: &Node| match set.child("path") {
            None => Selection::Named(set.text("name").to_owned()),
            Some(path) => Selection::Traversal {
                name: set.text("name").to_owned(),
                kind: set.text("type").to_owned(),
                path: path.text.clone(),
                skip: set.flag("skip"),
                then: set.selections(),
            },
        };
        self.children("selectSet").map(each).collect()
    }
}
