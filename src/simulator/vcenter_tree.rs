//! The simulated vCenter's tree of entities, how property collectors walk it, and how its answers are spelled.

use super::vcenter_condition::{Condition, Member};
use super::vcenter_request::{MoRef, PropertySet, Retrieve, Selection};
use crate::vim::xml::{SOAP, VIM, XSD, XSI};
use quick_xml::escape::escape;
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The value of a property.
#[derive(Debug, Clone)]
pub(super) enum Property {
    /// A string, or an enumeration's word with the enumeration's name.
    Text(&'static str, String),
    Bool(bool),
    Time(String),
    One(MoRef),
    Many(Vec<MoRef>),
}

/// A managed entity.
#[derive(Debug, Default)]
pub(super) struct Entity {
    pub reference: MoRef,
    properties: HashMap<&'static str, Property>,
    denied: HashSet<String>,
    condition: Condition,
    /// Its last rendering, by what was asked.
    rendered: Option<(u64, Arc<str>)>,
}

impl Entity {
    pub fn new(kind: &str, id: String) -> Self {
        Self { reference: MoRef { kind: kind.to_owned(), id }, ..Self::default() }
    }

    pub fn set(&mut self, path: &'static str, value: Property) {
        self.properties.insert(path, value);
        self.rendered = None;
    }

    pub fn unset(&mut self, path: &str) {
        self.properties.remove(path);
        self.rendered = None;
    }

    pub fn deny(&mut self, path: &str) {
        self.denied.insert(path.to_owned());
        self.rendered = None;
    }

    /// Changes how a host is.
    pub fn condition(&mut self) -> &mut Condition {
        self.rendered = None;
        &mut self.condition
    }

    fn is_connected(&self) -> bool {
        let state = self.properties.get("runtime.connectionState");
        matches!(state, Some(Property::Text(_, state)) if state == "connected")
    }

    fn targets(&self, path: &str) -> &[MoRef] {
        match self.properties.get(path) {
            Some(Property::Many(many)) => many,
            Some(Property::One(one)) => std::slice::from_ref(one),
            _ => &[],
        }
    }

    pub fn push(&mut self, path: &'static str, child: MoRef) {
        match self.properties.entry(path).or_insert_with(|| Property::Many(Vec::new())) {
            Property::Many(many) => many.push(child),
            other => *other = Property::One(child),
        }
        self.rendered = None;
    }

    pub fn remove_child(&mut self, path: &str, child: &MoRef) {
        if let Some(Property::Many(many)) = self.properties.get_mut(path) {
            many.retain(|one| one != child);
        }
        self.rendered = None;
    }
}

/// Properties of HostSystem that exist but may be unset.
const HOST_PROPERTIES: &[&str] = &[
    "name",
    "parent",
    "overallStatus",
    "runtime.connectionState",
    "runtime.powerState",
    "runtime.inMaintenanceMode",
    "runtime.inQuarantineMode",
    "runtime.bootTime",
    "summary.rebootRequired",
    "summary.config.product.version",
    "summary.config.product.build",
    "summary.hardware.model",
    "triggeredAlarmState",
    "configIssue",
    "runtime.healthSystemRuntime.hardwareStatusInfo",
    "runtime.healthSystemRuntime.systemHealthInfo.numericSensorInfo",
    "config.service.service",
    "config.virtualNicManagerInfo.netConfig",
];

/// All entities by identity.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub entities: HashMap<String, Entity>,
    /// Properties that this server's API version does not have.
    pub unknown: HashSet<String>,
}

/// Why a retrieval is refused.
pub(super) enum Refused {
    NotFound(MoRef),
    InvalidProperty(String),
}

impl Tree {
    pub fn get(&mut self, reference: &MoRef) -> Option<&mut Entity> {
        self.entities.get_mut(&reference.id).filter(|entity| entity.reference == *reference)
    }

    /// The objects that a retrieval asks for, in the order of the walk, each once.
    pub fn select(&self, retrieve: &Retrieve) -> Result<Vec<String>, Refused> {
        for set in &retrieve.property_sets {
            if let Some(path) = set.paths.iter().find(|path| !self.has(&set.kind, path)) {
                return Err(Refused::InvalidProperty(path.clone()));
            }
        }
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        for spec in &retrieve.objects {
            let known = self.entities.get(&spec.object.id).filter(|entity| entity.reference == spec.object);
            if known.is_none() {
                return Err(Refused::NotFound(spec.object.clone()));
            }
            let all: Vec<&Selection> = spec.select.iter().collect();
            // A stack and not recursion: folders nest as deep as they like.
            let mut stack = vec![(spec.object.id.as_str(), all.clone(), spec.skip)];
            while let Some((id, select, skip)) = stack.pop() {
                let Some(entity) = self.entities.get(id) else { continue };
                if !seen.insert(id) {
                    continue;
                }
                let wanted = retrieve.property_sets.iter().any(|set| is_a(&entity.reference.kind, &set.kind));
                if wanted && !skip {
                    found.push(id.to_owned());
                }
                for selection in select {
                    let Some(Selection::Traversal { kind, path, skip, then, .. }) = named(&all, selection)
                    else {
                        continue;
                    };
                    if !is_a(&entity.reference.kind, kind) {
                        continue;
                    }
                    for child in entity.targets(path).iter().rev() {
                        stack.push((&child.id, then.iter().collect(), *skip));
                    }
                }
            }
        }
        Ok(found)
    }

