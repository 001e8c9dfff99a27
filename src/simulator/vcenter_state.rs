//! All that changes in a simulated vCenter: its tree, its sessions, and what was counted.

use super::vcenter_calls::Rest;
use super::vcenter_request::MoRef;
use super::vcenter_spec::{HostSpec, VcenterFault, VcenterSpec};
use super::vcenter_tree::{Dialect, Entity, Property, Tree};
use super::vcenter_updates::Watchers;
use std::collections::{HashMap, HashSet, VecDeque};

/// All that changes.
#[derive(Debug)]
pub(super) struct State {
    pub spec: VcenterSpec,
    pub dialect: Dialect,
    pub tree: Tree,
    /// Identity of each host by its name.
    pub hosts: HashMap<String, String>,
    /// Each alarm's definition by its name.
    alarms: HashMap<String, MoRef>,
    /// Identity of each datacenter, folder and cluster by its path.
    places: HashMap<String, MoRef>,
    next_id: u32,
    /// Live sessions by cookie, and when they were last used.
    pub sessions: HashMap<String, tokio::time::Instant>,
    /// Sessions that a restart ended.
    pub before_restart: HashSet<String>,
    /// What a token stands for: its session, what was asked, and the objects that are left.
    pub tokens: HashMap<String, Rest>,
    pub next_token: u64,
    pub faults: VecDeque<(Option<String>, VcenterFault)>,
    /// What every other call fails by.
    pub standing_fault: Option<VcenterFault>,
    pub logins: u64,
    pub failed_logins: u64,
    pub rejected_in_a_row: u32,
    pub requests: u64,
    pub calls: HashMap<String, u64>,
    pub user_agent: String,
    /// Who watches what, in which session.
    pub watchers: Watchers,
}

pub(super) const ROOT: &str = "group-d1";

impl State {
    pub fn new(spec: VcenterSpec) -> Self {
        let dialect = if spec.odd_prefixes { Dialect::odd() } else { Dialect::vcenter() };
        let mut tree = Tree { unknown: spec.unknown_properties.iter().cloned().collect(), ..Tree::default() };
        let mut root = Entity::new("Folder", ROOT.to_owned());
        root.set("name", Property::Text("string", "Datacenters".to_owned()));
        let reference = root.reference.clone();
        tree.entities.insert(ROOT.to_owned(), root);
        let hosts = spec.hosts.clone();
        let mut state = Self {
            spec,
            dialect,
            tree,
            hosts: HashMap::new(),
            alarms: HashMap::new(),
            places: HashMap::from([(String::new(), reference)]),
            next_id: 2,
            sessions: HashMap::new(),
            before_restart: HashSet::new(),
            tokens: HashMap::new(),
            next_token: 0,
            faults: VecDeque::new(),
            standing_fault: None,
            logins: 0,
            failed_logins: 0,
            rejected_in_a_row: 0,
            requests: 0,
            calls: HashMap::new(),
            user_agent: String::new(),
            watchers: Watchers::default(),
        };
        for host in &hosts {
            state.add_host(host);
        }
        state
    }

    pub fn is_locked(&self) -> bool {
        self.rejected_in_a_row >= self.spec.lockout_after
    }

    /// The host of a name.
    pub fn host(&self, name: &str) -> Option<MoRef> {
        self.hosts.get(name).map(|id| MoRef { kind: "HostSystem".into(), id: id.clone() })
    }

    pub fn end_sessions(&mut self) {
        self.sessions.clear();
        self.tokens.clear();
    }

    fn add(&mut self, kind: &str, prefix: &str, name: &str, parent: &MoRef, path: &'static str) -> MoRef {
        let mut entity = Entity::new(kind, format!("{prefix}-{}", self.next_id));
        self.next_id += 1;
        let reference = entity.reference.clone();
        // How a vCenter escapes names.
        let name = name.replace('%', "%25").replace('/', "%2f").replace('\\', "%5c");
        entity.set("name", Property::Text("string", name));
        entity.set("parent", Property::One(parent.clone()));
        self.tree.entities.insert(reference.id.clone(), entity);
        if let Some(parent) = self.tree.get(parent) {
            if path == "hostFolder" {
                parent.set(path, Property::One(reference.clone()));
            } else {
                parent.push(path, reference.clone());
            }
        }
        reference
    }

    /// The place of `path`, made if it is not there: folders, and a last part of `kind`.
    fn place(&mut self, under: &MoRef, base: &str, path: &str, kind: &str, prefix: &str) -> (MoRef, String) {
        let mut at = (under.clone(), base.to_owned());
        let last = path.split('/').count();
        for (i, part) in path.split('/').enumerate() {
            let key = format!("{}/{part}", at.1);
            let reference = match self.places.get(&key) {
                Some(known) => known.clone(),
                None if i + 1 == last => self.add(kind, prefix, part, &at.0, "childEntity"),
                None => self.add("Folder", "group-h", part, &at.0, "childEntity"),
            };
            self.places.insert(key.clone(), reference.clone());
            at = (reference, key);
        }
        at
    }