    fn has(&self, kind: &str, path: &str) -> bool {
        !self.unknown.contains(path)
            && match kind {
                "HostSystem" => HOST_PROPERTIES.contains(&path),
                "Alarm" => path == "info.name",
                _ => ["name", "parent", "overallStatus", "childEntity", "hostFolder", "host"].contains(&path),
            }
    }

    /// An object with the properties that were asked of its type: what is in an ObjectContent.
    pub fn render(&mut self, id: &str, sets: &[PropertySet], dialect: &Dialect) -> Option<Arc<str>> {
        let entity = self.entities.get_mut(id)?;
        let mut hasher = DefaultHasher::new();
        sets.hash(&mut hasher);
        dialect.hash(&mut hasher);
        let key = hasher.finish();
        if let Some((_, rendered)) = entity.rendered.as_ref().filter(|(of, _)| *of == key) {
            return Some(Arc::clone(rendered));
        }
        let rendered: Arc<str> = dialect.object(entity, sets).into();
        entity.rendered = Some((key, Arc::clone(&rendered)));
        Some(rendered)
    }
}

fn is_a(kind: &str, base: &str) -> bool {
    kind == base || base == "ManagedEntity" || (kind == "ClusterComputeResource" && base == "ComputeResource")
}

/// Finds the traversal of a name anywhere among the object's selections.
fn named<'a>(all: &[&'a Selection], selection: &'a Selection) -> Option<&'a Selection> {
    let Selection::Named(wanted) = selection else { return Some(selection) };
    all.iter().copied().find_map(|candidate| match candidate {
        Selection::Traversal { name, .. } if name == wanted => Some(candidate),
        Selection::Traversal { then, .. } => {
            let inner: Vec<&Selection> =
                then.iter().filter(|s| matches!(s, Selection::Traversal { .. })).collect();
            named(&inner, selection)
        }
        Selection::Named(_) => None,
    })
}

/// How answers are spelled. The names are the same, the prefixes are not.
#[derive(Debug, Clone, Hash)]
pub(super) struct Dialect {
    soap: String,
    xsi: String,
    xsd: String,
    /// With its colon; empty: the default namespace, as servers do.
    vim: String,
}

impl Dialect {
    /// As a vCenter does it.
    pub fn vcenter() -> Self {
        Self { soap: "soapenv".into(), xsi: "xsi".into(), xsd: "xsd".into(), vim: String::new() }
    }

    /// Just as valid, and met by nobody who looks at prefixes.
    pub fn odd() -> Self {
        let name = |letter: char| format!("{letter}{}", rand::random_range(10..1000));
        Self { soap: name('e'), xsi: name('i'), xsd: name('d'), vim: name('v') + ":" }
    }