    pub fn add_host(&mut self, spec: &HostSpec) {
        let root = MoRef { kind: "Folder".to_owned(), id: ROOT.to_owned() };
        let (datacenter, base) = self.place(&root, "", &spec.datacenter, "Datacenter", "datacenter");
        let key = format!("{base}//host");
        let folder = match self.places.get(&key) {
            Some(known) => known.clone(),
            None => self.add("Folder", "group-h", "host", &datacenter, "hostFolder"),
        };
        self.places.insert(key.clone(), folder.clone());
        let compute = match &spec.cluster {
            Some(cluster) => self.place(&folder, &key, cluster, "ClusterComputeResource", "domain-c").0,
            None => self.add("ComputeResource", "domain-s", &spec.name, &folder, "childEntity"),
        };
        self.add_host_below(spec, &compute);
    }

    /// Moves a host into another cluster of the same datacenter's host folder; it stays the same object.
    pub fn move_host(&mut self, name: &str, cluster: &str) {
        let Some(id) = self.hosts.get(name).cloned() else { return };
        let host = MoRef { kind: "HostSystem".to_owned(), id };
        let Some(folder) = self.places.iter().find(|(key, _)| key.ends_with("//host")) else { return };
        let (key, folder) = (folder.0.clone(), folder.1.clone());
        let compute = self.place(&folder, &key, cluster, "ClusterComputeResource", "domain-c").0;
        for entity in self.tree.entities.values_mut() {
            if matches!(entity.reference.kind.as_str(), "ComputeResource" | "ClusterComputeResource") {
                entity.remove_child("host", &host);
            }
        }
        if let Some(entity) = self.tree.get(&compute) {
            entity.push("host", host.clone());
        }
        if let Some(entity) = self.tree.get(&host) {
            entity.set("parent", Property::One(compute));
        }
    }

    fn add_host_below(&mut self, spec: &HostSpec, compute: &MoRef) {
        let host = self.add("HostSystem", "host", &spec.name, compute, "host");
        self.hosts.insert(spec.name.clone(), host.id.clone());
        let Some(entity) = self.tree.get(&host) else { return };
        let text = |kind, text: &str| Property::Text(kind, text.to_owned());
        entity.set("overallStatus", text("ManagedEntityStatus", "green"));
        entity.set("runtime.connectionState", text("HostSystemConnectionState", "connected"));
        entity.set("runtime.powerState", text("HostSystemPowerState", "poweredOn"));
        entity.set("runtime.inMaintenanceMode", Property::Bool(false));
        entity.set("runtime.inQuarantineMode", Property::Bool(false));
        entity.set("runtime.bootTime", Property::Time("2026-03-01T04:05:06.789Z".to_owned()));
        entity.set("summary.rebootRequired", Property::Bool(false));
        entity.set("summary.config.product.version", text("string", "8.0.3"));
        entity.set("summary.config.product.build", text("string", "24022510"));
        entity.set("summary.hardware.model", text("string", "PowerEdge R760"));
    }

    /// The definition of an alarm, made if it is not there.
    pub fn alarm(&mut self, name: &str) -> MoRef {
        if let Some(known) = self.alarms.get(name) {
            return known.clone();
        }
        let mut alarm = Entity::new("Alarm", format!("alarm-{}", self.next_id));
        self.next_id += 1;
        alarm.set("info.name", Property::Text("string", name.to_owned()));
        let reference = alarm.reference.clone();
        self.tree.entities.insert(reference.id.clone(), alarm);
        self.alarms.insert(name.to_owned(), reference.clone());
        reference
    }

    /// Gives an alarm another name.
    pub fn rename_alarm(&mut self, name: &str, new: &str) {
        let Some(reference) = self.alarms.remove(name) else { return };
        if let Some(alarm) = self.tree.get(&reference) {
            alarm.set("info.name", Property::Text("string", new.to_owned()));
        }
        self.alarms.insert(new.to_owned(), reference);
    }

    pub fn remove_host(&mut self, name: &str) {
        let Some(id) = self.hosts.remove(name) else { return };
        let host = MoRef { kind: "HostSystem".to_owned(), id };
        self.tree.entities.remove(&host.id);
        for entity in self.tree.entities.values_mut() {
            if matches!(entity.reference.kind.as_str(), "ComputeResource" | "ClusterComputeResource") {
                entity.remove_child("host", &host);
            }
        }
    }
}