    pub fn envelope(&self, inner: &str) -> String {
        let Self { soap, xsi, xsd, vim } = self;
        let default = match vim.strip_suffix(':') {
            Some(prefix) => format!(" xmlns:{prefix}=\"{VIM}\""),
            None => String::new(),
        };
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{soap}:Envelope xmlns:{soap}=\"{SOAP}\" xmlns:{xsd}=\"{XSD}\" \
             xmlns:{xsi}=\"{XSI}\"{default}>\n<{soap}:Body>\n{inner}\n</{soap}:Body>\n</{soap}:Envelope>"
        )
    }

    /// `xmlns="urn:vim25"`, where the default namespace is used.
    fn default_namespace(&self) -> &'static str {
        if self.vim.is_empty() { " xmlns=\"urn:vim25\"" } else { "" }
    }

    /// The answer to a call, with its result or its results.
    pub fn response<'a>(&self, method: &str, returned: impl IntoIterator<Item = &'a str>) -> String {
        let (vim, ns) = (&self.vim, self.default_namespace());
        let mut inner = String::new();
        for one in returned {
            let _ = write!(inner, "<{vim}returnval>{one}</{vim}returnval>");
        }
        self.envelope(&format!("<{vim}{method}Response{ns}>{inner}</{vim}{method}Response>"))
    }

    pub fn fault(&self, kind: &str, message: &str, inner: &str) -> String {
        let Self { soap, xsi, vim, .. } = self;
        let ns = self.default_namespace();
        let message = escape(message);
        self.envelope(&format!(
            "<{soap}:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{message}</faultstring><detail>\
             <{vim}{kind}Fault{ns} {xsi}:type=\"{vim}{kind}\">{inner}</{vim}{kind}Fault></detail></{soap}:Fault>"
        ))
    }

    pub fn element(&self, name: &str, text: &str) -> String {
        let vim = &self.vim;
        format!("<{vim}{name}>{}</{vim}{name}>", escape(text))
    }

    pub fn reference(&self, name: &str, reference: &MoRef) -> String {
        let vim = &self.vim;
        format!("<{vim}{name} type=\"{}\">{}</{vim}{name}>", escape(&reference.kind), escape(&reference.id))
    }

    /// Puts an element around others.
    pub fn around(&self, name: &str, inner: &str) -> String {
        let vim = &self.vim;
        format!("<{vim}{name}>{inner}</{vim}{name}>")
    }

    /// An element of a type of the vSphere API around others.
    pub fn array(&self, name: &str, kind: &str, inner: &str) -> String {
        let Self { xsi, vim, .. } = self;
        format!("<{vim}{name} {xsi}:type=\"{vim}{kind}\">{inner}</{vim}{name}>")
    }

    fn object(&self, entity: &Entity, sets: &[PropertySet]) -> String {
        let Self { xsi, xsd, vim, .. } = self;
        let mut out = self.reference("obj", &entity.reference);
        let paths =
            sets.iter().filter(|set| is_a(&entity.reference.kind, &set.kind)).flat_map(|set| &set.paths);
        let mut missing = String::new();
        for path in paths {
            if entity.denied.contains(path) {
                let fault = format!(
                    "<{vim}fault {xsi}:type=\"{vim}NoPermission\">{}{}</{vim}fault>",
                    self.reference("object", &entity.reference),
                    self.element("privilegeId", "System.Read")
                );
                let inner = self.element("path", path) + &self.around("fault", &fault);
                missing.push_str(&self.around("missingSet", &inner));
                continue;
            }
            if let Some((kind, members)) = entity.condition.property(path, entity.is_connected())
                && entity.reference.kind == "HostSystem"
            {
                let _ = write!(
                    out,
                    "<{vim}propSet><{vim}name>{path}</{vim}name><{vim}val {xsi}:type=\"{vim}{kind}\">"
                );
                members.iter().for_each(|member| self.member(&mut out, member));
                let _ = write!(out, "</{vim}val></{vim}propSet>");
                continue;
            }
            let Some(value) = entity.properties.get(path.as_str()) else { continue };
            let (kind, text) = match value {
                Property::Text("string", text) => {
                    (format!("{xsd}:string"), escape(text.as_str()).into_owned())
                }
                Property::Text(kind, text) => (format!("{vim}{kind}"), escape(text.as_str()).into_owned()),
                Property::Bool(flag) => (format!("{xsd}:boolean"), flag.to_string()),
                Property::Time(time) => (format!("{xsd}:dateTime"), time.clone()),
                Property::One(one) => {
                    let _ = write!(
                        out,
                        "<{vim}propSet><{vim}name>{path}</{vim}name><{vim}val type=\"{}\" \
                         {xsi}:type=\"{vim}ManagedObjectReference\">{}</{vim}val></{vim}propSet>",
                        one.kind, one.id
                    );
                    continue;
                }
                Property::Many(many) => {
                    let inner: String =
                        many.iter().map(|one| self.reference("ManagedObjectReference", one)).collect();
                    (format!("{vim}ArrayOfManagedObjectReference"), inner)
                }
            };
            let _ = write!(
                out,
                "<{vim}propSet><{vim}name>{path}</{vim}name><{vim}val {xsi}:type=\"{kind}\">{text}</{vim}val></{vim}propSet>"
            );
        }
        out.push_str(&missing);
        out
    }

    fn member(&self, out: &mut String, member: &Member) {
        let Self { xsi, vim, .. } = self;
        let Member { name, kind, refers_to, text, members } = member;
        let _ = write!(out, "<{vim}{name}");
        if let Some(kind) = kind {
            let _ = write!(out, " {xsi}:type=\"{vim}{kind}\"");
        }
        if let Some(kind) = refers_to {
            let _ = write!(out, " type=\"{kind}\"");
        }
        let _ = write!(out, ">{}", escape(text.as_str()));
        members.iter().for_each(|member| self.member(out, member));
        let _ = write!(out, "</{vim}{name}>");
    }
}
